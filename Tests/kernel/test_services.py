"""Whose service is it? Exact endpoints, the longest prefix, discovery up to its cap, and workloads
by cgroup, also when their names are hostile."""

import re
import time

import pytest

from meshtest.agent import binary
from meshtest.host import Cgroup, run
from meshtest.policies import config, service
from meshtest.traffic import Server, exchange, http_server


def test_exact_beats_prefix_and_the_longest_prefix_wins(start_agent, world):
    names = {
        "all": ["0.0.0.0/0:9001", "[::/0]:9001"],
        "eight": ["127.0.0.0/8:9001"],
        "sixteen": ["127.5.0.0/16:9001"],
        "thirty": ["127.5.5.4/30:9001"],
        "exact": ["127.5.5.5:9001"],
        "six": ["[fd77::/64]:9001"],
        "six-exact": ["[fd77::2]:9001"],
        "other-port": ["127.5.5.5:9002", "127.0.0.0/8:9003"],
    }
    agent = start_agent({"services": [{"name": n, "endpoints": e} for n, e in names.items()]})
    listeners = [world.listen_at(world.near, "0.0.0.0", port) for port in (9001, 9002, 9003)]
    six = world.listen_at(world.far, "fd77::2", 9001)
    six_prefix = world.listen_at(world.near, "fd77::1", 9001)
    all4 = world.listen_at(world.far, "10.77.0.2", 9001)

    def call(address, port, listener, netns=world.near):
        client = world.keep(netns.socket(10 if ":" in address else 2))
        client.connect((address, port))
        server = world.keep(listener.accept()[0])
        exchange(client, server)

    call("127.1.2.3", 9001, listeners[0])
    call("127.5.9.9", 9001, listeners[0])
    call("127.5.5.6", 9001, listeners[0])
    call("127.5.5.5", 9001, listeners[0])
    call("127.5.5.5", 9002, listeners[1])
    call("127.9.9.9", 9003, listeners[2])
    call("fd77::2", 9001, six)
    call("fd77::1", 9001, six_prefix)
    call("10.77.0.2", 9001, all4)
    wanted = {"all": 1, "eight": 1, "sixteen": 1, "thirty": 1, "exact": 1, "six": 1, "six-exact": 1, "other-port": 2}
    for role in ("client", "server"):
        agent.expect(lambda: agent.metrics().by("mesh_request_duration_seconds_count", "service", role=role), wanted)


def test_unknown_destinations_are_discovered_to_the_cap_and_then_other(start_agent, world):
    agent = start_agent({"limits": {"maxDiscoveredServices": 3}})
    listeners = [world.listen_at(world.far, "10.77.0.2", 9100 + n, outside=True) for n in range(6)]
    for _ in range(2):
        for n, listener in enumerate(listeners):
            client = world.connect("veth4", 9100 + n)
            server = world.keep(listener.accept()[0])
            exchange(client, server)
    wanted = {"10.77.0.2:9100": 2, "10.77.0.2:9101": 2, "10.77.0.2:9102": 2, "other": 6}
    agent.expect(lambda: agent.metrics().by("mesh_request_duration_seconds_count", "service", role="client"), wanted)
    status = agent.status()["services"]
    assert (status["discovered"], status["discovery_limit"]) == (3, 3)
    kinds = {(row["name"], row["kind"]) for row in agent.ask("/v1/services")["services"]}
    assert ("10.77.0.2:9100", "discovered") in kinds


@pytest.mark.parametrize(
    "route, client_name",
    [("lo4", "127.0.0.1:9070"), ("lo6", "[::1]:9070"), ("mapped", "127.0.0.1:9070"), ("veth6", "[fd77::2]:9070")],
)
def test_names_of_discovered_services(start_agent, world, route, client_name):
    agent = start_agent({})
    client, server = world.pair(route, 9070)
    exchange(client, server)
    agent.expect_codes(client_name, {"200": 1}, {})
    agent.expect_codes("*:9070", {}, {"200": 1})


def test_a_discovered_service_is_known_at_once(start_agent, world):
    """Its name comes through the ring buffer, which whoever asks for it does not wait for."""
    agent = start_agent({})
    for port in range(9070, 9080):
        world.pair("lo4", port)
        assert [flow["role"] for flow in agent.connections(f"127.0.0.1:{port}")] == ["client"]


def test_discovered_services_refuse_overrides(start_agent, world):
    agent = start_agent({})
    exchange(*world.pair("lo4", 9070))
    agent.expect_codes("127.0.0.1:9070", {"200": 1}, {})
    said = agent.meshctl("breaker", "open", "127.0.0.1:9070", "--reason", "x", code=1)
    assert "only observed" in said


@pytest.mark.limit(180)
def test_ten_thousand_services_with_a_hundred_thousand_endpoints(start_agent, world):
    def services(prefix):
        return [
            {
                "name": f"{prefix}-{n}",
                "endpoints": [f"127.{1 + n // 250}.{n % 250}.{e}:9001" for e in range(1, 11)],
                "breaker": {"mode": "enforce", "consecutiveFailures": 5},
            }
            for n in range(10_000)
        ]

    agent = start_agent({"services": services("old"), "breakers": {"lease": "30s"}})
    assert agent.status()["services"]["configured"] == 10_000
    listener = world.listen_at(world.near, "0.0.0.0", 9001)

    def call(address):
        client = world.keep(world.near.socket())
        client.connect((address, 9001))
        server = world.keep(listener.accept()[0])
        exchange(client, server)

    call("127.1.0.1")
    call("127.40.249.10")
    call("127.20.7.5")
    wanted = {"old-0": 1, "old-9999": 1, f"old-{19 * 250 + 7}": 1}
    agent.expect(lambda: agent.metrics().by("mesh_request_duration_seconds_count", "service", role="client"), wanted)
    agent.override("old-9999", "open")
    client = world.keep(world.near.socket())
    assert client.connect_ex(("127.40.249.10", 9001)) != 0
    begin = time.monotonic()
    assert agent.reload(agent.settings({"services": services("new"), "breakers": {"lease": "30s"}}))["error"] is None
    print("reload took", time.monotonic() - begin)
    call("127.40.249.10")
    call("127.40.249.9")
    agent.expect(lambda: agent.codes("new-9999"), {"200": 2})
    assert agent.status()["services"]["configured"] == 10_000
    assert len(agent.ask("/v1/breakers")["breakers"]) == 10_000


def test_workloads_are_cgroups(start_agent, world, host):
    agent = start_agent(config(service()))
    script = (
        "import socket; s = socket.create_connection(('127.0.0.1', 9001));"
        "[(s.send(b'GET / HTTP/1.1\\r\\n\\r\\n'), s.recv(100)) for _ in range(int(__import__('sys').argv[1]))]"
    )
    with Server(world.listen("lo4", 9001), http_server()):
        for name, count in (("alpha.service", 3), ("beta.service", 5)):
            cgroup = host.scratch.child(name)
            world.near.run("/usr/bin/python3", "-c", script, count, cgroup=cgroup)
    found = agent.metrics().by("mesh_request_duration_seconds_count", "workload", service="web", role="client")
    named = {label: count for label, count in found.items()}
    assert sorted(named.values()) == [3, 5]
    assert any("alpha" in label and count == 3 for label, count in named.items()), named
    assert any("beta" in label and count == 5 for label, count in named.items()), named
    servers = agent.metrics().by("mesh_request_duration_seconds_count", "workload", service="web", role="server")
    assert list(servers.values()) == [8] and "tests" in list(servers)[0]
    for name in ("alpha.service", "beta.service"):
        Cgroup(host.scratch.path + "/" + name).remove()


HOSTILE = 'evil"} 1 {x=\\n,\ttab λ'


def test_hostile_names_inject_nothing(start_agent, world, host):
    name = 'web"} 1\\n{a="'
    cgroup = host.scratch.child(HOSTILE)
    try:
        agent = start_agent({"services": [{"name": "plain", "endpoints": ["127.0.0.1:9001"]}]})
        script = "import socket; s = socket.create_connection(('127.0.0.1', 9001)); s.send(b'x'); s.recv(1)"
        with Server(world.listen("lo4", 9001), lambda c: c.sendall(c.recv(1))):
            world.near.run("/usr/bin/python3", "-c", script, cgroup=cgroup)
        found = agent.metrics().by("mesh_connections_opened_total", "workload", service="plain", role="client")
        assert list(found.values()) == [1]
        assert list(found)[0].endswith("/" + HOSTILE.replace("\t", "\ufffd"))
        page = agent.page()[1]
        assert run("promtool", "check", "metrics", input=page, check=False).returncode == 0
        rows = agent.meshctl("services", output="table")
        assert "plain" in rows and "\t" not in rows
        agent.stop()
        # As the name of a service: taken and escaped, or refused with its place.
        refused = start_agent(
            {"services": [{"name": name, "endpoints": ["127.0.0.1:9001"]}]}, start=False, name="named"
        )
        done = run(binary("mesh-agent", "MESH_AGENT"), "check", "--config", refused.config_path, check=False)
        if done.returncode == 0:
            refused.start()
            exchange(*world.pair("lo4", 9001))
            refused.expect_codes(name, {"200": 1})
        else:
            assert done.returncode == 2
            assert re.match(rf"{re.escape(str(refused.config_path))}:\d+: services\[0\]\.name: ", done.stderr)
    finally:
        cgroup.remove()


@pytest.mark.parametrize(
    "status_line",
    [
        b'HTTP/1.1 2"0 OK',
        b"HTTP/1.1 200\n# HELP evil x",
        b"HTTP/1.1 -12 no",
        b"HTTP/1.1 1e9 no",
        b"HTTP/1.1 \xff\xfe\xfd no",
        b"HTTP/1.9 777 no",
    ],
)
def test_hostile_responses_inject_nothing(start_agent, world, status_line):
    agent = start_agent(config(service()))
    client, server = world.pair("lo4", 9001)
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    server.recv(100)
    server.sendall(status_line + b"\r\n\r\n")
    client.recv(100)
    client.close()
    server.close()
    agent.expect(lambda: sum(agent.codes("web").values()), 1)
    assert re.fullmatch(r"\d{3}|ok", list(agent.codes("web"))[0])


def test_series_are_bounded(start_agent, world):
    agent = start_agent({"limits": {"maxSeries": 100}})
    for n in range(150):
        listener = world.listen_at(world.far, "10.77.0.2", 9100 + n, outside=True)
        client = world.connect("veth4", 9100 + n)
        exchange(client, world.keep(listener.accept()[0]))
    count = lambda **labels: agent.metrics().value("mesh_request_duration_seconds_count", role="client", **labels)
    agent.expect(count, 150)
    assert count(workload="other") == 50
    assert agent.metrics().value("mesh_agent_series_dropped_total") >= 50
    series = agent.status()["series"]
    assert series["limit"] == 100 and series["dropped"] >= 50
