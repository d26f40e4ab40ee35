"""Start, reload, stop: what an operator gets told when something is wrong, and that changing the
configuration loses nothing."""

import errno
import json
import os
import re
import signal
import socket
import threading
import time

import pytest

from meshtest.agent import binary
from meshtest.host import Netns, poll, run
from meshtest.policies import config, service
from meshtest.traffic import GET, Server, connect_errno, exchange, http_server, receive, response, until_closed


def ends(agent, code=1):
    """Starts an agent that must not come up; returns its one line."""
    agent.launch()
    assert agent.process.wait(15) == code, agent.log_path.read_text()
    agent.process = None
    lines = agent.log_path.read_text().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


BAD = {
    "syntax": ('{\n  "services": [\n    {"name": "a" "endpoints": []}\n  ]\n}\n', 3, None),
    "unknown-key": ('{\n  "breakers": {\n    "maxOpenShares": 0.5\n  }\n}\n', 3, "breakers.maxOpenShares"),
    "type": ('{\n  "listen": 9464\n}\n', 2, "listen"),
    "duration": ('{"services": [\n{"name": "a", "endpoints": ["1.2.3.4:5"],\n"breaker": {"window": "10 parsecs"}}]}', 3, "services[0].breaker.window"),
    "endpoint": ('{"services": [{"name": "a",\n"endpoints": ["1.2.3.4:5",\n"1.2.3.400:5"]}]}', 3, "services[0].endpoints[1]"),
    "range": ('{"services": [{"name": "a", "endpoints": ["1.2.3.4:5"], "breaker": {\n"failureRate": 1.5}}]}', 2, "services[0].breaker.failureRate"),
    "no-name": ('{"services": [\n{"endpoints": ["1.2.3.4:5"]}]}', 2, "services[0]"),
    "twice": ('{"services": [{"name": "a", "endpoints": ["1.2.3.4:5"]},\n{"name": "a", "endpoints": ["1.2.3.4:6"]}]}', 2, "services[1].name"),
    "same-endpoint": ('{"services": [{"name": "a", "endpoints": ["1.2.3.4:5"]},\n{"name": "b",\n"endpoints": ["1.2.3.4:5"]}]}', 3, "services[1].endpoints[0]"),
    "mode": ('{"services": [{"name": "a", "endpoints": ["1.2.3.4:5"], "breaker": {\n"mode": "strict"}}]}', 2, "services[0].breaker.mode"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_bad_file_says_where_and_what(start_agent, world, case, command):
    text, line, key = BAD[case]
    agent = start_agent({}, start=False)
    agent.config_path.write_text(text)
    if command == "check":
        done = run(binary("mesh-agent", "MESH_AGENT"), "check", "--config", agent.config_path, check=False)
        assert done.returncode == 2 and done.stdout == ""
        said = done.stderr.rstrip("\n")
        assert "\n" not in said
    else:
        said = ends(agent, 2)
        if said.startswith("{"):
            said = json.loads(said)["message"]
    place = re.escape(str(agent.config_path)) + f":{line}: " + (re.escape(key or "") + ".*: .")
    assert re.match(place, said), said


def test_a_good_file_passes_the_check(start_agent):
    agent = start_agent(config(service()), start=False)
    done = run(binary("mesh-agent", "MESH_AGENT"), "check", "--config", agent.config_path)
    assert done.stderr == ""


def test_a_missing_file_is_an_error(start_agent):
    agent = start_agent({}, start=False)
    agent.config_path.unlink()
    done = run(binary("mesh-agent", "MESH_AGENT"), "check", "--config", agent.config_path, check=False)
    assert done.returncode == 2 and str(agent.config_path) in done.stderr and done.stderr.count("\n") == 1


def test_a_taken_port(start_agent, world, host):
    taken = host.outside.socket(world.near)
    taken.bind(("127.0.0.1", 9464))
    taken.listen()
    agent = start_agent({}, start=False)
    said = ends(agent)
    assert "127.0.0.1:9464" in said
    assert agent.attachments() == []
    taken.close()


def test_a_second_agent_on_the_same_socket(start_agent, world):
    first = start_agent({})
    second = start_agent({}, start=False, port=9465)
    assert second.control == first.control
    second.log_path = second.directory / "second.log"
    assert first.control in ends(second)
    assert first.status()["pid"] > 0
    exchange(*world.pair("lo4", 9001))
    first.expect_codes("127.0.0.1:9001", {"200": 1}, {})


def test_a_stale_socket_is_taken_over(start_agent):
    agent = start_agent({}, start=False)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(agent.control)
    stale.close()
    assert os.path.exists(agent.control)
    agent.start()
    assert agent.status()["version"]
    agent.stop()
    assert not os.path.exists(agent.control)


def test_a_path_that_is_no_socket_is_left_alone(start_agent):
    agent = start_agent({}, start=False)
    with open(agent.control, "w") as file:
        file.write("mine")
    assert agent.control in ends(agent)
    assert open(agent.control).read() == "mine"


def test_not_root(start_agent, world, tmp_path):
    agent = start_agent({}, start=False)
    for path in (tmp_path, *tmp_path.parents[:2], agent.directory):
        os.chmod(path, 0o755)
    done = run(
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--",
        agent.program, "run", "--config", agent.config_path, "--control", "/tmp/mesh-nobody/control.sock", check=False,
    )  # fmt: skip
    assert done.returncode == 1, done
    assert done.stderr.count("\n") == 1 and ("root" in done.stderr or "CAP_" in done.stderr)


WITHOUT = {
    "cgroup2": ("umount -a -t cgroup2", "cgroup2"),
    "btf": ("mount -t tmpfs none /sys/kernel/btf", "BTF"),
}


@pytest.mark.parametrize("missing", list(WITHOUT))
def test_a_host_that_lacks_something(start_agent, world, missing):
    """In a mount namespace of its own the host looks as if it had no cgroup2, or no BTF."""
    hide, word = WITHOUT[missing]
    agent = start_agent({"cgroup": "auto"} if missing == "cgroup2" else {}, start=False)
    hidden = ["unshare", "-m", "sh", "-c", f'{hide} && exec "$@"', "sh"]
    words = [agent.program, "run", "--config", agent.config_path, "--control", agent.control]
    done = world.near.run(*hidden, *words, check=False)
    assert done.returncode == 1, done
    assert done.stderr.count("\n") == 1 and word in done.stderr
    done = world.near.run(*hidden, binary("meshctl", "MESHCTL"), "doctor", check=False)
    assert done.returncode == 1 and word in done.stdout


def test_a_cgroup_that_is_not_there(start_agent):
    agent = start_agent({"cgroup": "/mesh-test-no-such"}, start=False)
    assert "mesh-test-no-such" in ends(agent)


@pytest.mark.parametrize(
    "words", [["run", "--no-such"], ["walk"], ["run", "--listen"], ["run", "--listen", "nowhere"], ["check"]]
)
def test_wrong_usage_is_exit_2(words):
    done = run(binary("mesh-agent", "MESH_AGENT"), *words, check=False)
    assert done.returncode == 2 and done.stderr


def test_the_control_socket_is_roots_alone(start_agent):
    agent = start_agent({})
    assert oct(os.stat(agent.control).st_mode & 0o777) == "0o600"
    assert oct(os.stat(os.path.dirname(agent.control)).st_mode & 0o777) == "0o700"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it_cleanly(start_agent, world, number):
    agent = start_agent(config(service()))
    exchange(*world.pair("lo4", 9001))
    assert agent.attachments() != []
    agent.signal(number)
    assert agent.process.wait(10) == 0
    agent.process = None
    assert agent.attachments() == []
    assert not os.path.exists(agent.control)


def test_health_and_readiness(start_agent):
    agent = start_agent({})
    for path in ("/healthz", "/readyz"):
        assert agent.get(path)[0] == 200
        status, _, body = agent.get(path, method="HEAD")
        assert (status, body) == (200, b"")
    assert agent.get("/nothing")[0] == 404
    status, headers, _ = agent.get("/metrics", method="POST")
    assert status == 405 and "GET" in headers["Allow"]


def test_logs_are_one_object_a_line(start_agent, world):
    agent = start_agent(config(service(consecutiveFailures=1)))
    for _ in range(20):
        exchange(*world.pair("lo6", 9001))
    connect_errno(world, "lo4", 9001)
    agent.wait_state("web", "open")
    agent.meshctl("breaker", "close", "web", "--reason", 'told "to"\nby a test')
    agent.expect(lambda: any("told" in json.dumps(line) for line in agent.logs()), True)
    lines = agent.logs()
    assert all({"time", "level", "message"} <= line.keys() for line in lines), lines
    assert any("consecutive_failures" in json.dumps(line) for line in lines)
    assert len(lines) < 20, "a line for each request"


# Reload


def test_a_reload_changes_services_and_policies(start_agent, world):
    agent = start_agent(config(service("one", 9001), service("two", 9002)))
    pairs = {port: world.pair("lo4", port) for port in (9001, 9002, 9003)}
    for pair in pairs.values():
        exchange(*pair)
    changed = config(service("one", 9001, consecutiveFailures=1), service("three", 9003))
    assert agent.reload(changed)["error"] is None
    assert {row["service"] for row in agent.ask("/v1/breakers")["breakers"]} == {"one", "three"}
    exchange(*world.pair("lo4", 9003))
    agent.expect_codes("three", {"200": 1})
    assert agent.codes("one") == {"200": 1}
    exchange(pairs[9001][0], pairs[9001][1], 500)
    agent.wait_state("one", "open")
    assert agent.breaker("one")["mode"] == "enforce"


def test_a_bad_reload_keeps_the_old_configuration(start_agent, world):
    agent = start_agent(config(service()))
    agent.override("web", "open")
    loaded = agent.status()["config"]["loaded_at"]
    agent.config_path.write_text('{\n"services": 3\n}\n')
    agent.signal(signal.SIGHUP)
    error = poll(lambda: agent.status()["config"]["error"])
    assert error.startswith(f"{agent.config_path}:2: services: ")
    assert any(error in json.dumps(line) for line in agent.logs())
    assert agent.status()["config"]["loaded_at"] == loaded
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    world.listen("lo4", 9001)
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    assert f"{agent.config_path}:2" in agent.meshctl("status", output="table")
    assert agent.reload(config(service()))["error"] is None


def test_reloads_lose_no_sample(start_agent, world):
    services = [service("web", 9001), *[service(f"s{n}", 9100 + n) for n in range(50)]]
    agent = start_agent(config(*services))
    sent, done = [0], threading.Event()
    with Server(world.listen("lo4", 9001), http_server()):
        client = world.connect("lo4", 9001)

        def call():
            while not done.is_set():
                client.sendall(GET)
                receive(client, len(response(200)))
                sent[0] += 1

        thread = threading.Thread(target=call)
        thread.start()
        for n in range(10):
            before = sent[0]
            assert (
                agent.reload(config(*(services[: 1 + n] if n % 2 else services[:1] + services[25:])))["error"] is None
            )
            poll(lambda: sent[0] > before + 20, what="requests go on")
        done.set()
        thread.join()
    agent.expect_codes("web", {"200": sent[0]})
    assert agent.lost() == 0


@pytest.mark.parametrize("how", ["automatic", "override"])
def test_reloads_leave_no_gap_in_enforcement(start_agent, world, how):
    agent = start_agent(config(service(consecutiveFailures=1)))
    if how == "automatic":
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
        agent.wait_state("web", "open")
    else:
        agent.override("web", "open")
    world.listen("lo4", 9001)
    results, done = {}, threading.Event()

    def call():
        while not done.is_set():
            error = connect_errno(world, "lo4", 9001)
            results[error] = results.get(error, 0) + 1

    thread = threading.Thread(target=call)
    thread.start()
    for n in range(10):
        more = [service(f"s{n}", 9100 + n)]
        assert agent.reload(config(*more, service(consecutiveFailures=1)))["error"] is None
    done.set()
    thread.join()
    assert set(results) == {errno.ECONNREFUSED} and results[errno.ECONNREFUSED] > 100
    agent.expect(lambda: agent.attempts("web", "connect").get("rejected"), results[errno.ECONNREFUSED])
    breaker = agent.breaker("web")
    assert breaker["state"] == "open"
    assert (breaker["override"] is not None) == (how == "override")


def test_a_service_that_goes_rejects_no_longer(start_agent, world):
    agent = start_agent(config(service()))
    client, server = world.pair("lo4", 9001)
    agent.override("web", "open")
    world.listen("lo4", 9001)
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.reload(config())
    assert connect_errno(world, "lo4", 9001) == 0
    exchange(client, server)


def test_a_reload_reaches_established_connections(start_agent, world):
    """A pool that was opened to a discovered destination belongs to the service that a reload names."""
    agent = start_agent(config(service("other-one", 9002)))
    client, server = world.pair("lo4", 9001)
    exchange(client, server)
    agent.reload(config(service("other-one", 9002), service()))
    exchange(client, server)
    agent.expect_codes("web", {"200": 1})
    active = lambda: agent.metrics().by("mesh_connections_active", "role", service="web")
    agent.expect(active, {"client": 1, "server": 1})
    agent.override("web", "open")
    client.sendall(GET)
    assert until_closed(client) == errno.ECONNRESET
    assert until_closed(server) == errno.ECONNRESET
    agent.expect(active, {})


def test_a_longer_lease_holds_at_once(start_agent, world):
    def leased(lease):
        return {**config(service(consecutiveFailures=1, openFor="1h", maxOpenFor="1h")), "breakers": {"lease": lease}}

    agent = start_agent(leased("1s"))
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.wait_state("web", "open")
    agent.reload(leased("5m"))
    world.listen("lo4", 9001)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED


def test_two_agents_side_by_side(start_agent, world, host):
    """Each with a cgroup of its own: neither sees nor disturbs the other's."""
    other_world = host.scratch.child("elsewhere")
    one = start_agent(config(service()), cgroup=host.tests)
    two = start_agent(config(service()), name="two", cgroup=other_world, port=9465)
    exchange(*world.pair("lo4", 9001))
    one.expect_codes("web", {"200": 1})
    two.stop()
    exchange(*world.pair("lo4", 9001))
    one.expect_codes("web", {"200": 2})
    one.stop()
    other_world.remove()


def test_no_configuration_is_needed(start_agent, world):
    agent = start_agent({"services": []})
    exchange(*world.pair("lo4", 9001), 500)
    agent.expect_codes("127.0.0.1:9001", {"500": 1}, {})
    assert agent.ask("/v1/breakers")["breakers"] == []


def test_netns_are_gone_after_the_test(host):
    made = Netns(f"mt-{os.getpid()}-gone")
    made.close()
    assert not os.path.exists(made.path)
