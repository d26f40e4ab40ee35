"""The harness itself: a test that cannot fail proves nothing, so its readers must refuse what is wrong
and its captures, namespaces and foreign programs must show what really happened."""

import errno
import socket

import pytest

from meshtest import foreign as programs
from meshtest.capture import Capture, MalformedPacket, parse_options
from meshtest.host import ROUTES, Cgroup, poll, run
from meshtest.metrics import FormatError, parse_openmetrics, parse_text
from meshtest.traffic import Server, connect_errno, exchange, http_server, reset, time_to_first_byte, until_closed

GOOD = (
    "# HELP a_total Things.\n# TYPE a_total counter\n"
    'a_total{x="1",y="q\\"\\\\\\n"} 2\na_total{x="2",y=""} 3\n'
    "# HELP h_seconds Time.\n# TYPE h_seconds histogram\n"
    'h_seconds_bucket{le="0.1"} 1\nh_seconds_bucket{le="+Inf"} 2\nh_seconds_sum 1.5\nh_seconds_count 2\n'
)


def test_metrics_are_read():
    metrics = parse_text(GOOD)
    assert metrics.value("a_total") == 5
    assert metrics.value("a_total", x="1") == 2
    assert metrics.samples("a_total", x="1")[0].labels["y"] == 'q"\\\n'
    assert metrics.by("a_total", "x") == {"1": 2, "2": 3}
    assert metrics.value("h_seconds_sum") == 1.5


@pytest.mark.parametrize(
    "old, new",
    [
        ("# HELP a_total Things.\n", ""),
        ("# TYPE a_total counter\n", ""),
        ("counter", "sum"),
        ('x="2"', 'x="1"} 2\na_total{x="2'),
        ('y=""', 'y="\\t"'),
        ('y=""', 'y="\n"'),
        ('y=""', 'x=""'),
        ('a_total{x="2",y=""} 3', 'a_total{x="1",y="q\\"\\\\\\n"} 3'),
        ("} 3\n", "} 3"),
        ("} 3\n", "} three\n"),
        ("} 3\n", "} 3\n\n"),
        ("} 3\n", "} -3\n"),
        ("} 3\n", "} 3 # {}\n"),
        ('le="0.1"', 'le="1"'),
        ('le="0.1"', 'le="0.10"'),
        ('bucket{le="0.1"} 1', 'bucket{le="0.1"} 3'),
        ("h_seconds_count 2", "h_seconds_count 3"),
        ("h_seconds_sum 1.5\n", ""),
        ("# HELP h_seconds Time.", "# HELP a_total Again."),
        ("h_seconds_sum", "g_seconds_sum"),
    ],
)
def test_wrong_metrics_are_refused(old, new):
    assert old in GOOD
    with pytest.raises(FormatError):
        parse_text(GOOD.replace(old, new, 1))


def test_openmetrics_are_read():
    page = (
        "# HELP a Things.\n# TYPE a counter\na_total 1.0\n# HELP h_seconds Time.\n# TYPE h_seconds histogram\n"
        'h_seconds_bucket{le="0.1"} 1 # {trace_id="ab"} 0.05 1700000000.5\nh_seconds_bucket{le="+Inf"} 1\n'
        "h_seconds_sum 0.05\nh_seconds_count 1\n# EOF\n"
    )
    metrics = parse_openmetrics(page)
    assert metrics.samples("h_seconds_bucket", le="0.1")[0].exemplar == ({"trace_id": "ab"}, 0.05, 1700000000.5)
    for wrong in ("", page[: -len("# EOF\n")], page.replace('"} 0.05', '"} 0.5')):
        with pytest.raises(FormatError):
            parse_openmetrics(wrong)


@pytest.mark.parametrize("data", [b"\xfe", b"\xfe\x01", b"\xfe\x14\x4d\x41", b"\x02\x04\x05", b"\x00\x01"])
def test_wrong_tcp_options_are_refused(data):
    with pytest.raises(MalformedPacket):
        parse_options(data)


@pytest.mark.parametrize("route", ROUTES)
def test_routes_carry_traffic(world, route):
    client, server = world.pair(route, 9001)
    exchange(client, server)
    client.close()
    assert until_closed(server) == 0


def test_a_reset_is_seen(world):
    client, server = world.pair("veth4", 9001)
    reset(server)
    assert until_closed(client) == errno.ECONNRESET
    assert connect_errno(world, "veth4", 9001) == errno.ECONNREFUSED
    assert connect_errno(world, "veth6", 9001, blocking=False) == errno.ECONNREFUSED


@pytest.mark.parametrize("route", ["veth4", "veth6"])
def test_the_capture_sees_every_byte(world, route):
    world.near.run("ethtool", "-K", "veth0", "tx", "off")
    with Capture(world.far, port=9001) as capture:
        client, server = world.pair(route, 9001)
        exchange(client, server)
        syn = capture.syns()[0]
        data = capture.wait(lambda segment: segment.payload and segment.arriving)[0]
        assert syn.checksum_ok and data.checksum_ok
        assert syn.stamp is None
        assert {kind for kind, _ in syn.options} == {2, 3, 4, 8}
        assert data.payload.startswith(b"GET / HTTP/1.1")
        data.raw = data.raw[:-1] + b"!"
        assert not data.checksum_ok


def test_servers_answer_after_their_delay(world):
    listener = world.listen("lo4", 9001)
    with Server(listener, http_server(delay=lambda: 0.02)):
        client = world.connect("lo4", 9001)
        assert all(time_to_first_byte(client) >= 0.02 for _ in range(3))


def test_sockets_from_outside_are_outside(host, world):
    sock = host.outside.socket(world.far)
    sock.bind(("10.77.0.2", 0))
    assert Cgroup.current().path == host.tests.path
    assert str(host.outside.pid) in open(host.home.procs).read().split()


def test_foreign_programs_count_and_drop(host, world, foreign):
    foreign.filter(world.near, "veth0", "ingress", "foreign_pass")
    foreign.filter(world.near, "veth0", "egress", "foreign_drop")
    foreign.attach(host.scratch, "egress", "foreign_out")
    foreign.attach(host.scratch, "connect4", "foreign_conn4")
    client, server = world.pair("veth4", 9001)
    exchange(client, server)
    assert foreign.seen(programs.PASSED) > 0 and foreign.seen(programs.EGRESS) > 0
    assert connect_errno(world, "veth4", 19999) == errno.EPERM
    assert foreign.seen(programs.CONNECTS) == 2
    sock = world.keep(world.near.socket(socket.AF_INET6))
    sock.setblocking(False)
    assert sock.connect_ex(("fd77::2", 19999)) == errno.EINPROGRESS
    poll(lambda: foreign.seen(programs.DROPPED) > 0)
    assert "foreign_drop" in programs.filters(world.near, "veth0")["egress"]
    assert len(programs.attached(host.scratch)) == 2
    foreign.unfilter()
    foreign.detach()
    assert programs.attached(host.scratch) == set()
    assert programs.filters(world.near, "veth0")["egress"].strip() == ""


def test_cgroups_go_with_what_runs_inside(host, world):
    cgroup = host.scratch.child("victim")
    process = world.near.popen("sleep", "60", cgroup=cgroup)
    poll(lambda: process.pid in cgroup.pids())
    cgroup.remove()
    assert process.wait(5) == -9
    assert run("ls", cgroup.directory, check=False).returncode != 0
