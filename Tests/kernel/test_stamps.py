"""Trace IDs on the wire: each SYN carries the ID that the agent shows for its connection, byte for
byte, and the accepted connection belongs to it."""

import os
import socket
import struct
import threading

import pytest

from meshtest.capture import SYN, Capture, frame, send_frame
from meshtest.host import Cgroup, mac_of, run, scaled
from meshtest.policies import service
from meshtest.traffic import exchange, receive, response

TRACE = "0af7651916cd43dd8448eb211c80319c"
ALL = {"enabled": True, "destinations": ["0.0.0.0/0", "::/0"]}


def plain(**settings):
    return {"services": [{"name": "web", "endpoints": service()["endpoints"]}], **settings}


def stamps(agent):
    found = agent.status()["stamps"]
    metrics = agent.metrics()
    for direction, result in (
        ("sent", "ok"),
        ("sent", "no_room"),
        ("sent", "out_of_scope"),
        ("received", "ok"),
        ("received", "out_of_scope"),
    ):
        assert metrics.value("mesh_stamps_total", direction=direction, result=result) == found[f"{direction}_{result}"]
    return found


def shown(agent, role, port):
    """The trace ID that meshctl shows for the one connection whose client has a port."""
    side = "local" if role == "client" else "remote"
    flows = [f for f in agent.meshctl("flows")["connections"] if f["role"] == role and f[side].endswith(f":{port}")]
    assert len(flows) == 1, flows
    return flows[0]["trace_id"]


def port_of(sock):
    return sock.getsockname()[1]


@pytest.mark.parametrize("route", ["veth4", "veth6", "veth-mapped"])
@pytest.mark.parametrize("offload", ["on", "off"])
def test_the_far_side_reads_what_the_agent_shows(start_agent, world, route, offload):
    world.near.run("ethtool", "-K", "veth0", "tx", offload)
    agent = start_agent(plain())
    traces = set()
    with Capture(world.far, port=9001) as capture:
        listener = world.listen(route, 9001)
        for number in range(1, 6):
            client, server = world.pair(route, 9001, listener)
            exchange(client, server)
            syn = capture.syns(number)[-1]
            assert syn.source_port == port_of(client)
            # 20 bytes: kind, length, experiment, trace ID; the rest as the kernel always sends it.
            raw = bytes([254, 20]) + b"MA" + bytes.fromhex(shown(agent, "client", port_of(client)))
            assert raw in syn.raw[20:]
            assert shown(agent, "server", port_of(client)) == syn.stamp
            assert {kind for kind, _ in syn.options} == {2, 3, 4, 8, 254}
            if offload == "off":
                assert syn.checksum_ok
            traces.add(syn.stamp)
        assert all(s.stamp is None for s in capture.segments if not s.is_syn)
    assert len(traces) == 5 and "0" * 32 not in traces
    agent.expect(lambda: stamps(agent)["sent_ok"], 5)
    assert stamps(agent)["received_ok"] == 5
    assert stamps(agent)["sent_no_room"] == stamps(agent)["sent_out_of_scope"] == 0


@pytest.mark.parametrize("route", ["lo4", "lo6", "mapped"])
def test_on_loopback_too(start_agent, world, route):
    agent = start_agent(plain())
    with Capture(world.near, "lo", port=9001) as capture:
        client, server = world.pair(route, 9001)
        exchange(client, server)
        stamp = capture.syns()[0].stamp
    assert stamp == shown(agent, "client", port_of(client)) == shown(agent, "server", port_of(client))


@pytest.mark.parametrize("route", ["veth4", "veth6"])
def test_a_retransmitted_syn_has_the_same_stamp(start_agent, world, route):
    agent = start_agent(plain())
    address = "10.77.0.2/24" if route == "veth4" else "fd77::2/64"
    world.far.ip("addr", "del", address, "dev", "veth0")
    with Capture(world.far, port=9001) as capture:
        client, to = world.client(route)
        client.setblocking(False)
        client.connect_ex((to, 9001))
        first = capture.syns()[0]
        world.far.ip("addr", "add", address, "dev", "veth0", *(["nodad"] if route == "veth6" else []))
        if route == "veth6":
            world.far.batch("neigh replace fd77::1 lladdr 02:00:0a:4d:00:01 dev veth0 nud permanent")
        listener = world.listen(route, 9001)
        client.settimeout(scaled(10))
        server = world.keep(listener.accept()[0])
        second = capture.syns(2)[1]
        exchange(client, server)
    assert first.sequence == second.sequence
    assert (
        first.stamp
        == second.stamp
        == shown(agent, "client", port_of(client))
        == shown(agent, "server", port_of(client))
    )
    # A connection is stamped once, however often its SYN is sent.
    assert stamps(agent)["sent_ok"] == 1


@pytest.mark.parametrize("route", ["veth4", "veth6"])
def test_an_old_syn_of_the_same_ports_changes_nothing(start_agent, world, route):
    """It comes, with a stamp of its own, while the SYN-ACK is on its way."""
    agent = start_agent(plain())
    listener = world.listen(route, 9001)
    neighbour = "neigh replace {} lladdr {} dev veth0 nud permanent"
    near = "10.77.0.1" if route == "veth4" else "fd77::1"
    # What the server sends is seen at the near end, and for nobody there.
    world.far.batch(neighbour.format(near, "02:00:00:00:00:66"))
    with Capture(world.near, port=9001) as capture:
        client, to = world.client(route)
        client.setblocking(False)
        client.connect_ex((to, 9001))
        syn = capture.syns()[0]
        answer = capture.wait(lambda s: s.arriving and s.flags & SYN)[0]
        old = bytearray(syn.raw)
        struct.pack_into("!I", old, 4, (syn.sequence - 100_000) % 2**32)
        stamp = old.index(bytes([254, 20]) + b"MA")
        old[stamp + 4 : stamp + 20] = bytes.fromhex(TRACE)
        send_frame(world.near, frame(syn, old, mac_of("10.77.0.2")))
        capture.wait(lambda s: s.is_syn and s.stamp == TRACE)
        world.far.batch(neighbour.format(near, mac_of("10.77.0.1")))
        send_frame(world.far, frame(answer, answer.raw, mac_of("10.77.0.1")))
        client.settimeout(scaled(10))
        server = world.keep(listener.accept()[0])
        assert len([s for s in capture.segments if s.is_syn]) == 2
    exchange(client, server)
    assert syn.stamp == shown(agent, "client", port_of(client)) == shown(agent, "server", port_of(client))
    assert stamps(agent)["received_ok"] == 1


@pytest.mark.parametrize("route", ["veth4", "veth6"])
def test_syn_cookies(start_agent, world, route):
    """The listener keeps nothing of the SYN but what is in the cookie."""
    world.far.sysctl("net.ipv4.tcp_syncookies", 2)
    agent = start_agent(plain())
    for _ in range(3):
        client, server = world.pair(route, 9001)
        trace = shown(agent, "client", port_of(client))
        assert trace and shown(agent, "server", port_of(client)) == trace
    assert stamps(agent)["received_ok"] == 3


def test_the_listener_may_be_older_than_the_agent(start_agent, world):
    listeners = {route: world.listen(route, 9001) for route in ("veth4", "veth6")}
    agent = start_agent(plain())
    for route, listener in listeners.items():
        client, server = world.pair(route, 9001, listener)
        trace = shown(agent, "client", port_of(client))
        assert trace and shown(agent, "server", port_of(client)) == trace
        exchange(client, server)


def test_a_stamp_from_elsewhere_is_read(start_agent, world):
    """The client is on a host of its own, with an agent of its own."""
    other = start_agent(plain(), name="other", cgroup=world.host.scratch.child("other"))
    try:
        agent = start_agent(plain(), name="here", cgroup=world.host.tests, port=9465)
        listener = world.listen("veth4", 9001)
        script = (
            "import socket, sys; s = socket.create_connection(('10.77.0.2', 9001)); s.send(b'x'); s.recv(1);"
            " print(s.getsockname()[1], flush=True); sys.stdin.read()"
        )
        process = world.near.popen(
            "/usr/bin/python3", "-c", script, cgroup=other.cgroup, stdin=-1, stdout=-1, text=True
        )
        server = world.keep(listener.accept()[0])
        receive(server, 1)
        server.sendall(b"y")
        port = int(process.stdout.readline())
        assert shown(other, "client", port) == shown(agent, "server", port)
        assert agent.connections(role="client") == []
        process.stdin.close()
        assert process.wait(10) == 0
        server.close()
    finally:
        for made in (other, agent):
            made.stop()
        other.cgroup.remove()


def test_an_unstamped_client_has_no_trace(start_agent, world):
    agent = start_agent(plain())
    listener = world.listen("veth4", 9001)
    client = world.connect("veth4", 9001, outside=True)
    server = world.keep(listener.accept()[0])
    exchange(client, server)
    assert shown(agent, "server", port_of(client)) is None


def test_trace_bind(start_agent, world):
    agent = start_agent(plain())
    pid = os.getpid()
    with Capture(world.far, port=9001) as capture:
        listener = world.listen("veth4", 9001)
        answer = agent.meshctl("trace", "bind", "--pid", pid, "--trace", TRACE)
        assert (answer["pid"], answer["trace_id"]) == (pid, TRACE)
        for number in (1, 2):
            world.pair("veth4", 9001, listener)
            assert capture.syns(number)[-1].stamp == TRACE
        assert agent.ask("/v1/traces")["bindings"][0]["trace_id"] == TRACE
        assert len(agent.ask(f"/v1/flows?trace={TRACE}")["connections"]) == 4
        agent.meshctl("trace", "unbind", "--pid", pid)
        world.pair("veth4", 9001, listener)
        assert capture.syns(3)[-1].stamp not in (TRACE, None)
        # Without an ID the agent chooses one.
        chosen = agent.meshctl("trace", "bind", "--pid", pid)["trace_id"]
        assert len(chosen) == 32 and int(chosen, 16)
        world.pair("veth4", 9001, listener)
        assert capture.syns(4)[-1].stamp == chosen
    assert agent.ask("/v1/traces")["bindings"][0]["pid"] == pid


def test_out_of_scope_is_not_stamped_and_counted(start_agent, world):
    agent = start_agent(plain(stamp={"enabled": True, "destinations": ["10.77.0.0/16"]}))
    with Capture(world.far, port=9001) as capture:
        for route, stamped in (("veth4", True), ("veth6", False)):
            client, server = world.pair(route, 9001)
            exchange(client, server)
            assert (
                capture.wait(lambda s: s.is_syn and s.source_port == port_of(client))[0].stamp is not None
            ) == stamped
    found = stamps(agent)
    assert (found["sent_ok"], found["sent_out_of_scope"], found["sent_no_room"]) == (1, 1, 0)


def test_stamps_are_not_sent_when_disabled(start_agent, world):
    agent = start_agent(plain(stamp={"enabled": False}))
    with Capture(world.far, port=9001) as capture:
        exchange(*world.pair("veth4", 9001))
        assert capture.syns()[0].stamp is None
    assert stamps(agent)["sent_ok"] == 0


def signed(sock, address):
    """A key for TCP MD5 signatures, whose option takes the stamp's room."""
    family_and_address = struct.pack("HH4s120s", socket.AF_INET, 0, socket.inet_aton(address), b"")
    sock.setsockopt(socket.IPPROTO_TCP, 14, family_and_address + struct.pack("HHI80s", 0, 3, 0, b"key"))


def test_no_room_is_counted_and_harms_nothing(start_agent, world):
    agent = start_agent(plain())
    with Capture(world.far, port=9001) as capture:
        listener = world.listen("veth4", 9001)
        signed(listener, "10.77.0.1")
        client, address = world.client("veth4")
        signed(client, address)
        client.connect((address, 9001))
        server = world.keep(listener.accept()[0])
        exchange(client, server)
        syn = capture.syns()[0]
    assert syn.stamp is None and 19 in {kind for kind, _ in syn.options}
    found = stamps(agent)
    assert (found["sent_ok"], found["sent_no_room"]) == (0, 1)
    agent.expect_codes("web", {"200": 1})


def test_fast_open_keeps_its_cookie(start_agent, world):
    agent = start_agent(plain())
    for netns in (world.near, world.far):
        netns.sysctl("net.ipv4.tcp_fastopen", 3)
    listener = world.listen("veth4", 9001)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    with Capture(world.far, port=9001) as capture:
        for _ in range(3):
            client, address = world.client("veth4")
            client.settimeout(None)
            client.sendto(b"ping", socket.MSG_FASTOPEN, (address, 9001))
            server = world.keep(listener.accept()[0])
            receive(server, 4)
            server.sendall(response(200))
            receive(client, len(response(200)))
            client.close()
        syns = capture.syns(3)
    assert all(34 in {kind for kind, _ in syn.options} for syn in syns)
    found = stamps(agent)
    assert found["sent_ok"] + found["sent_no_room"] == 3
    assert found["sent_ok"] == sum(syn.stamp is not None for syn in syns)


def test_a_pods_stamp_crosses_the_host(start_agent, world):
    """Two pods behind the host's ends of their veths: the SYN is stamped although the agent's namespace
    only forwards it."""
    pods = [world.pod(1), world.pod(2)]
    agent = start_agent({"services": [{"name": "pod", "endpoints": ["10.92.0.2:80"]}]})
    listener = world.listen_at(pods[1], "10.92.0.2", 80)
    with Capture(pods[1], "eth0", port=80) as capture:
        client = world.keep(pods[0].socket())
        client.connect(("10.92.0.2", 80))
        server = world.keep(listener.accept()[0])
        exchange(client, server)
        syn = capture.syns()[0]
    assert syn.stamp == shown(agent, "client", port_of(client)) == shown(agent, "server", port_of(client))
    agent.expect_codes("pod", {"200": 1})


def test_throughput_and_segments_are_unharmed(start_agent, world):
    """A large transfer over a stamped connection arrives byte for byte, and is counted so."""
    agent = start_agent(plain())
    client, server = world.pair("veth4", 9001)
    data = os.urandom(1 << 20) * 64
    thread = threading.Thread(target=client.sendall, args=(data,))
    thread.start()
    assert receive(server, len(data)) == data
    thread.join()
    client.close()
    server.close()
    metrics = lambda: agent.metrics().value("mesh_sent_bytes_total", service="web", role="client")
    agent.expect(metrics, len(data))


def test_cgroup_of_the_test(host):
    """The programs attach where these tests run, and nowhere above."""
    assert Cgroup.current().path.startswith(host.scratch.path)
    assert run("bpftool", "cgroup", "show", host.home.directory, check=False).stdout.find("mesh") < 0
