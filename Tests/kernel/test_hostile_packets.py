"""Malformed packets, garbage and floods against the programs in the kernel, with real sockets behind them.
INPUTS and SEED say how many and which; `make fuzz` takes a million each."""

import collections
import errno
import json
import socket
import struct

import pytest

from meshtest.capture import ACK, PSH, RST
from meshtest.host import endpoints
from meshtest.native import SEED, corpus, fuzz, inputs, native
from meshtest.policies import service
from meshtest.traffic import exchange, response

SCOPE = {"stamp": {"enabled": True, "destinations": ["10.78.0.0/17", "fd78::/65"]}}


def batches(count, most=25_000):
    """The inputs in batches, (first, count): what the agent has to take in at once, and what to look through
    when the counts differ."""
    return [(first, min(most, count - first)) for first in range(0, count, most)]


def tun(netns):
    """A TUN device: a packet that is written to it has been through TCP when write() returns."""
    netns.ip("tuntap", "add", "dev", "fuzz0", "mode", "tun", "vnet_hdr")
    netns.batch("addr add 10.78.0.1/16 dev fuzz0", "addr add fd78::1/64 dev fuzz0 nodad", "link set fuzz0 up mtu 9000")


@pytest.mark.limit(1500)
def test_no_syn_has_another_stamp_than_it_holds(start_agent, world):
    """Options that lie about their length, headers that do, IP options, extension headers, fragments and
    packets in pages: a stamp is read as it was sent, or not at all."""
    agent = start_agent(SCOPE)
    tun(world.near)
    # A cookie for each, so that no queue of half-open connections fills up and its timers run.
    world.near.sysctl("net.ipv4.tcp_syncookies", 2)
    count = inputs(20_000)
    found = fuzz(world.near, world.host.tests, "stamps", SEED, count, corpus("options"), agent.process.pid)
    assert found["inputs"] == count
    # Enough of each kind came through to say something.
    assert found["read"] >= found["stamped"] > count * 0.1
    assert min(found["fragmented"], found["extended"], found["out_of_scope"]) > count * 0.05
    assert agent.status()["connections_active"] == 0
    assert agent.lost() == 0


@pytest.mark.parametrize("version", [4, 6])
def test_raw_sockets_are_no_connections(start_agent, world, version):
    """A raw socket of TCP's protocol number, connected, sends and gets what looks like a request, its
    response and an end; container runtimes give CAP_NET_RAW to everyone."""
    agent = start_agent({"services": [{"name": "web", "endpoints": endpoints(9001)}]})
    family, address = (socket.AF_INET, "10.77.0.2") if version == 4 else (socket.AF_INET6, "fd77::2")
    raw = world.keep(world.near.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP))
    raw.connect((address, 0))
    # The sending side, and a second one that gets copies of what comes back.
    peer = world.keep(world.far.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP))
    peer.connect(("10.77.0.1" if version == 4 else "fd77::1", 0))
    for payload in (b"GET / HTTP/1.1\r\n\r\n", b"GET /more HTTP/1.1\r\n\r\n"):
        raw.send(struct.pack("!HHIIBBHHH", 40000, 9001, 1, 1, 5 << 4, ACK | PSH, 1000, 0, 0) + payload)
        peer.recv(4096)
        answer = response(503)
        peer.send(struct.pack("!HHIIBBHHH", 9001, 40000, 1, 1, 5 << 4, ACK | PSH, 1000, 0, 0) + answer)
        raw.recv(4096)
    raw.send(struct.pack("!HHIIBBHHH", 40000, 9001, 100, 1, 5 << 4, RST, 0, 0, 0))
    peer.recv(4096)
    # A real connection behind it: what came before has been counted, had it been.
    exchange(*world.pair("veth4", 9001))
    agent.expect_codes("web", {"200": 1})
    assert agent.status()["services"]["discovered"] == 0
    assert len(agent.connections()) == 2


@pytest.mark.limit(1500)
def test_responses_in_any_number_of_pieces(start_agent, world):
    """Status lines, and what is nearly one, split anywhere: the codes are those of the bytes."""
    agent = start_agent(
        {
            "services": [
                {"name": "web", "endpoints": ["127.0.0.1:9001"]},
                {"name": "loose", "endpoints": ["127.0.0.1:9002"]},
            ]
        }
    )
    wanted, uncertain = collections.Counter(), 0
    for first, count in batches(inputs(10_000)):
        found = fuzz(world.near, world.host.tests, "responses", SEED, first, count, corpus("status"))
        assert sum(found["codes"].values()) + found["uncertain"] == count
        wanted.update(found["codes"])
        uncertain += found["uncertain"]
        agent.expect_codes("web", dict(wanted))
        for role in ("client", "server"):
            agent.expect(lambda: sum(agent.codes("loose", role).values()), uncertain)
    assert agent.lost() == 0


@pytest.mark.limit(1500)
def test_goodbyes_and_what_is_nearly_one(start_agent, world):
    agent = start_agent(
        {
            "services": [
                {"name": "web", "endpoints": ["127.0.0.1:9001"]},
                {"name": "tls", "endpoints": ["127.0.0.1:9002"]},
            ]
        }
    )
    wanted = {"web": collections.Counter(), "tls": collections.Counter()}
    for first, count in batches(inputs(5_000)):
        found = fuzz(world.near, world.host.tests, "responses", SEED, first, count, corpus("goodbye"), "goodbye")
        assert min(found["goodbyes"]) > count * 0.02
        for name, counts in wanted.items():
            counts.update(found[name])
            agent.expect_codes(name, dict(counts))
    assert agent.lost() == 0


@pytest.mark.limit(1500)
def test_packets_of_any_shape_pass_as_they_are(start_agent, world):
    """Through the agent's programs in the kernel's own test bench, with a breaker open, so that tc looks."""
    agent = start_agent({"services": [service()]})
    agent.override("web", "open")
    count = inputs(20_000)
    found = fuzz(world.near, world.host.tests, "packets", SEED, count, corpus("packet"), agent.process.pid)
    assert found["runs"] > count
    assert found["gso"] > count * 0.2
    status = agent.status()
    assert (status["connections_active"], status["samples"]["received"]) == (0, 0)


@pytest.fixture
def flood(world):
    """Connections that are made while a flood of SYNs comes: (genuine, between) to their ports. They live
    until the test ends."""
    tun(world.near)
    # Otherwise the queue of half-open connections would be full, and turn the genuine ones away.
    world.near.sysctl("net.ipv4.tcp_syncookies", 2)
    running = []

    def start(genuine, between):
        process = world.near.popen(
            native("flood"), SEED, genuine, between, cgroup=world.host.tests, stdin=-1, stdout=-1, text=True
        )
        running.append(process)
        return json.loads(process.stdout.readline())

    yield start
    for process in running:
        process.stdin.close()
        assert process.wait(10) == 0


# The map holds 16,384: what came in between pushes out nobody up to there, but for what each CPU keeps ready.
@pytest.mark.parametrize("between, survive", [(0, 1.0), (1_000, 1.0), (15_000, 1.0), (50_000, 0.0)])
def test_a_flood_of_stamps_takes_none_of_others(start_agent, world, flood, between, survive):
    """However many come between a SYN and its ACK, no stamp is read wrong. All are read as long as it is not
    more than the map holds; past that none are, and that is all that happens."""
    agent = start_agent({"stamp": {"enabled": True, "destinations": ["10.78.0.0/16"]}})
    genuine = 100
    ports = flood(genuine, between)
    assert len(ports) == genuine
    found = {int(flow["remote"].rsplit(":", 1)[1]): flow["trace_id"] for flow in agent.connections(role="server")}
    assert sorted(found) == ports
    read = {port: trace for port, trace in found.items() if trace}
    assert read == {port: f"{port:04x}" + "0" * 27 + "1" for port in read}
    assert len(read) == survive * genuine
    assert agent.status()["stamps"]["received_ok"] == len(read)


@pytest.mark.limit(300)
def test_a_hundred_thousand_destinations(start_agent, world):
    """Each is called once, and refuses. Services, series and memory stay within their limits, and what is
    counted under `other` is known to be."""
    agent = start_agent({"limits": {"maxDiscoveredServices": 1000}})
    count, limit = 100_000, 1000
    agent.metrics()
    before = agent.metrics().value("process_resident_memory_bytes")
    with world.near.entered():
        for number in range(count):
            with socket.socket() as client:
                address = f"127.{1 + number // 65536}.{number // 256 % 256}.{number % 256}"
                assert client.connect_ex((address, 9)) == errno.ECONNREFUSED
    agent.expect(lambda: agent.metrics().value("mesh_connections_failed_total"), count)
    status = agent.status()
    assert status["services"]["discovered"] == limit
    assert status["services"]["over_limit_connections"] == count - limit
    metrics = agent.metrics()
    assert metrics.value("mesh_agent_over_discovery_limit_total") == count - limit
    assert metrics.value("mesh_connections_failed_total", service="other") == count - limit
    assert metrics.value("process_resident_memory_bytes") - before < 16 << 20
    assert agent.lost() == 0


@pytest.mark.limit(1500)
def test_a_peer_that_sends_what_no_tcp_would(start_agent, world):
    """Segments that overlap, leave holes, repeat, reset and end where they should not: each connection is
    opened and ended once, its bytes are those that the server read, and no request is counted twice."""
    agent = start_agent({"services": [{"name": "web", "endpoints": ["10.78.0.1:9001"]}]})
    tun(world.near)
    found = fuzz(world.near, world.host.tests, "segments", SEED, inputs(20_000), corpus("goodbye"))
    value = lambda name: agent.metrics().value(name, service="web", role="server")
    agent.expect(lambda: value("mesh_connections_opened_total"), found["connections"])
    agent.expect(lambda: value("mesh_connections_active"), 0)
    assert value("mesh_received_bytes_total") == found["bytes"]
    codes = agent.codes("web", "server")
    assert set(codes) <= {"200", "aborted", "reset", "ok"}
    # An answer to what was no request, or to the rest of one, answers nothing.
    assert found["answers"] * 0.3 < codes["200"] <= found["answers"]
    assert sum(codes.values()) <= found["segments"]
    assert agent.lost() == 0
