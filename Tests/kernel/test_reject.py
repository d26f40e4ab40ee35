"""What an open breaker does to an application: ECONNREFUSED at connect(), RST at both ends of an
established connection, and nothing at all to whom it must not touch."""

import errno
import socket
import threading

import pytest

from meshtest.capture import RST, Capture
from meshtest.host import ROUTES
from meshtest.policies import config, service
from meshtest.traffic import (
    GET,
    Server,
    connect_errno,
    errno_of,
    exchange,
    http_server,
    receive,
    response,
    until_closed,
)

TC = pytest.mark.parametrize("tc", ["tcx", "clsact"])


@pytest.fixture
def agent(start_agent, request):
    wanted = getattr(request.node, "callspec", None) and request.node.callspec.params.get("tc")
    made = start_agent(config(service()), environment={"MESH_AGENT_FORCE_CLSACT": "1"} if wanted == "clsact" else {})
    if wanted:
        assert {entry["name"]: entry["mode"] for entry in made.status()["interfaces"]} == {
            "lo": wanted,
            "veth0": wanted,
        }
    return made


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_connect_is_refused(agent, world, route, blocking):
    listener = world.listen(route, 9001)
    assert connect_errno(world, route, 9001, blocking) == 0
    listener.accept()[0].close()
    agent.override("web", "open")
    for _ in range(3):
        assert connect_errno(world, route, 9001, blocking) == errno.ECONNREFUSED
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()
    agent.expect(lambda: agent.attempts("web", "connect"), {"admitted": 1, "rejected": 3})
    assert agent.failed("web") == {}
    agent.automatic("web")
    assert connect_errno(world, route, 9001, blocking) == 0


def test_a_refused_socket_can_connect_again(agent, world):
    listener = world.listen("lo4", 9001)
    agent.override("web", "open")
    client, address = world.client("lo4")
    assert client.connect_ex((address, 9001)) == errno.ECONNREFUSED
    agent.automatic("web")
    assert client.connect_ex((address, 9001)) == 0
    server = world.keep(listener.accept()[0])
    exchange(client, server)
    agent.expect_codes("web", {"200": 1})


@TC
@pytest.mark.parametrize("route", ROUTES)
def test_an_established_connection_is_reset_at_both_ends(agent, world, route, tc):
    client, server = world.pair(route, 9001)
    idle, idle_server = world.pair(route, 9001)
    exchange(client, server)
    agent.override("web", "open")
    client.sendall(GET)
    assert until_closed(client) == errno.ECONNRESET
    assert until_closed(server) == errno.ECONNRESET
    agent.expect(lambda: agent.attempts("web", "request"), {"admitted": 1, "rejected": 1})
    agent.expect_codes("web", {"200": 1})
    agent.expect(
        lambda: agent.metrics().by("mesh_connections_active", "role", service="web"), {"client": 1, "server": 1}
    )
    # Who asks for nothing is left alone.
    agent.automatic("web")
    exchange(idle, idle_server)


@TC
@pytest.mark.parametrize("route", ["lo4", "lo6", "veth4", "veth6"])
def test_a_large_request_is_reset(agent, world, route, tc):
    client, server = world.pair(route, 9001)
    agent.override("web", "open")
    sent = errno_of(client.sendall, b"POST / HTTP/1.1\r\nContent-Length: 400000\r\n\r\n" + b"x" * 400_000)
    assert sent in (0, errno.ECONNRESET, errno.EPIPE)
    if not sent:
        assert until_closed(client) == errno.ECONNRESET
    assert until_closed(server) == errno.ECONNRESET
    agent.expect(lambda: agent.attempts("web", "request"), {"rejected": 1})


@pytest.mark.parametrize("route", ["veth4", "veth6"])
def test_the_server_gets_no_byte_of_a_rejected_request(agent, world, route):
    # Without checksum offload every checksum is on the wire.
    world.near.run("ethtool", "-K", "veth0", "tx", "off")
    client, server = world.pair(route, 9001)
    with Capture(world.far, port=9001) as capture:
        agent.override("web", "open")
        client.sendall(GET)
        assert until_closed(client) == errno.ECONNRESET
        assert until_closed(server) == errno.ECONNRESET
        segment = capture.wait(lambda s: s.arriving and s.flags & RST)[0]
        assert segment.payload == b"" and segment.checksum_ok
        assert not any(s.payload for s in capture.segments)


def test_many_connections_are_reset(agent, world):
    listener = world.listen("lo4", 9001)
    pairs = [world.pair("lo4", 9001, listener) for _ in range(100)]
    agent.override("web", "open")
    for client, _ in pairs:
        client.sendall(GET)
    for client, server in pairs:
        assert until_closed(client) == errno.ECONNRESET
        assert until_closed(server) == errno.ECONNRESET
    agent.expect(lambda: agent.attempts("web", "request"), {"rejected": 100})
    agent.expect_codes("web", {})
    assert agent.status()["connections_active"] == 0


def test_a_request_under_way_when_it_opens_gets_its_response(agent, world):
    client, server = world.pair("lo4", 9001)
    client.sendall(GET)
    receive(server, len(GET))
    agent.override("web", "open")
    server.sendall(response(200))
    receive(client, len(response(200)))
    client.sendall(GET)
    assert until_closed(client) == errno.ECONNRESET
    agent.expect_codes("web", {"200": 1})


def test_drain_leaves_established_connections_alone(start_agent, world):
    agent = start_agent(config(service(established="drain")))
    client, server = world.pair("lo4", 9001)
    agent.override("web", "open")
    for _ in range(5):
        exchange(client, server)
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.expect_codes("web", {"200": 5})
    agent.expect(lambda: agent.attempts("web", "connect"), {"admitted": 1, "rejected": 1})
    assert "rejected" not in agent.attempts("web", "request")


@pytest.mark.parametrize("route, exempt", [("lo4", "127.0.0.0/8"), ("lo6", "::1/128"), ("veth4", "10.77.0.2/32")])
def test_exempt_destinations_are_never_rejected(start_agent, world, route, exempt):
    agent = start_agent(config(service(), exempt=[exempt]))
    agent.override("web", "open")
    client, server = world.pair(route, 9001)
    exchange(client, server)
    agent.expect_codes("web", {"200": 1})
    assert "rejected" not in agent.attempts("web", "connect")
    # The others are.
    other = "lo6" if route != "lo6" else "lo4"
    world.listen(other, 9001)
    assert connect_errno(world, other, 9001) == errno.ECONNREFUSED


def test_dns_is_never_rejected(start_agent, world):
    agent = start_agent(config(service("dns", port=53)))
    agent.override("dns", "open")
    client, server = world.pair("lo4", 53)
    exchange(client, server)
    agent.expect_codes("dns", {"200": 1})


def test_other_services_are_not_touched(start_agent, world):
    agent = start_agent(config(service("one", 9001), service("two", 9002)))
    pair = world.pair("lo4", 9002)
    agent.override("one", "open")
    exchange(*pair)
    exchange(*world.pair("lo4", 9002))
    exchange(*world.pair("lo4", 9003))
    agent.expect_codes("two", {"200": 2})
    assert agent.attempts("two", "connect") == {"admitted": 2}


def test_observe_rejects_nothing_under_an_override_either(start_agent, world):
    agent = start_agent(config(service(mode="observe")))
    agent.override("web", "open")
    client, server = world.pair("lo4", 9001)
    exchange(client, server)
    agent.expect(lambda: agent.attempts("web", "connect").get("would_reject"), 1)
    agent.expect_codes("web", {"200": 1})


def test_udp_and_mptcp_pass_an_open_breaker(agent, world):
    agent.override("web", "open")
    udp_server = world.keep(world.near.socket(kind=socket.SOCK_DGRAM))
    udp_server.bind(("127.0.0.1", 9001))
    udp = world.keep(world.near.socket(kind=socket.SOCK_DGRAM))
    udp.connect(("127.0.0.1", 9001))
    udp.send(b"x")
    assert udp_server.recv(10) == b"x"
    listener = world.listen_at(world.near, "127.0.0.1", 9001, protocol=262)
    mptcp = world.keep(world.near.socket(protocol=262))
    mptcp.connect(("127.0.0.1", 9001))
    exchange(mptcp, world.keep(listener.accept()[0]))
    assert agent.attempts("web", "connect") == {}


def test_each_rejection_is_counted_once_under_load(agent, world):
    """Threads connect and send all the time while the breaker opens and closes: what the callers saw
    and what was counted agree to the last attempt."""
    seen = {"connected": 0, "refused": 0, "answered": 0, "reset": 0}
    lock = threading.Lock()
    done = threading.Event()

    def call():
        mine = dict.fromkeys(seen, 0)
        while not done.is_set():
            client, address = world.client("lo4")
            if client.connect_ex((address, 9001)):
                mine["refused"] += 1
                client.close()
                continue
            mine["connected"] += 1
            for _ in range(3):
                client.sendall(GET)
                try:
                    receive(client, len(response(200)))
                except ConnectionResetError:
                    mine["reset"] += 1
                    break
                mine["answered"] += 1
            client.close()
        with lock:
            for key, value in mine.items():
                seen[key] += value

    with Server(world.listen("lo4", 9001), http_server()):
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(15):
            agent.override("web", "open")
            count = agent.attempts("web", "connect").get("rejected", 0)
            agent.expect(lambda: agent.attempts("web", "connect").get("rejected", 0) > count, True)
            agent.automatic("web")
            count = sum(agent.codes("web").values())
            agent.expect(lambda: sum(agent.codes("web").values()) > count, True)
        done.set()
        for thread in threads:
            thread.join()
    agent.expect(lambda: agent.attempts("web", "connect"), {"admitted": seen["connected"], "rejected": seen["refused"]})
    agent.expect(lambda: agent.attempts("web", "request"), {"admitted": seen["answered"], "rejected": seen["reset"]})
    agent.expect_codes("web", {"200": seen["answered"]})
    assert agent.lost() == 0
    assert min(seen.values()) > 0, seen
