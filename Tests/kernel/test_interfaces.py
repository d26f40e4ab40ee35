"""Devices come and go, and other programs were there first: the agent follows the former and leaves
the latter as they were, before, during and after."""

import errno

import pytest

from meshtest import foreign as programs
from meshtest.capture import Capture
from meshtest.host import poll, scaled
from meshtest.policies import config, service
from meshtest.traffic import GET, connect_errno, exchange, until_closed

TC = pytest.mark.parametrize("tc", ["tcx", "clsact"])


def forced(tc):
    return {"MESH_AGENT_FORCE_CLSACT": "1"} if tc == "clsact" else {}


def devices(agent):
    return {entry["name"] for entry in agent.status()["interfaces"]}


@TC
def test_a_pod_that_comes_and_goes(start_agent, world, tc):
    agent = start_agent(
        config({**service("pod", 80), "endpoints": ["10.92.0.2:80", "10.91.0.1:80"]}), environment=forced(tc)
    )
    assert devices(agent) == {"lo", "veth0"}
    one, two = world.pod(1), world.pod(2)
    poll(lambda: devices(agent) == {"lo", "veth0", "pod1", "pod2"}, what="the new devices are hooked")

    listener = world.listen_at(two, "10.92.0.2", 80)

    def pair():
        client = world.keep(one.socket())
        client.connect(("10.92.0.2", 80))
        server = world.keep(listener.accept()[0])
        server.settimeout(scaled(10))
        return client, server

    with Capture(two, "eth0", port=80) as capture:
        client, server = pair()
        exchange(client, server)
        stamp = capture.syns()[0].stamp
    assert stamp == agent.connections("pod", role="server")[0]["trace_id"]
    # From one pod to another, the request is reset at the host's end of the first one's veth.
    agent.override("pod", "open")
    client.sendall(GET)
    assert until_closed(client) == errno.ECONNRESET
    assert until_closed(server) == errno.ECONNRESET
    agent.expect(lambda: agent.attempts("pod", "request"), {"admitted": 1, "rejected": 1})
    refused = world.keep(one.socket())
    assert refused.connect_ex(("10.92.0.2", 80)) == errno.ECONNREFUSED
    agent.automatic("pod")

    world.near.ip("link", "del", "pod1")
    poll(lambda: devices(agent) == {"lo", "veth0", "pod2"}, what="the device that went is dropped")
    # The same name comes again as another device.
    one = world.pod(1)
    poll(lambda: "pod1" in devices(agent))
    client, server = pair()
    agent.override("pod", "open")
    client.sendall(GET)
    assert until_closed(client) == errno.ECONNRESET
    assert until_closed(server) == errno.ECONNRESET


@TC
def test_churn(start_agent, world, tc):
    agent = start_agent(config(service()), environment=forced(tc))
    client, server = world.pair("veth4", 9001)
    for _ in range(5):
        world.near.batch(*[f"link add one{n} type veth peer name two{n}" for n in range(5)])
        world.near.batch(*[f"link set {end}{n} up" for n in range(5) for end in ("one", "two")])
        exchange(client, server)
        poll(lambda: len(devices(agent)) == 12)
        world.near.batch(*[f"link del one{n}" for n in range(5)])
        poll(lambda: devices(agent) == {"lo", "veth0"})
    agent.expect_codes("web", {"200": 5})
    assert not [line for line in agent.logs() if line["level"] == "error"]


def test_named_interfaces_only(start_agent, world):
    agent = start_agent(config(service(), interfaces=["veth0"]))
    assert devices(agent) == {"veth0"}
    client, server = world.pair("veth4", 9001)
    agent.override("web", "open")
    client.sendall(GET)
    assert until_closed(client) == errno.ECONNRESET
    assert until_closed(server) == errno.ECONNRESET


@TC
@pytest.mark.parametrize("when", ["before", "after"], ids=["older", "younger"])
def test_a_foreign_clsact_filter_stays(start_agent, world, foreign, tc, when):
    def attach():
        for hook in ("ingress", "egress"):
            foreign.filter(world.near, "veth0", hook, "foreign_drop", priority=1)
            foreign.filter(world.near, "veth0", hook, "foreign_pass", priority=3)

    def theirs():
        shown = programs.filters(world.near, "veth0")
        return {hook: [line for line in text.splitlines() if "foreign" in line] for hook, text in shown.items()}

    if when == "before":
        attach()
        before = theirs()
    agent = start_agent(config(service()), environment=forced(tc))
    if when == "after":
        attach()
        before = theirs()
    assert len(before["ingress"]) == len(before["egress"]) == 2
    assert theirs() == before

    passed = foreign.seen(programs.PASSED)
    with Capture(world.far, port=9001) as capture:
        client, server = world.pair("veth4", 9001)
        exchange(client, server)
        assert capture.syns()[0].stamp
    assert foreign.seen(programs.PASSED) > passed
    dropped = foreign.seen(programs.DROPPED)
    probe, address = world.client("veth4")
    probe.setblocking(False)
    probe.connect_ex((address, 19999))
    poll(lambda: foreign.seen(programs.DROPPED) > dropped, what="their filter still drops")
    agent.override("web", "open")
    client.sendall(GET)
    assert until_closed(client) == errno.ECONNRESET
    assert until_closed(server) == errno.ECONNRESET
    assert theirs() == before
    agent.stop()
    assert theirs() == before
    passed = foreign.seen(programs.PASSED)
    exchange(*world.pair("veth4", 9001))
    assert foreign.seen(programs.PASSED) > passed


def test_a_foreign_filter_that_decides_first_is_obeyed(start_agent, world, foreign):
    """On clsact a filter ahead of the agent's may end the chain. Then there is nothing to reset with, the
    request goes through, and it is not counted as rejected."""
    for hook in ("ingress", "egress"):
        foreign.filter(world.near, "veth0", hook, "foreign_pass", priority=1)
    agent = start_agent(config(service()), environment=forced("clsact"))
    client, server = world.pair("veth4", 9001)
    agent.override("web", "open")
    exchange(client, server)
    agent.expect_codes("web", {"200": 1})
    assert "rejected" not in agent.attempts("web", "request")
    assert connect_errno(world, "veth4", 9001) == errno.ECONNREFUSED


def test_a_qdisc_of_someone_else_stays(start_agent, world):
    world.near.run("tc", "qdisc", "add", "dev", "veth0", "clsact")
    world.near.run(
        "tc", "qdisc", "replace", "dev", "veth0", "root", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "50ms"
    )
    shown = lambda: world.near.run("tc", "qdisc", "show", "dev", "veth0").stdout
    before = shown()
    agent = start_agent(config(service()), environment=forced("clsact"))
    exchange(*world.pair("veth4", 9001))
    agent.stop()
    assert shown() == before


def test_no_qdisc_is_left(start_agent, world):
    shown = lambda: world.near.run("tc", "qdisc", "show").stdout
    before = shown()
    agent = start_agent(config(service()), environment=forced("clsact"))
    agent.stop()
    assert shown() == before


@pytest.mark.parametrize("where", ["scratch", "tests"], ids=["same-cgroup", "child"])
def test_foreign_cgroup_programs_stay(start_agent, world, host, foreign, where):
    cgroup = getattr(host, where)
    for kind, name in (("ingress", "foreign_in"), ("egress", "foreign_out"), ("connect4", "foreign_conn4")):
        foreign.attach(cgroup, kind, name)
    before = programs.attached(cgroup)
    assert len(before) == 3
    agent = start_agent(config(service()))
    assert before <= programs.attached(cgroup)
    counts = [foreign.seen(index) for index in (programs.INGRESS, programs.EGRESS, programs.CONNECTS)]
    client, server = world.pair("lo4", 9001)
    exchange(client, server)
    after = [foreign.seen(index) for index in (programs.INGRESS, programs.EGRESS, programs.CONNECTS)]
    assert all(now > then for now, then in zip(after, counts))
    # Theirs denies, and that is what the application sees; it is nobody's failure.
    assert connect_errno(world, "lo4", 19999) == errno.EPERM
    agent.expect_codes("web", {"200": 1})
    agent.override("web", "open")
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.stop()
    assert programs.attached(cgroup) == before
    counts = foreign.seen(programs.EGRESS)
    exchange(*world.pair("lo4", 9001))
    assert foreign.seen(programs.EGRESS) > counts
