"""Scale: what a request costs among 1,000 to 500,000 open connections, and what a connection takes.

Two crowds of connections on lo, one that the agent watches and one out of its sight, grow in step. Each request
is on a connection chosen at random, and one thread pays for both of its ends and the kernel's work in between;
the cost is that thread's CPU time. The crowds run by turns. A cold socket costs more than a warm one without
any agent, so the raw ratio (top by 1,000) is told for both, and the target is their quotient: how much more the
cost grew with the agent than without. Both ends of a connection are on this host and watched, so each connection
has two sockets with state; a connection to another node has one."""

import gc

from bench.crowd import Crowd, hold_on, services
from bench.figures import median, ratios
from bench.kernel import available_bytes, slab_bytes
from bench.stage import memory_kb

SERVICES, ROUNDS, REQUESTS, WARM = 1_000, 7, 12_000, 12_000
SIZES = [1_000, 10_000, 100_000, 500_000]
# Two crowds, two sockets a connection, with their files and inodes; measured at about 4 KB a socket.
CONNECTION_BYTES = 2 * 2 * 5_000


def run(stage, report):
    world = stage.world()
    gc.collect()
    most = int(available_bytes() * 0.7 / CONNECTION_BYTES)
    sizes = [size for size in SIZES if size <= most]
    agent = stage.agent(world, {"services": services(SERVICES)})
    pid = agent.process.pid
    hold_on(pid, 0)
    with Crowd(stage, world, SERVICES, cpu=1) as watched, Crowd(
        stage, world, SERVICES, port=9001, watched=False, cpu=1
    ) as unseen:
        costs, resident, state, count = {}, {}, [], 0
        for size in sizes:
            grown = {}
            for name, crowd in (("MeshAgent", watched), ("direct", unseen)):
                before = (slab_bytes(), available_bytes())
                crowd.tell(f"open {size}")
                grown[name] = (slab_bytes() - before[0], before[1] - available_bytes())
            if size >= 100_000:
                per = [(grown["MeshAgent"][kind] - grown["direct"][kind]) / (size - count) for kind in (0, 1)]
                state.append(per[0])
                report.row("kernel memory added to a connection, both ends", "B", per[0], connections=size, by="slabs")
                report.row(
                    "kernel memory added to a connection, both ends", "B", per[1], connections=size, by="MemAvailable"
                )
                direct = grown["direct"][0] / (size - count)
                report.row("kernel memory of a connection without an agent", "B", direct, connections=size, by="slabs")
            count = size
            for crowd in (watched, unseen):
                crowd.tell(f"run {WARM} 1")
            pairs = []
            for _ in range(ROUNDS):
                pairs.append([crowd.tell(f"run {REQUESTS} 1")["cpu_seconds"] for crowd in (watched, unseen)])
            costs[size] = [[seconds / REQUESTS * 1e9 for seconds in pair] for pair in pairs]
            resident[size] = memory_kb(pid)["VmRSS"]
            report.row("CPU time of a request, MeshAgent", "ns", [a for a, _ in costs[size]], connections=size)
            report.row("CPU time of a request, direct", "ns", [b for _, b in costs[size]], connections=size)
            report.row("MeshAgent by direct", "x", ratios(costs[size]), connections=size)
            report.row("agent, resident", "MB", resident[size] * 1024 / 1e6, connections=size)
        counted = sum(agent.metrics().by("mesh_request_duration_seconds_count", "code", role="client").values())
        lost = agent.lost()

    bottom, top = sizes[0], sizes[-1]
    sent = len(sizes) * (WARM + ROUNDS * REQUESTS)
    growth = {
        name: median([pair[side] for pair in costs[top]]) / median([pair[side] for pair in costs[bottom]])
        for side, name in enumerate(("MeshAgent", "direct"))
    }
    for name, value in growth.items():
        report.row(f"cost at the top by cost at {bottom:,}, {name}", "x", value)
    relative = median(ratios(costs[top])) / median(ratios(costs[bottom]))
    report.target("connections at the top", top, ">=", 500_000)
    report.target(f"growth of a request's cost from {bottom:,} to {top:,}, by that of direct", relative, "<=", 1.2, "x")
    report.target("kernel memory added to a connection, each end that is on this node", state[-1] / 2, "<=", 600, "B")
    report.target(f"agent, resident, at the top by {bottom:,}", resident[top] / resident[bottom], "<=", 1.1, "x")
    report.target("requests sent but neither counted nor lost", abs(sent - counted - lost), "<=", 0)
    report.note(
        "A connection between two watched processes of one node has state at both ends, so twice what is said of a "
        "socket; one that leaves the node, once."
    )
    report.plot(
        "scale", "lines", "CPU time of a request by open connections", x="connections", y="ns", logx=True,
        series={
            name: [[size, median([pair[side] for pair in pairs])] for size, pairs in costs.items()]
            for side, name in enumerate(("MeshAgent", "direct"))
        },
    )  # fmt: skip
