"""The metrics endpoint: well formed to promtool and a real Prometheus, in both formats, and not to be
brought down by whoever connects to it."""

import gzip
import http.client
import json
import os
import socket
import struct
import time
import urllib.parse

import pytest

from meshtest.host import need, poll, run
from meshtest.metrics import parse_text
from meshtest.policies import config, service
from meshtest.real import prometheus
from meshtest.traffic import connect_errno, exchange, until_closed

FAMILIES = {
    "mesh_request_duration_seconds": ("histogram", {"service", "workload", "role", "protocol", "code"}),
    "mesh_connect_duration_seconds": ("histogram", {"service", "workload"}),
    "mesh_connections_opened_total": ("counter", {"service", "workload", "role"}),
    "mesh_connections_failed_total": ("counter", {"service", "workload", "reason"}),
    "mesh_connections_active": ("gauge", {"service", "workload", "role"}),
    "mesh_sent_bytes_total": ("counter", {"service", "workload", "role"}),
    "mesh_received_bytes_total": ("counter", {"service", "workload", "role"}),
    "mesh_tcp_retransmitted_segments_total": ("counter", {"service", "workload"}),
    "mesh_breaker_state": ("gauge", {"service", "state"}),
    "mesh_breaker_transitions_total": ("counter", {"service", "from", "to", "reason"}),
    "mesh_breaker_attempts_total": ("counter", {"service", "point", "decision"}),
    "mesh_breaker_reaction_seconds": ("histogram", set()),
    "mesh_stamps_total": ("counter", {"direction", "result"}),
    "mesh_agent_build_info": ("gauge", {"version", "kernel"}),
    "mesh_agent_samples_lost_total": ("counter", {"stage"}),
    "mesh_agent_over_discovery_limit_total": ("counter", set()),
    "mesh_agent_series_dropped_total": ("counter", set()),
    "mesh_agent_lease_age_seconds": ("gauge", set()),
    "mesh_agent_refused_calls_total": ("counter", set()),
    "mesh_agent_log_lines_dropped_total": ("counter", set()),
    "mesh_agent_control_listening": ("gauge", set()),
    "mesh_agent_pinned": ("gauge", set()),
    "mesh_agent_state_kept": ("gauge", set()),
    "mesh_agent_state_commits_total": ("counter", set()),
    "mesh_agent_state_failures_total": ("counter", set()),
    "mesh_agent_state_bytes": ("gauge", set()),
    "process_resident_memory_bytes": ("gauge", set()),
    "process_cpu_seconds_total": ("counter", set()),
    "process_open_fds": ("gauge", set()),
    "process_start_time_seconds": ("gauge", set()),
}


def busy(start_agent, world):
    """An agent with something in every family."""
    agent = start_agent(config(service("web", 9001, consecutiveFailures=1)))
    client, server = world.pair("veth4", 9001)
    for _ in range(3):
        exchange(client, server)
    connect_errno(world, "lo4", 9001)
    agent.wait_state("web", "open")
    connect_errno(world, "lo4", 9001)
    return agent


def test_promtool_finds_nothing(start_agent, world):
    agent = busy(start_agent, world)
    done = run(need("promtool"), "check", "metrics", input=agent.page()[1], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("kind", ["text", "openmetrics"])
def test_the_families_are_those_of_the_contract(start_agent, world, kind):
    agent = busy(start_agent, world)
    metrics = agent.metrics() if kind == "text" else agent.openmetrics()
    for name, (type, labels) in FAMILIES.items():
        family = metrics.families[name.removesuffix("_total") if kind == "openmetrics" and type == "counter" else name]
        assert family.type == type, name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == labels, sample
        if name != "mesh_tcp_retransmitted_segments_total":
            assert family.samples, name
    known = {name.removesuffix("_total") for name in FAMILIES}
    assert not [n for n in metrics.families if not n.startswith("process_") and n.removesuffix("_total") not in known]
    assert metrics.value("mesh_agent_build_info", kernel=os.uname().release) == 1


def test_content_types_and_encodings(start_agent, world):
    agent = busy(start_agent, world)
    headers, page = agent.page()
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    headers, page = agent.page(accept="application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert page.endswith("\n# EOF\n")
    headers, page = agent.page(accept="application/openmetrics-text;q=0.1, text/plain")
    assert headers["Content-Type"].startswith("text/plain")
    status, headers, body = agent.get("/metrics", {"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    parse_text(gzip.decompress(body).decode())
    status, headers, body = agent.get("/metrics", {"Accept-Encoding": "gzip;q=0"})
    assert headers["Content-Encoding"] is None
    status, headers, body = agent.get("/metrics", method="HEAD")
    assert (status, body) == (200, b"") and headers["Content-Type"].startswith("text/plain")


def test_keep_alive_scrapes(start_agent, world):
    agent = start_agent(config(service()))
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=10)
    connection.sock = world.host.outside.socket(world.near)
    connection.sock.connect(("127.0.0.1", agent.port))
    for _ in range(20):
        connection.request("GET", "/metrics")
        parse_text(connection.getresponse().read().decode())
    connection.close()


@pytest.mark.limit(90)
def test_a_real_prometheus_scrapes_the_right_count(start_agent, world, tmp_path):
    agent = start_agent(config(service()))
    client, server = world.pair("lo4", 9001)
    for _ in range(123):
        exchange(client, server)
    with prometheus(world, tmp_path, 9090, f"127.0.0.1:{agent.port}"):

        def query(text):
            connection = http.client.HTTPConnection("127.0.0.1", 9090, timeout=5)
            connection.sock = world.host.outside.socket(world.near)
            connection.sock.connect(("127.0.0.1", 9090))
            connection.request("GET", "/api/v1/query?query=" + urllib.parse.quote(text))
            response = connection.getresponse()
            answer = json.loads(response.read()) if response.status == 200 else {"data": {"result": []}}
            connection.close()
            return [float(result["value"][1]) for result in answer["data"]["result"]]

        poll(lambda: query("up") == [1.0], 30, 0.2, "the target is up")
        count = 'sum(mesh_request_duration_seconds_count{service="web",role="client",code="200"})'
        assert query(count) == [123.0]
        for _ in range(77):
            exchange(client, server)
        poll(lambda: query(count) == [200.0], 15, 0.2, "the new count was scraped")
        assert (
            query('histogram_quantile(0.5, sum by (le) (mesh_request_duration_seconds_bucket{service="web"}))')[0] < 1
        )
        assert query("scrape_samples_scraped")[0] > 50


# Whoever connects


@pytest.fixture
def agent(start_agent, world):
    made = start_agent(config(service()))
    yield made
    # Whatever was done to it, it still answers, and its memory has not grown without bound.
    metrics = made.metrics()
    assert made.get("/readyz")[0] == 200
    assert metrics.value("process_resident_memory_bytes") < 200 << 20
    exchange(*world.pair("lo4", 9001))
    made.expect_codes("web", {"200": 1})


def connect(agent):
    sock = agent.world.host.outside.socket(agent.world.near)
    sock.connect(("127.0.0.1", agent.port))
    return agent.world.keep(sock)


def answer(sock):
    """What the agent sends before it closes, or so much as comes in a second."""
    sock.settimeout(15)
    data = b""
    try:
        while piece := sock.recv(1 << 16):
            data += piece
    except (ConnectionResetError, TimeoutError):
        pass
    return data


NONSENSE = {
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 300 + b"\r\n\r\n", {b"400"}),
    "no-target": (b"GET\r\n\r\n", {b"400"}),
    "version": (b"GET /metrics HTTP/9.9\r\n\r\n", {b"505", b"400"}),
    "no-colon": (b"GET /metrics HTTP/1.1\r\nno colon here\r\n\r\n", {b"400"}),
    "negative-length": (b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n", {b"400"}),
    "huge-length": (b"GET /metrics HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", {b"400", b"413"}),
    "two-lengths": (b"GET / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", {b"400"}),
    "nul": (b"GET /metrics\x00 HTTP/1.1\r\nHost: x\r\n\r\n", {b"400"}),
    "long-target": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", {b"414", b"431", b"400"}),
    "long-header": (b"GET / HTTP/1.1\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", {b"431", b"400"}),
    "many-headers": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", {b"431", b"400"}),
    "method": (b"DELETE /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {b"405"}),
    "noise": (bytes(range(128, 256)) * 32 + b"\r\n\r\n", {b"400"}),
}


@pytest.mark.parametrize("case", list(NONSENSE))
def test_what_is_not_a_request_is_refused(agent, case):
    sent, statuses = NONSENSE[case]
    sock = connect(agent)
    try:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
    except (ConnectionResetError, BrokenPipeError):
        pass
    data = answer(sock)
    # A reset may overtake the answer where not all was read.
    assert data == b"" or data.split()[1] in statuses, data[:200]
    assert b"mesh_agent_build_info" not in data


def test_half_a_request(agent):
    socks = [connect(agent) for _ in range(50)]
    for sock in socks:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
    assert agent.get("/healthz")[0] == 200
    for sock in socks[:25]:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    assert agent.get("/healthz")[0] == 200


def test_slow_readers(agent, world):
    socks = []
    for _ in range(30):
        sock = world.host.outside.socket(world.near)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", agent.port))
        world.keep(sock)
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        socks.append(sock)
    for _ in range(5):
        begin = time.monotonic()
        assert agent.get("/metrics")[0] == 200
        assert time.monotonic() - begin < 5


def test_byte_by_byte_is_served(agent):
    sock = connect(agent)
    for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":
        sock.sendall(bytes([byte]))
    assert answer(sock).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_all_answered(agent):
    sock = connect(agent)
    sock.sendall(
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 9
        + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert answer(sock).count(b"HTTP/1.1 200 ") == 10


@pytest.mark.limit(120)
def test_thousands_of_connections(agent, world):
    socks = []
    for _ in range(3000):
        sock = world.host.outside.socket(world.near)
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", agent.port))
        socks.append(sock)
    # Idle ones may be turned away, but not someone who asks, once those are gone.
    for sock in socks:
        sock.close()
    poll(lambda: agent.get("/healthz")[0] == 200, 15)


def test_hostile_control_clients(agent):
    def control(data):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(agent.control)
        try:
            sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return sock

    half = [control(b"POST /v1/breakers/web/open HTTP/1.1\r\nContent-Length: 100\r\n\r\n{") for _ in range(20)]
    for data in (
        b"\0" * 1000,
        b'POST /v1/breakers/web/open HTTP/1.1\r\nContent-Length: 8\r\n\r\n{"reason',
        b"POST /v1/breakers/web/open HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n",
        b"POST /v1/breakers/web/open HTTP/1.1\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60000,
        b"GET /v1/breakers/%ff%00%2e%2e HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        control(data).close()
    follower = control(b"GET /v1/flows?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")  # never reads
    for _ in range(200):
        client, server = agent.world.pair("lo6", 9055)
        exchange(client, server)
        client.close()
        server.close()
    assert agent.status()["pid"] > 0
    assert agent.breaker("web")["override"] is None
    for sock in (*half, follower):
        sock.close()


def test_a_reset_in_the_middle_of_a_scrape(agent):
    for _ in range(100):
        sock = connect(agent)
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    sock = connect(agent)
    sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert until_closed(sock) == 0
