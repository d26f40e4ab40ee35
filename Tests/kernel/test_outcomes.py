"""How connects and requests end when they do not end well: each once, with the right word, and with
the time that it took."""

import errno
import socket
import time

import pytest

from meshtest import foreign as programs
from meshtest.agent import Agents
from meshtest.capture import Capture

from meshtest.traffic import GET, connect_errno, exchange, receive, receive_response, reset, response, until_closed


@pytest.mark.parametrize("route", ["lo4", "lo6", "veth4", "veth6", "mapped"])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_refused_connect(shared, route, blocking):
    name, port = shared.service()
    for _ in range(3):
        assert connect_errno(shared.world, route, port, blocking) == errno.ECONNREFUSED
    shared.agent.expect(lambda: shared.agent.failed(name), {"refused": 3})
    assert shared.agent.metrics().value("mesh_connections_opened_total", service=name) == 0
    shared.agent.expect(lambda: shared.agent.metrics().value("mesh_connections_active", service=name), 0)


LOST = {
    "no-answer": ("10.77.0.66", "neigh replace 10.77.0.66 lladdr 02:00:00:00:00:66 dev veth0 nud permanent", "timeout"),
    "no-answer6": ("fd77::66", "neigh replace fd77::66 lladdr 02:00:00:00:00:66 dev veth0 nud permanent", "timeout"),
    "unreachable": ("10.78.0.1", "route add unreachable 10.78.0.0/24", "unreachable"),
    "unreachable6": ("fd78::1", "route add unreachable fd78::/64", "unreachable"),
    "no-route": ("10.79.0.1", None, "unreachable"),
    "rejected-far": ("10.80.0.1", "route add 10.80.0.0/24 via 10.77.0.2", "unreachable"),
}


@pytest.fixture(scope="module")
def lost_agent(shared, shared_world, tmp_path_factory):
    """A second agent beside the shared one, whose services lead nowhere."""
    world = shared_world
    agents = Agents(world, tmp_path_factory.mktemp("lost"))
    services = []
    for name, (address, command, _) in LOST.items():
        services.append({"name": name, "endpoints": [f"[{address}]:80" if ":" in address else f"{address}:80"]})
        if command:
            world.near.batch(command)
    world.near.sysctl("net.ipv4.tcp_syn_retries", 1)
    world.near.sysctl("net.ipv4.tcp_syn_linear_timeouts", 4)
    # What comes for 10.80.0.0/24 is sent back as unreachable by the far host.
    world.far.sysctl("net.ipv4.ip_forward", 1)
    world.far.batch("route add unreachable 10.80.0.0/24")
    yield agents({"services": services}, port=9465)
    agents.close()


@pytest.mark.parametrize("case", list(LOST))
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_connect_that_leads_nowhere(lost_agent, shared_world, case, blocking):
    address, _, reason = LOST[case]
    before = lost_agent.failed(case).get(reason, 0)
    client = shared_world.keep(shared_world.near.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
    client.settimeout(None if blocking else 20)
    begin = time.monotonic()
    error = client.connect_ex((address, 80))
    took = time.monotonic() - begin
    assert error in ((errno.ETIMEDOUT,) if reason == "timeout" else (errno.ENETUNREACH, errno.EHOSTUNREACH))
    client.close()
    if case == "rejected-far" and not blocking:
        # Only the caller was told, who then gave up; to the kernel the connect() was still under way.
        reason, before = "aborted", 0
    lost_agent.expect(lambda: lost_agent.failed(case).get(reason), before + 1)
    assert lost_agent.metrics().value("mesh_connections_opened_total", service=case) == 0
    if reason == "timeout":
        assert took >= 1


def test_a_connect_that_the_caller_gives_up(shared):
    name, port = shared.service()
    world = shared.world
    # A full accept queue drops SYNs, so this connect() hangs.
    listener = world.listen("lo4", port, backlog=0)
    filled = world.connect("lo4", port)
    client, address = world.client("lo4")
    client.setblocking(False)
    assert client.connect_ex((address, port)) == errno.EINPROGRESS
    client.close()
    shared.agent.expect(lambda: sum(shared.agent.failed(name).values()), 1)
    assert shared.agent.failed(name) == {"aborted": 1}
    filled.close()
    listener.close()


@pytest.fixture
def pending(shared):
    """A connection with a request that waits for its response: (name, client, server)."""
    name, port = shared.service()
    client, server = shared.world.pair("veth4", port)
    exchange(client, server)
    client.sendall(GET)
    receive(server, len(GET))
    yield name, client, server
    client.close()
    server.close()


def test_the_server_resets(shared, pending):
    name, client, server = pending
    reset(server)
    assert until_closed(client) == errno.ECONNRESET
    shared.agent.expect(lambda: shared.agent.codes(name), {"200": 1, "reset": 1})
    # To the server, whose own process ended it, it is aborted however it did.
    shared.agent.expect(lambda: shared.agent.codes(name, "server"), {"200": 1, "aborted": 1})


def test_the_server_closes(shared, pending):
    name, client, server = pending
    time.sleep(0.05)
    server.close()
    assert until_closed(client) == 0
    shared.agent.expect_codes(name, {"200": 1, "aborted": 1})
    assert shared.agent.metrics().value("mesh_request_duration_seconds_sum", service=name, code="aborted") >= 0.1


def test_the_client_closes(shared, pending):
    name, client, server = pending
    client.close()
    assert server.recv(1) == b""
    server.close()
    shared.agent.expect_codes(name, {"200": 1, "aborted": 1})


def test_the_client_resets(shared, pending):
    name, client, server = pending
    reset(client)
    assert until_closed(server) == errno.ECONNRESET
    shared.agent.expect(lambda: shared.agent.codes(name), {"200": 1, "aborted": 1})
    shared.agent.expect(lambda: shared.agent.codes(name, "server"), {"200": 1, "reset": 1})


def test_the_server_closes_with_bytes_unread(shared):
    name, port = shared.service()
    client, server = shared.world.pair("lo4", port)
    client.sendall(GET)
    receive(server, 4)
    server.close()
    assert until_closed(client) == errno.ECONNRESET
    shared.agent.expect(lambda: shared.agent.codes(name), {"reset": 1})


def test_an_end_without_a_request_is_none(shared):
    name, port = shared.service()
    for end in (lambda client, server: client.close(), lambda client, server: reset(server)):
        client, server = shared.world.pair("lo4", port)
        end(client, server)
        for sock in (client, server):
            if sock.fileno() >= 0:
                until_closed(sock)
                sock.close()
    shared.agent.expect(lambda: shared.agent.metrics().value("mesh_connections_active", service=name), 0)
    shared.agent.expect_codes(name, {})


TLS_HELLO = b"\x16\x03\x01\x00\x05hello"
TLS_DATA = b"\x17\x03\x03\x00\x14" + b"d" * 20

GOODBYES = {
    "close_notify": (TLS_HELLO, TLS_DATA, b"\x17\x03\x03\x00\x13" + b"a" * 19),
    "Terminate": (None, b"Q\0\0\0\x0eselect 1;\0", b"X\0\0\0\x04"),
    "COM_QUIT": (None, b"\x09\0\0\0\x03select 1", b"\x01\0\0\0\x01"),
    "quit": (None, b"get key\r\n", b"quit\r\n"),
}


@pytest.mark.parametrize("first", ["server", "client"])
@pytest.mark.parametrize("goodbye", list(GOODBYES))
def test_a_goodbye_is_no_request_whoever_closes_first(shared, goodbye, first):
    hello, request, last = GOODBYES[goodbye]
    name, port = shared.service()
    client, server = shared.world.pair("lo4", port)
    for message in (hello, request) if hello else (request,):
        client.sendall(message)
        receive(server, len(message))
        server.sendall(message)
        receive(client, len(message))
    client.sendall(last)
    receive(server, len(last))
    one, other = (server, client) if first == "server" else (client, server)
    time.sleep(0.02)  # longer than a goodbye of no known form may wait for its close
    one.close()
    assert until_closed(other) == 0
    other.close()
    shared.agent.expect(lambda: shared.agent.metrics().value("mesh_connections_active", service=name), 0)
    shared.agent.expect_codes(name, {"ok": 1})


def test_a_last_message_that_is_cut_off_is_aborted(shared):
    name, port = shared.service()
    client, server = shared.world.pair("lo4", port)
    for message in (b"get key\r\n", b"quiet\n"):
        client.sendall(message)
        receive(server, len(message))
        if message == b"get key\r\n":
            server.sendall(b"END\r\n")
            receive(client, 5)
    server.close()
    assert until_closed(client) == 0
    client.close()
    shared.agent.expect_codes(name, {"ok": 1, "aborted": 1})


def test_a_response_that_is_cut_off_has_its_code(shared):
    name, port = shared.service()
    client, server = shared.world.pair("lo4", port)
    client.sendall(GET)
    receive(server, len(GET))
    server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
    reset(server)
    until_closed(client)
    shared.agent.expect_codes(name, {"200": 1})


@pytest.mark.parametrize("direction", ["request", "response"])
@pytest.mark.parametrize("route", ["veth4", "veth6"])
def test_a_lost_segment_is_sent_again_and_counted_once(shared, foreign, direction, route):
    name, port = shared.service()
    world = shared.world
    client, server = world.pair(route, port)
    exchange(client, server)
    with Capture(world.far, port=port) as capture:
        if direction == "response":
            client.sendall(GET)
            receive(server, len(GET))
        foreign.filter(world.near if direction == "response" else world.far, "veth0", "ingress", "fault_data")
        server.sendall(response(200)) if direction == "response" else client.sendall(GET)
        lost = capture.wait(lambda s: s.payload and s.arriving == (direction != "response"))[0]
        capture.wait(lambda s: s.payload and s.sequence == lost.sequence and s.arriving == lost.arriving, 2)
        assert foreign.seen(programs.DATA) > 0
        foreign.unfilter()
        if direction != "response":
            receive(server, len(GET))
            server.sendall(response(200))
        receive_response(client)
    exchange(client, server)
    shared.agent.expect_codes(name, {"200": 3})
    retransmitted = shared.agent.metrics().value("mesh_tcp_retransmitted_segments_total", service=name)
    assert retransmitted > 0


@pytest.mark.parametrize("route", ["veth4", "veth6"])
def test_a_duplicate_request_starts_nothing(shared, foreign, route):
    """Nothing of the server's arrives, its ACK included, so the request comes again after its response."""
    name, port = shared.service()
    world = shared.world
    client, server = world.pair(route, port)
    exchange(client, server)
    with Capture(world.far, port=port) as capture:
        foreign.filter(world.near, "veth0", "ingress", "fault_all")
        client.sendall(GET)
        receive(server, len(GET))
        server.sendall(response(404))
        capture.wait(lambda s: s.payload and s.arriving, 2)
        assert foreign.seen(programs.ALL) > 0
        foreign.unfilter()
        assert receive_response(client) == (404, b"")
    exchange(client, server)
    shared.agent.expect_codes(name, {"200": 2, "404": 1})


@pytest.mark.parametrize("route", ["veth4", "veth6"])
def test_a_duplicate_response_finishes_nothing(shared, foreign, route):
    """Nothing of the client's arrives, so the first response comes again while the second request waits."""
    name, port = shared.service()
    world = shared.world
    client, server = world.pair(route, port)
    client.sendall(GET)
    receive(server, len(GET))
    with Capture(world.far, port=port) as capture:
        foreign.filter(world.far, "veth0", "ingress", "fault_all")
        server.sendall(response(200))
        assert receive_response(client) == (200, b"")
        client.sendall(GET)
        capture.wait(lambda s: s.payload and not s.arriving, 2)
        foreign.unfilter()
        receive(server, len(GET))
        server.sendall(response(404))
        assert receive_response(client) == (404, b"")
    shared.agent.expect_codes(name, {"200": 1, "404": 1})


def test_fast_open_carries_a_request(shared):
    name, port = shared.service()
    world = shared.world
    for netns in (world.near, world.far):
        netns.sysctl("net.ipv4.tcp_fastopen", 3)
    listener = world.listen("veth4", port)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    for _ in range(3):  # the first brings the cookie
        client, address = world.client("veth4")
        client.settimeout(None)
        client.sendto(GET, socket.MSG_FASTOPEN, (address, port))
        server = world.keep(listener.accept()[0])
        receive(server, len(GET))
        server.sendall(response(200))
        assert receive_response(client) == (200, b"")
        client.close()
        server.close()
    shared.agent.expect_codes(name, {"200": 3})


def test_deferred_accept_carries_a_request(shared):
    name, port = shared.service()
    world = shared.world
    listener = world.listen("lo4", port)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    client = world.connect("lo4", port)
    client.sendall(GET)
    server = world.keep(listener.accept()[0])
    receive(server, len(GET))
    server.sendall(response(200))
    assert receive_response(client) == (200, b"")
    exchange(client, server)
    shared.agent.expect_codes(name, {"200": 2})
