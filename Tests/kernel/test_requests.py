"""Requests in every shape that a connection gives them: each is counted once, on both sides, with its
code, however its bytes are cut into segments."""

import socket
import threading
import time

import pytest

from meshtest.host import ROUTES
from meshtest.traffic import (
    GET,
    Server,
    exchange,
    http_server,
    receive,
    receive_response,
    receive_until,
    reset,
    response,
    until_closed,
)

BODY = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 300000\r\n\r\n"


@pytest.fixture
def pair(shared):
    """A connection to a fresh service: (name, client, server)."""
    name, port = shared.service()
    client, server = shared.world.pair("lo4", port)
    yield name, client, server
    client.close()
    server.close()


@pytest.mark.parametrize("route", ROUTES)
def test_each_request_is_counted_on_both_sides(shared, route):
    name, port = shared.service()
    client, server = shared.world.pair(route, port)
    for _ in range(7):
        exchange(client, server)
    shared.agent.expect_codes(name, {"200": 7})
    metrics = shared.agent.metrics()
    assert metrics.by("mesh_request_duration_seconds_count", "protocol", service=name) == {"http": 14}


def test_a_connection_for_each_request(shared):
    name, port = shared.service()
    listener = shared.world.listen("lo4", port)
    for _ in range(20):
        client, server = shared.world.pair("lo4", port, listener)
        exchange(client, server, request=b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        server.close()
        assert until_closed(client) == 0
        client.close()
    shared.agent.expect_codes(name, {"200": 20})
    opened = lambda role: shared.agent.metrics().value("mesh_connections_opened_total", service=name, role=role)
    active = lambda: shared.agent.metrics().value("mesh_connections_active", service=name)
    shared.agent.expect(lambda: (opened("client"), opened("server")), (20, 20))
    shared.agent.expect(active, 0)


@pytest.mark.parametrize("status", [200, 204, 301, 404, 429, 500, 503, 599])
def test_codes(shared, pair, status):
    name, client, server = pair
    exchange(client, server, status)
    exchange(client, server, status)
    shared.agent.expect_codes(name, {str(status): 2})


def test_http_1_0(shared, pair):
    name, client, server = pair
    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
    receive(server, 18)
    server.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")
    server.close()
    assert until_closed(client) == 0
    shared.agent.expect_codes(name, {"404": 1})


@pytest.mark.parametrize(
    "answer",
    [b"+PONG\r\n", b"HTTP", b"HTTP/1.1 abc\r\n", b"HTTP/1.1 2000\n", b"HTTX/1.1 200 OK\r\n\r\n", b"\0\0\0\xff" * 30],
)
def test_what_is_no_http_response_is_ok(shared, pair, answer):
    name, client, server = pair
    client.sendall(b"*1\r\n$4\r\nPING\r\n")
    receive(server, 14)
    server.sendall(answer)
    receive(client, len(answer))
    server.close()
    client.close()
    codes = {"200": 1} if answer.startswith(b"HTTP/1.1 2000") else {"ok": 1}
    shared.agent.expect_codes(name, codes)


def test_the_body_of_a_response_begins_nothing(shared, pair):
    name, client, server = pair
    for _ in range(3):
        client.sendall(GET)
        receive(server, len(GET))
        server.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        receive_until(client)
        for piece in (b"5\r\nHTTP/\r\n", b"c\r\nHTTP/1.1 500\r\n", b"0\r\n\r\n"):
            server.sendall(piece)
            receive(client, len(piece))
    shared.agent.expect_codes(name, {"200": 3})


def test_a_chunked_request_in_many_segments(shared, pair):
    name, client, server = pair
    pieces = [b"POST / HTTP/1.1\r\nHost: te", b"st\r\nTransfer-Encoding: chunked\r\n\r\n"]
    pieces += [b"4\r\nGET \r\n"] * 20 + [b"0\r\n\r\n"]
    for _ in range(2):
        for piece in pieces:
            client.sendall(piece)
            receive(server, len(piece))
        server.sendall(response(201))
        receive_response(client)
    shared.agent.expect_codes(name, {"201": 2})


def test_large_requests_and_responses(shared, pair):
    name, client, server = pair
    body = b"x" * 300_000

    def serve():
        for _ in range(3):
            receive(server, len(BODY) + len(body))
            server.sendall(response(200, body))

    thread = threading.Thread(target=serve)
    thread.start()
    for _ in range(3):
        client.sendall(BODY + body)
        assert receive_response(client) == (200, body)
    thread.join()
    shared.agent.expect_codes(name, {"200": 3})


@pytest.mark.parametrize("at_once", [True, False], ids=["one-segment", "a-segment-each"])
def test_a_pipelined_burst_is_one_request(shared, pair, at_once):
    name, client, server = pair
    for _ in range(2):
        for piece in [GET * 5] if at_once else [GET] * 5:
            client.sendall(piece)
            time.sleep(0.005)
        receive(server, len(GET) * 5)
        answer = response(200) * 5
        server.sendall(answer)
        receive(client, len(answer))
    shared.agent.expect_codes(name, {"200": 2})
    # From the first byte of the burst's first request.
    assert shared.agent.duration(name) >= 2 * (0.005 if at_once else 0.025)


@pytest.mark.parametrize("interim", [100, 102, 103])
@pytest.mark.parametrize("together", [True, False], ids=["one-segment", "two-segments"])
def test_interim_responses_are_not_final(shared, pair, interim, together):
    name, client, server = pair
    request = b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    first = f"HTTP/1.1 {interim} Wait\r\nX-Pad: {'y' * 70}\r\n\r\n".encode()
    for _ in range(2):
        client.sendall(request)
        receive(server, len(request))
        if together:
            client.sendall(b"body")
            receive(server, 4)
            server.sendall(first + response(200))
            receive(client, len(first))
        else:
            server.sendall(first)
            receive(client, len(first))
            client.sendall(b"body")
            receive(server, 4)
            server.sendall(response(200))
        assert receive_response(client) == (200, b"")
    shared.agent.expect_codes(name, {"200": 2})


def test_after_100_continue_the_latency_is_of_the_final_response(shared, pair):
    name, client, server = pair
    client.sendall(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    receive_until(server)
    server.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    receive_until(client)
    client.sendall(b"x")
    receive(server, 1)
    time.sleep(0.05)
    server.sendall(response(200))
    receive_response(client)
    shared.agent.expect_codes(name, {"200": 1})
    assert shared.agent.duration(name) >= 0.05


def test_switching_protocols_is_a_code_and_then_requests_go_on(shared, pair):
    name, client, server = pair
    exchange(client, server, 101)
    for _ in range(2):
        client.sendall(b"\x81\x85ping!")
        receive(server, 7)
        server.sendall(b"\x81\x05pong!")
        receive(client, 7)
    shared.agent.expect_codes(name, {"101": 1, "ok": 2})


def test_half_close_waits_for_the_response(shared, pair):
    name, client, server = pair
    client.sendall(GET)
    client.shutdown(socket.SHUT_WR)
    receive(server, len(GET))
    assert server.recv(1) == b""
    server.sendall(response(200))
    assert receive_response(client) == (200, b"")
    server.close()
    assert until_closed(client) == 0
    shared.agent.expect_codes(name, {"200": 1})


def test_a_server_that_speaks_first(shared, pair):
    name, client, server = pair
    server.sendall(b"220 mail.test ESMTP\r\n")
    receive(client, 21)
    for _ in range(3):
        client.sendall(b"NOOP\r\n")
        receive(server, 6)
        server.sendall(b"250 OK\r\n")
        receive(client, 8)
    shared.agent.expect_codes(name, {"ok": 3})


def test_a_server_that_only_speaks(shared, pair):
    name, client, server = pair
    server.sendall(b"hello\r\n")
    receive(client, 7)
    server.close()
    assert until_closed(client) == 0
    client.close()
    active = lambda: shared.agent.metrics().value("mesh_connections_active", service=name)
    shared.agent.expect(active, 0)
    shared.agent.expect_codes(name, {})


@pytest.mark.parametrize("goes_on", [True, False], ids=["keep-alive", "closed"])
def test_a_response_before_the_whole_request(shared, pair, goes_on):
    name, client, server = pair
    client.sendall(BODY + b"z" * 1000)
    receive(server, len(BODY) + 1000)
    server.sendall(response(413))
    assert receive_response(client) == (413, b"")
    for _ in range(299):
        client.sendall(b"z" * 1000)
        receive(server, 1000)
    if goes_on:
        exchange(client, server, 200)
    server.close()
    assert until_closed(client) == 0
    shared.agent.expect_codes(name, {"413": 1, "200": 1} if goes_on else {"413": 1})


def test_a_dribbled_status_line(shared, pair):
    name, client, server = pair
    for _ in range(2):
        client.sendall(GET)
        receive(server, len(GET))
        for piece in (b"H", b"TTP/1", b".", b"1 5", b"0", b"3 Slow\r\n", b"Content-Length: 0\r\n\r\n"):
            server.sendall(piece)
            receive(client, len(piece))
    shared.agent.expect_codes(name, {"503": 2})


def test_a_dribbled_request(shared, pair):
    name, client, server = pair
    for _ in range(2):
        for byte in GET:
            client.sendall(bytes([byte]))
            receive(server, 1)
        server.sendall(response(200))
        receive_response(client)
    shared.agent.expect_codes(name, {"200": 2})


def test_bytes_are_those_of_the_payload(shared, pair):
    name, client, server = pair
    client.sendall(GET)
    receive(server, len(GET))
    answer = response(200, b"b" * 100_000)
    threading.Thread(target=server.sendall, args=(answer,)).start()
    receive(client, len(answer))
    client.close()
    assert until_closed(server) == 0
    server.close()

    def read():
        metrics = shared.agent.metrics()
        value = lambda kind, role: metrics.value(f"mesh_{kind}_bytes_total", service=name, role=role)
        return [
            value("sent", "client"),
            value("received", "client"),
            value("sent", "server"),
            value("received", "server"),
        ]

    shared.agent.expect(read, [len(GET), len(answer), len(answer), len(GET)])


def test_open_connections_are_a_gauge(shared):
    name, port = shared.service()
    pairs = [shared.world.pair("lo4", port) for _ in range(3)]
    active = lambda: shared.agent.metrics().by("mesh_connections_active", "role", service=name)
    shared.agent.expect(active, {"client": 3, "server": 3})
    for client, server in pairs[:2]:
        client.close()
        server.close()
    shared.agent.expect(active, {"client": 1, "server": 1})
    reset(pairs[2][0])
    assert until_closed(pairs[2][1]) != 0
    pairs[2][1].close()
    shared.agent.expect(active, {})


def test_many_connections_at_once(shared):
    name, port = shared.service()
    listener = shared.world.listen("lo4", port)
    with Server(listener, http_server()):
        clients = [shared.world.connect("lo4", port) for _ in range(100)]
        for _ in range(10):
            for client in clients:
                client.sendall(GET)
            for client in clients:
                assert receive_response(client) == (200, b"")
    shared.agent.expect_codes(name, {"200": 1000})
    connects = shared.agent.metrics().value("mesh_connect_duration_seconds_count", service=name)
    assert connects == 100


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x03\x02\x00" + b"h" * 512])
def test_a_tls_handshake_is_no_request(shared, pair, first):
    name, client, server = pair
    client.sendall(first)
    receive(server, len(first))
    server.sendall(b"\x16\x03\x03\x00\x02hi")
    receive(client, 7)
    for _ in range(3):
        client.sendall(b"\x17\x03\x03\x00\x04data")
        receive(server, 9)
        server.sendall(b"\x17\x03\x03\x00\x04data")
        receive(client, 9)
    shared.agent.expect_codes(name, {"ok": 3})
    assert shared.agent.codes(name, protocol="tls") == {"ok": 3}


def test_udp_unix_and_mptcp_sockets_are_untouched(shared, tmp_path):
    name, port = shared.service()
    world = shared.world
    udp_server = world.keep(world.near.socket(kind=socket.SOCK_DGRAM))
    udp_server.bind(("127.0.0.1", port))
    udp = world.keep(world.near.socket(kind=socket.SOCK_DGRAM))
    udp.connect(("127.0.0.1", port))
    udp.send(GET)
    data, address = udp_server.recvfrom(1000)
    udp_server.sendto(data, address)
    assert udp.recv(1000) == GET

    mptcp_listener = world.listen_at(world.near, "127.0.0.1", port, protocol=262)
    mptcp = world.keep(world.near.socket(protocol=262))
    mptcp.connect(("127.0.0.1", port))
    accepted = world.keep(mptcp_listener.accept()[0])
    exchange(mptcp, accepted)
    exchange(mptcp, accepted)

    path = str(tmp_path / "unix.sock")
    listener = world.keep(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen()
    client = world.keep(socket.socket(socket.AF_UNIX))
    client.connect(path)
    server = world.keep(listener.accept()[0])
    exchange(client, server)

    shared.agent.expect_codes(name, {})
    assert shared.agent.metrics().value("mesh_connections_opened_total", service=name) == 0


def test_an_interim_header_may_end_in_the_next_segment(shared, pair):
    name, client, server = pair
    first = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n"
    rest = b"\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    client.sendall(GET)
    receive(server, len(GET))
    server.sendall(first)
    receive(client, len(first))
    server.sendall(rest)
    receive(client, len(rest))
    exchange(client, server)
    shared.agent.expect_codes(name, {"404": 1, "200": 1})


def test_a_response_held_back_until_close_is_one(shared, pair):
    """With TCP_CORK it leaves only with the FIN, after the socket has turned to FIN_WAIT1."""
    name, client, server = pair
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    client.sendall(GET)
    receive(server, len(GET))
    server.sendall(response())
    server.close()
    receive(client, len(response()))
    shared.agent.expect_codes(name, {"200": 1})


def test_bytes_of_an_upload_are_counted_while_it_runs(shared, pair):
    name, client, server = pair
    head = b"PUT / HTTP/1.1\r\nContent-Length: 8388608\r\n\r\n"
    client.sendall(head)
    receive(server, len(head))
    for _ in range(32):
        client.sendall(bytes(262_144))
        receive(server, 262_144)
    sent = lambda: shared.agent.metrics().value("mesh_sent_bytes_total", service=name, role="client")
    assert sent() >= len(head) + 8_388_608 - 2_097_152
    server.sendall(response())
    receive(client, len(response()))
    shared.agent.expect_codes(name, {"200": 1})
    shared.agent.expect(sent, len(head) + 8_388_608)


def test_a_socket_that_connects_to_itself_is_a_client(shared):
    name, port = shared.service()
    sock = shared.world.keep(shared.world.near.socket())
    sock.bind(("127.0.0.1", port))
    sock.connect(("127.0.0.1", port))
    opened = lambda: shared.agent.metrics().by("mesh_connections_opened_total", "role", service=name)
    shared.agent.expect(lambda: opened().get("client"), 1)
    assert opened().get("server", 0) == 0
