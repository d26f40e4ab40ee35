"""An agent ends, in whatever way, and the next takes over: what is enforced is enforced all the time, and
nothing is lost, doubled or left behind.

MESH_TAKEOVERS says how many takeovers the storm goes through, on tcx and on clsact each:
    MESH_TAKEOVERS=500 scripts/test-kernel -k storm"""

import errno
import json
import os
import random
import signal
import subprocess
import time

import pytest

from meshtest import foreign as programs
from meshtest.agent import binary
from meshtest.capture import Capture
from meshtest.host import poll, run
from meshtest.policies import config, service
from meshtest.storm import Requests, Storm
from meshtest.traffic import GET, connect_errno, exchange, until_closed

TC = pytest.mark.parametrize("tc", ["tcx", "clsact"])
TAKEOVERS = int(os.environ.get("MESH_TAKEOVERS", "50"))
# What `trip` opens stays open, and the lease holds, for as long as a test may take.
LASTING = {"openFor": "1h", "maxOpenFor": "1h", "probe": {"ratio": 0.000001, "interval": "1h"}}
LEASE = {"breakers": {"maxOpenShare": 1.0, "lease": "5m"}}
HOUR = 3600


def forced(tc):
    return {"MESH_AGENT_FORCE_CLSACT": "1"} if tc == "clsact" else {}


def enforcing(start_agent, world, tc="tcx", pairs=0, **options):
    """An agent with one breaker forced open (`web`, 9001) and one that tripped (`second`, 9002), servers behind
    both, and connections to the first from before."""
    settings = {**config(service(), service("second", 9002, consecutiveFailures=1, **LASTING)), **LEASE}
    agent = start_agent(settings, environment=forced(tc), **options)
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    agent.wait_state("second", "open")
    listener = world.listen("veth4", 9001)
    made = [world.pair("veth4", 9001, listener) for _ in range(pairs)]
    for port in (9001, 9002):
        world.listen("lo4", port)
    agent.override("web", "open", 24 * HOUR, "a storm")
    for port in (9001, 9002):
        assert connect_errno(world, "lo4", port) == errno.ECONNREFUSED
    return agent, made


def none_leaked(agent, storm, requests=None):
    """Every attempt was refused, and each refusal counted once: one by the trip, one by each look."""
    refused = {port: counts.get(errno.ECONNREFUSED, 0) for port, counts in storm.results.items()}
    assert storm.results == {port: {errno.ECONNREFUSED: count} for port, count in refused.items()}
    assert min(refused.values()) > 1000, refused
    assert agent.attempts("web", "connect")["rejected"] == refused[9001] + 1
    assert agent.attempts("second", "connect")["rejected"] == refused[9002] + 1
    if requests:
        assert requests.leaked == [] and requests.sent > 10, (requests.leaked, requests.sent)
        assert agent.attempts("web", "request")["rejected"] == requests.sent
    assert agent.breaker("web")["override"]["state"] == "open"
    assert agent.breaker("second")["state"] == "open"


def steps():
    """The steps of a start, from the binary: a new one cannot be forgotten here."""
    listed = run(binary("mesh-agent", "MESH_AGENT"), "run", env={**os.environ, "MESH_AGENT_STOP_AT": "list"}).stdout
    return listed.split()


def killed_at(agent, step, **environment):
    """Starts an agent that kills itself at a step; whether it came by there. Else it is killed when it is ready."""
    agent.log_path.write_text("")
    agent.spawn(MESH_AGENT_STOP_AT=step, **environment)
    ended = lambda: agent.process.poll() is not None
    poll(lambda: ended() or '"ready"' in agent.log_path.read_text(), 60, 0.01, f"dead at {step}, or ready")
    if not ended():
        agent.kill()
        return False
    agent.ended(-signal.SIGKILL)
    return True


@TC
@pytest.mark.limit(120 + 2 * TAKEOVERS)
def test_no_attempt_leaks_in_a_storm(start_agent, world, tc):
    agent, pairs = enforcing(start_agent, world, tc, pairs=300)
    agent.kill()
    with Storm(world.near, (9001, 9002)) as storm, Requests(pairs, 0.1 * TAKEOVERS / len(pairs)) as requests:
        for number in range(TAKEOVERS):
            # As soon as it is ready, the agent kills itself. Some are of another build, which has to load its
            # programs first.
            build = {"MESH_AGENT_BUILD": str(number)} if number % 25 == 0 else {}
            agent.spawn(MESH_AGENT_STOP_AT="ready", **build).ended(-signal.SIGKILL)
            if number % 5 == 1:
                # And some more die before, whenever that is.
                agent.spawn()
                time.sleep(random.random() / 10)
                agent.kill()
        agent.start()
    none_leaked(agent, storm, requests)
    agent.stop()


@TC
@pytest.mark.limit(600)
def test_killed_at_every_step_of_a_takeover(start_agent, world, tc):
    agent, pairs = enforcing(start_agent, world, tc, pairs=300)
    agent.kill()
    died = set()
    with Storm(world.near, (9001, 9002)) as storm, Requests(pairs, 0.03) as requests:
        for number, step in enumerate(steps()):
            # Of this build, whose programs are loaded, and of another.
            build = {"MESH_AGENT_BUILD": str(number)} if number % 2 else {}
            if killed_at(agent, step, **build):
                died.add(step)
        agent.start()
    fresh = {"maps-copied", "maps-marked", "maps-placed", "link-made"}
    other = {"filter-marked", "filter-attached"} if tc == "tcx" else set()
    assert died == set(steps()) - fresh - other
    none_leaked(agent, storm, requests)
    agent.stop()


@pytest.mark.limit(600)
def test_killed_at_every_step_of_a_first_start(start_agent, world):
    """The next start works, and leaves nothing of the first one's."""
    agent = start_agent(config(service()), environment=forced("clsact"), start=False)
    qdiscs = lambda: world.near.run("tc", "qdisc", "show").stdout
    before = qdiscs()
    for step in steps():
        if step in ("maps-copied", "inherited", "restored"):
            continue
        agent.environment["MESH_AGENT_STOP_AT"] = step
        agent.launch().ended(-signal.SIGKILL)
        del agent.environment["MESH_AGENT_STOP_AT"]
        agent.start()
        agent.override("web", "open")
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED, step
        agent.stop()
        assert qdiscs() == before, step


def ids(agent):
    """Which service ID each endpoint has, from the pinned map."""
    dumped = json.loads(run("bpftool", "-j", "map", "dump", "pinned", agent.pins() + "/maps/endpoints").stdout)
    return {bytes(int(byte, 16) for byte in entry["key"]): entry["value"] for entry in dumped}


def test_services_keep_their_ids(start_agent, world):
    """Also when the configuration changes meanwhile: an ID is never another service's."""
    agent = start_agent(config(service("one", 9001), service("two", 9002), service("three", 9003)))
    agent.override("two", "open")
    before = ids(agent)
    agent.kill()
    agent.write(config(service("three", 9003), service("new", 9004), service("two", 9002)))
    agent.start()
    after = ids(agent)
    port = lambda key: int.from_bytes(key[16:18], "little")
    assert {port(key) for key in after} == {9002, 9003, 9004}
    assert all(after[key] == value for key, value in before.items() if key in after)
    assert not {str(value) for key, value in after.items() if port(key) == 9004} & {
        str(value) for value in before.values()
    }
    assert agent.breaker("two")["override"]["state"] == "open"
    world.listen("lo4", 9002)
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    for number in (9003, 9004):
        assert agent.breaker({9003: "three", 9004: "new"}[number])["state"] == "closed"


def test_what_goes_from_the_configuration_meanwhile_rejects_no_longer(start_agent, world):
    agent, _ = enforcing(start_agent, world)
    agent.kill()
    agent.write(config(service("second", 9002, consecutiveFailures=1, **LASTING), **LEASE))
    agent.start()
    assert connect_errno(world, "lo4", 9001) == 0
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    assert [row["service"] for row in agent.ask("/v1/breakers")["breakers"]] == ["second"]


def test_samples_wait_for_the_next_agent(start_agent, world):
    agent = start_agent(config(service()))
    client, server = world.pair("lo4", 9001)
    agent.expect(lambda: len(agent.connections("web")), 2)
    agent.kill()
    for _ in range(1000):
        exchange(client, server)
    exchange(*world.pair("lo4", 9777))
    agent.start()
    agent.expect_codes("web", {"200": 1000})
    agent.expect_codes("127.0.0.1:9777", {"200": 1}, {})
    # A connection goes on as the one that it was.
    exchange(client, server)
    agent.expect_codes("web", {"200": 1001})
    assert agent.lost() == 0
    assert all(not flow["adopted"] for flow in agent.connections("web"))


@TC
def test_a_dead_agent_stamps_and_rejects(start_agent, world, tc):
    agent, pairs = enforcing(start_agent, world, tc, pairs=1)
    listener = world.listen("veth4", 9003)
    agent.kill()
    with Capture(world.far, port=9003) as capture:
        world.pair("veth4", 9003, listener)
        assert capture.syns()[0].stamp
    for _ in range(10):
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
        assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    client, server = pairs[0]
    client.sendall(GET)
    assert until_closed(client) == errno.ECONNRESET
    assert until_closed(server) == errno.ECONNRESET
    agent.start()
    assert agent.attempts("web", "connect")["rejected"] == 11
    assert agent.attempts("second", "connect")["rejected"] == 11
    assert agent.attempts("web", "request")["rejected"] == 1
    assert agent.metrics().value("mesh_stamps_total", direction="sent", result="ok") >= 1
    assert agent.status()["pins"]["takeover"] is True


def test_past_the_lease_of_a_dead_agent_traffic_flows(start_agent, world):
    settings = config(service(consecutiveFailures=1, **LASTING), breakers={"lease": "1s"})
    agent = start_agent(settings)
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.wait_state("web", "open")
    world.listen("lo4", 9001)
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.kill()
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 5, 0.02, "the breaker fails open")
    agent.start()
    assert agent.breaker("web")["state"] == "open"
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED


def test_an_override_ends_at_its_deadline(start_agent, world):
    agent = start_agent(config(service(), service("second", 9002)))
    for port in (9001, 9002):
        world.listen("lo4", port)
    agent.override("web", "open", 2)
    agent.override("second", "open", HOUR)
    expires = agent.breaker("second")["override"]["expires_at"]
    agent.kill()
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 6, 0.01, "the kernel ends it")
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    agent.start()
    agent.expect(lambda: agent.breaker("web")["override"], None)
    assert connect_errno(world, "lo4", 9001) == 0
    assert agent.breaker("web")["history"][-1]["reason"] == "override_expired"
    kept = agent.breaker("second")["override"]
    assert (kept["state"], kept["expires_at"][:21]) == ("open", expires[:21])
    agent.automatic("second")
    assert connect_errno(world, "lo4", 9002) == 0


def test_a_deadline_that_passes_meanwhile(start_agent, world):
    policy = {"openFor": "1s", "maxOpenFor": "1s", "probe": {"ratio": 0.000001, "interval": "1h", "successes": 1}}
    agent = start_agent({**config(service(consecutiveFailures=1, **policy)), **LEASE})
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    listener = world.listen("lo4", 9001)
    agent.wait_state("web", "open")
    agent.kill()
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 6, 0.005, "the kernel admits a probe")
    agent.start()
    # The probe was a connect that went well, on a service of which no request is known.
    agent.wait_state("web", "closed", 10)
    listener.close()


def test_keep(start_agent, world):
    agent, pairs = enforcing(start_agent, world, pairs=1, arguments=["--keep"])
    agent.signal(signal.SIGTERM)
    agent.ended(0)
    assert not os.path.exists(agent.control)
    for _ in range(10):
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
        assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    client, server = pairs[0]
    client.sendall(GET)
    assert until_closed(client) == errno.ECONNRESET
    agent.arguments = []
    agent.start()
    assert agent.attempts("web", "connect")["rejected"] == 11
    agent.stop()
    assert connect_errno(world, "lo4", 9001) == 0


def test_a_start_that_fails_leaves_what_is_enforced(start_agent, world, host):
    agent, _ = enforcing(start_agent, world)
    agent.kill()
    taken = host.outside.socket(world.near)
    taken.setsockopt(1, 2, 1)
    taken.bind(("127.0.0.1", 9464))
    taken.listen()
    agent.spawn().ended(1)
    agent.write({"listen": 3})
    agent.spawn().ended(2)
    taken.close()
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED


def test_the_next_agent_waits_for_the_one_before(start_agent, world):
    first, _ = enforcing(start_agent, world, arguments=["--keep"])
    second = start_agent(json.loads(first.config_path.read_text()), start=False)
    second.launch()
    time.sleep(0.3)
    first.signal(signal.SIGTERM)
    first.ended(0)
    poll(lambda: '"ready"' in second.log_path.read_text().split('"stopped')[-1], 20, 0.02, "the second is ready")
    assert second.status()["pid"] == second.process.pid
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    second.stop()


@TC
def test_interfaces_that_change_meanwhile(start_agent, world, tc):
    """One goes and another comes with its number; one is not configured any more; one is new."""
    near = world.near
    for number in (50, 60):
        near.ip("link", "add", f"a{number}", "index", number, "type", "veth", "peer", "name", f"b{number}")
    settings = config(service())
    agent = start_agent(settings, environment=forced(tc))
    agent.kill()
    near.ip("link", "del", "a50")
    near.ip("link", "add", "c50", "index", 50, "type", "veth", "peer", "name", "d50")
    agent.write(config(service(), interfaces=["c50", "a60", "veth0"]))
    agent.start()
    assert {entry["name"] for entry in agent.status()["interfaces"]} == {"c50", "a60", "veth0"}
    links = [name for name in os.listdir(agent.pins() + "/links") if "connect" not in name]
    numbers = {int(name.rsplit("-", 1)[1]) for name in links if name.startswith(("mesh_tc", "clsact"))}
    assert numbers == {50, 60, json.loads(near.run("ip", "-j", "link", "show", "veth0").stdout)[0]["ifindex"]}
    if tc == "clsact":
        for device, count in (("c50", 2), ("a60", 2), ("b60", 0), ("lo", 0)):
            shown = programs.filters(near, device)
            assert sum(text.count("mesh_tc") for text in shown.values()) == count, (device, shown)
    agent.stop()


@pytest.mark.parametrize("tc", ["tcx"])
def test_from_clsact_to_it_and_back(start_agent, world, tc):
    agent, pairs = enforcing(start_agent, world, "clsact", pairs=3)
    for environment in (forced(tc), forced("clsact")):
        agent.kill()
        agent.environment.pop("MESH_AGENT_FORCE_CLSACT", None)
        agent.environment.update(environment)
        agent.start()
        client, server = pairs.pop()
        client.sendall(GET)
        assert until_closed(client) == until_closed(server) == errno.ECONNRESET
        shown = world.near.run("tc", "filter", "show", "dev", "veth0", "egress").stdout
        assert shown.count("mesh_tc") == (1 if environment else 0)
    agent.stop()


def test_another_cgroup(start_agent, world, host):
    agent, _ = enforcing(start_agent, world)
    other = host.scratch.child("elsewhere")
    agent.kill()
    agent.cgroup = other
    agent.write(json.loads(agent.config_path.read_text()) | {"cgroup": other.path})
    agent.start()
    # What is outside is not the agent's any more.
    assert connect_errno(world, "lo4", 9001) == 0
    inside = world.near.run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9001", cgroup=other, check=False)
    assert inside.returncode != 0 and "refused" in inside.stderr
    agent.stop()
    agent.cgroup = host.scratch
    assert agent.attachments() == agent.before
    other.remove()


def test_trace_bindings_of_processes_that_live_on(start_agent, world):
    agent = start_agent(config(service()))
    lives, dies = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for process in (lives, dies):
        agent.meshctl("trace", "bind", "--pid", process.pid, "--trace", trace)
    beat = agent.metrics().value("mesh_agent_lease_age_seconds")
    poll(lambda: agent.metrics().value("mesh_agent_lease_age_seconds") < beat, what="a heartbeat after them")
    agent.kill()
    dies.kill()
    dies.wait()
    agent.start()
    assert [(row["pid"], row["trace_id"]) for row in agent.ask("/v1/traces")["bindings"]] == [(lives.pid, trace)]
    lives.kill()
    lives.wait()
    agent.expect(lambda: agent.ask("/v1/traces")["bindings"], [])


WITHOUT_PINS = {
    "not-mounted": "umount -a -t bpf; exec setpriv --bounding-set -sys_admin -- ",
    "read-only": "mount -o remount,bind,ro /sys/fs/bpf && exec ",
}


@pytest.mark.parametrize("why", list(WITHOUT_PINS))
def test_without_pins(start_agent, world, why):
    """All works, and says that it ends with the agent; a killed agent leaves nothing."""
    # Not confined as the others: what it runs in is made here.
    agent = start_agent(config(service()), start=False, capabilities=None)
    agent.prefix = ["unshare", "-m", "sh", "-c", WITHOUT_PINS[why] + '"$@"', "sh"]
    agent.start()
    status = agent.status()
    assert status["pins"]["directory"] is None and "/sys/fs/bpf" in status["pins"]["error"], status["pins"]
    assert agent.metrics().value("mesh_agent_pinned") == 0
    assert any("cannot be pinned" in line["message"] for line in agent.logs())
    assert "not everything is pinned" in agent.meshctl("status", output="table").lower()
    world.listen("lo4", 9001)
    agent.override("web", "open")
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    assert agent.pins() is None
    agent.kill()
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, what="what was enforced ends with the agent")


@TC
@pytest.mark.limit(600)
def test_another_layout(start_agent, world, tc):
    """There and back, with a storm of connects: what is enforced is, what is counted is, IDs stay."""
    agent, _ = enforcing(start_agent, world, tc)
    exchange(*world.pair("lo4", 9777))
    agent.expect_codes("127.0.0.1:9777", {"200": 1}, {})
    number = lambda name: next(row["id"] for row in agent.ask("/v1/services")["services"] if row["name"] == name)
    names = ("web", "second", "127.0.0.1:9777")
    before = [number(name) for name in names]
    sleeper = subprocess.Popen(["sleep", "600"])
    agent.meshctl("trace", "bind", "--pid", sleeper.pid)
    bound = agent.ask("/v1/traces")["bindings"][0]["trace_id"]
    age = agent.metrics().value("mesh_agent_lease_age_seconds")
    poll(lambda: agent.metrics().value("mesh_agent_lease_age_seconds") < age, what="a heartbeat after that")
    stamps = agent.metrics().value("mesh_stamps_total", direction="sent", result="ok")
    agent.kill()
    client, server = world.pair("lo4", 9003)
    count = 0
    with Storm(world.near, (9001, 9002)) as storm:
        for layout in ("99", "100"):
            for _ in range(50):
                exchange(client, server)
            count += 50
            agent.environment["MESH_AGENT_LAYOUT"] = layout
            agent.start()
            # Samples that waited in the old ring buffer.
            agent.expect(lambda: agent.codes("127.0.0.1:9003"), {"200": count})
            assert [number(name) for name in names[:2]] == before[:2]
            assert agent.ask("/v1/traces")["bindings"][0]["trace_id"] == bound
            assert agent.metrics().value("mesh_stamps_total", direction="sent", result="ok") >= stamps
            changed = [line for line in agent.logs() if "another layout" in line["message"]]
            assert changed[-1]["to"] == int(layout) and changed[-1]["not_kept"] == "", changed
            # A connection from before is adopted anew.
            exchange(client, server)
            count += 1
            agent.expect(lambda: agent.codes("127.0.0.1:9003"), {"200": count})
            assert sorted(os.listdir(agent.pins())) == ["links", "maps"]
            agent.kill()
        del agent.environment["MESH_AGENT_LAYOUT"]
        agent.start()
    exchange(*world.pair("lo4", 9777))
    assert number("127.0.0.1:9777") == before[2]
    none_leaked(agent, storm)
    sleeper.kill()
    sleeper.wait()
    agent.stop()


@pytest.mark.limit(600)
def test_killed_at_every_step_of_another_layout(start_agent, world):
    agent, _ = enforcing(start_agent, world, "clsact")
    agent.kill()
    died = set()
    with Storm(world.near, (9001, 9002)) as storm:
        for layout, step in enumerate(steps(), 1000):
            if killed_at(agent, step, MESH_AGENT_LAYOUT=str(layout)):
                died.add(step)
                # The next start of the same version finishes what that one began.
                assert killed_at(agent, "ready", MESH_AGENT_LAYOUT=str(layout))
        agent.start()
    assert died == set(steps()) - {"link-made"}
    none_leaked(agent, storm)
    agent.stop()


def test_cleanup(start_agent, world):
    """It refuses while the agent runs, then removes all of it, and nothing of others."""
    agent, _ = enforcing(start_agent, world, "clsact")
    beside = start_agent(config(service()), name="beside", port=9465, environment=forced("clsact"))
    beside.before = agent.before
    assert f"pid {agent.process.pid}" in agent.meshctl("cleanup", code=1)
    agent.kill()
    others = programs.filters(world.near, "veth0")["egress"]
    assert others.count("mesh_tc_egress") == 2
    done = agent.meshctl("cleanup")["instances"]
    assert len(done) == 1 and len([item for item in done[0]["removed"] if item.startswith("map ")]) == 13
    assert agent.pins() is None and not os.path.exists(agent.control)
    assert programs.filters(world.near, "veth0")["egress"].count("mesh_tc_egress") == 1
    assert connect_errno(world, "lo4", 9001) == 0
    assert agent.meshctl("cleanup")["instances"][0]["removed"] == []
    assert "nothing" in agent.meshctl("cleanup", output="table")
    beside.override("web", "open")
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    beside.stop()
    agent.cleanup()
