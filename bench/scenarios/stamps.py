"""A million stamped connections through a wire that loses, delays and doubles SYNs.

A client and a server in two namespaces make 1,000,000 connections, half of them IPv6, as fast as they can.
Each pair of ports is used twice, the second time at once, so that late SYNs of the first connection meet the
second. A wire in user space carries every SYN: it loses 2%, delays 10% by up to 20 ms and 0.5% past their
retransmission, doubles 10% after up to 30 ms and 2% after up to 4 s. For each connection three things are
compared: the ID that the kernel keeps with the client's socket, the one on the wire, and the one that it
keeps with the accepted socket. 1% have TCP MD5 signatures, which leave no room; 1% go out of scope.
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
# SYNs that the wire has not carried go no further. It gives those that it has class 0xb8 (dscp 46).
TAKEN_OFF = """
table inet wire {
    chain off {
        type filter hook prerouting priority -300
        meta nfproto ipv4 tcp flags & (syn | ack) == syn ip dscp != 46 drop
        meta nfproto ipv6 tcp flags & (syn | ack) == syn ip6 dscp != 46 drop
    }
}
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
    lost = metrics.value("mesh_agent_samples_lost_total")
    opened = {
        role: metrics.value("mesh_connections_opened_total", role=role, service="far") for role in ("client", "server")
    }
    print(found, told, lost, opened)


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
    world.far.run("nft", "-f", "-", input=TAKEN_OFF)
    # The wire writes TOS bytes only, so the checksums must be whole when it sees them.
    world.near.run("ethtool", "-K", "veth0", "tx", "off")
