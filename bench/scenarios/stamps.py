"""A million stamped connections through a wire that loses, delays, doubles and replays SYNs.

A client and a server in two namespaces make 1,000,000 connections, half of them IPv6, as fast as they can.
Each pair of ports is used twice, the second time at once, so that late SYNs of the first connection meet the
second. A wire in user space carries every SYN and SYN-ACK: of the SYNs it loses 2%, delays 10% by up to 20 ms
and 0.5% past their own retransmission, doubles 10% after up to 30 ms and 2% after up to 4 s, and behind 5% of
the second connections' it replays that of the first; of the SYN-ACKs it loses 0.5% and delays 20%. For each
connection three things are compared: the ID that the kernel keeps with the client's socket, the one on the
wire, and the one that it keeps with the accepted socket. 1% have TCP MD5 signatures, which leave no room for a
stamp; 1% go to an address out of scope.
"""

NAMES = {
    "sent_ok": ("sent", "ok"),
    "sent_no_room": ("sent", "no_room"),
    "sent_out_of_scope": ("sent", "out_of_scope"),
    "received_ok": ("received", "ok"),
    "received_out_of_scope": ("received", "out_of_scope"),
}
CONNECTIONS = 1_000_000
OUTSTANDING = 2000
SOURCES = range(16, 20)
SCOPE = ["10.77.0.2/32", "fd77::2/128", "10.77.0.16/28", "fd77::10/124"]
# Segments with these flags go no further unless the wire has carried them: they have class 0xb8 (DSCP 46) then.
TAKEN_OFF = """
table inet wire {{
    chain off {{
        type filter hook prerouting priority -300
        iifname veth0 meta nfproto ipv4 tcp flags & (syn | ack) == {flags} ip dscp != 46 drop
        iifname veth0 meta nfproto ipv6 tcp flags & (syn | ack) == {flags} ip6 dscp != 46 drop
    }}
}}
"""


def run(stage, report):
    world = stage.world()
    prepare(world)
    config = {
        "stamp": {"enabled": True, "destinations": SCOPE},
        "services": [{"name": "far", "endpoints": ["10.77.0.0/24:9001", "[fd77::]/64:9001"]}],
    }
    with stage.agent(world, config) as agent:
        found = stage.measure(
            world, stage.program("stamps"), world.near.path, world.far.path, agent.process.pid, CONNECTIONS,
            OUTSTANDING, timeout=140,
        )  # fmt: skip
        metrics = agent.metrics()
    told = {
        name: metrics.value("mesh_stamps_total", direction=direction, result=result)
        for name, (direction, result) in NAMES.items()
    }
    expected = {
        "sent_ok": found["stamped"],
        "sent_no_room": found["no_room"],
        "sent_out_of_scope": found["elsewhere"],
        "received_ok": found["received"],
        "received_out_of_scope": 0,
    }
    for role in ("client", "server"):
        told[role] = metrics.value("mesh_connections_opened_total", role=role)
        expected[role] = found["connections"]
    told["lost"], expected["lost"] = metrics.value("mesh_agent_samples_lost_total"), 0
    # What else must be so for the verdict on the stamps to count.
    sound = ("client_failed", "not_accepted", "unseen", "strangers", "overrun")
    false = ("wrong", "missing", "from_nowhere", "client_differs", "unstable", "repeated")

    report.row("connections", "1/s", found["connections"] / found["seconds"])
    for what, name in (
        ("connections", "connections"), ("of them IPv6", "ipv6"), ("had room and were in scope", "had_room"),
        ("right on the far side", "right"), ("another's ID on the far side", "wrong"),
        ("no ID on the far side", "missing"), ("an ID where none was sent", "from_nowhere"),
        ("the client's socket says otherwise than the wire", "client_differs"),
        ("a SYN that was sent again had another stamp", "unstable"), ("had the ID of another", "repeated"),
        ("no room", "no_room"), ("out of scope", "elsewhere"), ("SYN sent more than once", "retransmitted"),
        ("SYNs lost", "lost"), ("SYNs delayed", "delayed"), ("SYNs doubled", "doubled"),
        ("old SYNs replayed behind new ones", "replayed"), ("SYN-ACKs lost", "answers_lost"),
        ("SYN-ACKs delayed", "answers_delayed"),
    ):  # fmt: skip
        report.row(what, "", found[name])
    broken = {name: found[name] for name in sound if found[name]}
    if broken:
        report.note(f"The bench itself fell short, so its verdict does not count: {broken}.")
    report.target("connections", found["connections"] - sum(broken.values()), ">=", 1_000_000)
    report.target("right, of what had room", found["right"] / found["had_room"], ">=", 1.0)
    report.target("wrong in any way", sum(found[name] for name in false), "<=", 0)
    report.target(
        "the counters' difference from the truth", sum(abs(told[name] - expected[name]) for name in expected), "<=", 0
    )
    report.plot(
        "stamps", "bars", "What the wire did to a million connections, and what came of their stamps", y="count",
        series={
            "the wire": {
                "SYNs lost": found["lost"], "delayed": found["delayed"], "doubled": found["doubled"],
                "replayed": found["replayed"],
            },
            "the stamps": {"right": found["right"], "wrong": found["wrong"], "missing": found["missing"]},
        },
        logy=True, ylim=(0.5, 4e6),
    )  # fmt: skip


def prepare(world):
    """More source addresses at the near end, an address out of scope at the far end, and the wire's place."""
    near = [f"addr add 10.77.0.{host}/24 dev veth0" for host in SOURCES]
    near += [f"addr add fd77::{host:x}/64 dev veth0 nodad" for host in SOURCES]
    near += [f"neigh replace {to} lladdr 02:00:0a:4d:00:02 dev veth0 nud permanent" for to in ("10.77.0.3", "fd77::3")]
    far = ["addr add 10.77.0.3/24 dev veth0", "addr add fd77::3/64 dev veth0 nodad"]
    for host in SOURCES:
        for source in (f"10.77.0.{host}", f"fd77::{host:x}"):
            far.append(f"neigh replace {source} lladdr 02:00:0a:4d:00:01 dev veth0 nud permanent")
    world.near.batch(*near)
    world.far.batch(*far)
    world.far.sysctl("net.core.somaxconn", 65535)
    world.far.sysctl("net.ipv4.tcp_max_syn_backlog", 65535)
    for netns, flags in ((world.far, "syn"), (world.near, "(syn | ack)")):
        netns.run("nft", "-f", "-", input=TAKEN_OFF.format(flags=flags))
        # The wire writes traffic classes only, so the checksums must be whole when it sees them.
        netns.run("ethtool", "-K", "veth0", "tx", "off")
