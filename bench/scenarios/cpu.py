"""CPU time of a request over 100 services, the whole machine's and the agent's alone, and at idle.

A client asks at 1,000, 10,000 and 50,000 requests per second over 100 services, each with a connection and an
nginx port of its own; both ends are on this host and in the watched cgroup. The client is bound to the first
CPU, and an nginx with its share of the services to each: what a request costs depends on whether another CPU
has to be woken for it, and here it is the same share of them in each run. CPU time is what the scheduler
has counted, to the nanosecond and without sampling, for all that takes part: client, nginx and proxy (by
their cgroup), the agent, and the kernel's threads. Idle is a window of 10 s without a request, in which the
agent and both proxies stand ready for the 100 services.
"""

import contextlib
import os
import time

from ..figures import differences, median
from ..load import Load
from ..peers import SERVER, Ways, in_turn, nginx, versions
from ..stage import cgroup_seconds, cpu_seconds, kernel_threads_seconds

SERVICES = 100
RATES = [1000, 10000, 50000]
# Envoy and HAProxy do not come to 50,000/s on two CPUs that they share with client and server.
PEERS, PEER_RATES = ["Envoy", "HAProxy"], [1000, 10000]
PAIRS, PEER_ROUNDS = 5, 3
SECONDS, IDLE_SECONDS = 1.8, 10.0


def run(stage, report):
    world = stage.world()
    servers = list(range(SERVER, SERVER + SERVICES))
    cpus = os.cpu_count()
    for cpu in range(cpus):
        stage.keep(nginx(stage, world, servers[cpu::cpus], cpu=cpu))
    ways = Ways(stage, world, servers)
    names = ["direct", "MeshAgent", *PEERS]
    whole, own, reached = ({name: {rate: [] for rate in RATES} for name in names} for _ in range(3))

    def leg(way, rate):
        under_way = Load(stage, world, way.ports, SERVICES, SECONDS + 0.2, rate, warmup=0.3, cpu=0)
        time.sleep(0.4)
        before = _spent(stage, way)
        began = time.monotonic()
        time.sleep(SECONDS)
        after = _spent(stage, way)
        seconds = time.monotonic() - began
        done = under_way.finish()
        asked = done["requests"] / done["seconds"] * seconds
        everything, itself = (end - start for start, end in zip(before, after))
        reached[way.name][rate].append(asked / seconds)
        whole[way.name][rate].append(everything / asked * 1e6)
        own[way.name][rate].append((itself / asked * 1e6, itself / seconds * 100))

    for number in range(PAIRS):
        for name in in_turn(number):
            with ways.open(name) as way:
                for rate in RATES:
                    leg(way, rate)
        if number < PEER_ROUNDS:
            for name in PEERS:
                with ways.open(name) as way:
                    for rate in PEER_RATES:
                        leg(way, rate)

    idle = _idle(ways)

    for rate in RATES:
        for name in names:
            if not whole[name][rate]:
                continue
            report.row("rate reached", "requests/s", reached[name][rate], rate=rate, way=name)
            report.row("whole machine", "CPU s per million requests", whole[name][rate], rate=rate, way=name)
            if name != "direct":
                direct = whole["direct"][rate]
                beside = direct if name == "MeshAgent" else [median(direct)] * len(whole[name][rate])
                added = differences(zip(whole[name][rate], beside))
                report.row("added to direct", "CPU s per million requests", added, rate=rate, way=name)
                each, share = zip(*own[name][rate])
                report.row("its own process", "CPU s per million requests", each, rate=rate, way=name)
                report.row("its own process", "% of a core", share, rate=rate, way=name)
    for name, share in idle.items():
        report.row("its own process, idle", "% of a core", share, rate=0, way=name)

    # By the request, so that a client that did not quite come to the rate makes nothing look cheaper.
    top = RATES[-1]
    busy = median([each for each, _ in own["MeshAgent"][top]]) * top / 1e6 * 100
    if median(reached["MeshAgent"][top]) < 0.98 * top:
        report.note(f"Client and server did not come to {top:,} requests/s; see the rate reached.")
    report.target(f"agent at {top:,} requests/s over {SERVICES} services", busy, "<=", 1, "% of a core")
    report.target("agent idle", median(idle["MeshAgent"]), "<=", 0.1, "% of a core")
    report.note(f"Peers: {versions()}, plain HTTP, and one proxy on the way where a mesh has two.")
    report.note(
        "Each request has two samples, its client's and its server's. Envoy and HAProxy do not come to 50,000/s here."
    )
    report.plot(
        "cpu", "bars", "CPU time of a million requests, whole machine", x="requests/s", y="CPU s",
        series={
            name: {f"{rate:,}": median(found) for rate, found in whole[name].items() if found} for name in names
        },
    )  # fmt: skip
    report.plot(
        "own", "bars", "Of it, the agent's or the proxy's own process", x="requests/s", y="CPU s", logy=True,
        series={
            name: {f"{rate:,}": median([each for each, _ in found]) for rate, found in own[name].items() if found}
            for name in names
            if name != "direct"
        },
    )  # fmt: skip


def _spent(stage, way):
    """The CPU seconds so far of all that takes part, and of the way's own process."""
    itself = way.cpu_seconds()
    agent = itself if way.agent else 0.0  # the only one outside of the scratch cgroup
    return cgroup_seconds(stage.host.scratch) + agent + kernel_threads_seconds(), itself


def _idle(ways):
    """The share of a core, in percent, that each takes without a request."""
    with contextlib.ExitStack() as opened:
        standing = [opened.enter_context(ways.open(name)) for name in ["MeshAgent", *PEERS]]
        time.sleep(2.0)  # what they do once they are ready
        began = time.monotonic()
        before = [cpu_seconds(way.pid) for way in standing]
        time.sleep(IDLE_SECONDS)
        seconds = time.monotonic() - began
        return {way.name: [(cpu_seconds(way.pid) - start) / seconds * 100] for way, start in zip(standing, before)}
