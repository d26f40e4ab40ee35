"""Requests per second, beside no mesh at all and beside two proxies.

wrk asks nginx for a small answer over 1 to 256 keep-alive connections, and over a new connection for each
request. Both ends are on this host and in the watched cgroup, so each request passes the agent's hooks at its
client and at its server. Each CPU has a wrk, and an nginx with one worker, of its own: where the
scheduler happens to put the two ends changes the rate threefold, which would drown what is to be seen, and
without waking another CPU a request is at its cheapest and what is added to it at its greatest. The agent and
the proxies have all CPUs, and take their time from the same ones. MeshAgent and direct are measured in pairs,
either of them first in turn, so that a machine that drifts favours neither. In each round programs that do
nothing are measured as well, at the hooks that each segment passes: what the kernel itself takes for calling them.
"""

import os
import socket
import struct
import time

from ..figures import median, ratios
from ..load import wrk
from ..peers import EMPTY, SERVER, Ways, in_turn, nginx, versions

CONNECTIONS = [1, 4, 16, 64, 256]
SHORT = "new each"
# How many connections are under way at a time where each is new.
SHORT_AT_ONCE = 32
# Measured one right after the other, on one agent. Each has services of its own: wrk gives up the requests that
# are under way at its end, and what that costs is measured by itself.
GROUPS = [(1, 4), (16, 64), (256, SHORT)]
# Measured once more on the same agent and services, with failures that are certain, to see what that costs.
ALERT, FAILURES = 64, 3
PAIRS, PEER_ROUNDS = 9, 3
PEERS = ["Envoy", "HAProxy"]


def run(stage, report):
    world = stage.world()
    # Short connections must not run out of ports: more of them, above those of the servers and proxies.
    world.near.sysctl("net.ipv4.ip_local_port_range", "20000 65535")
    cpus = os.cpu_count()
    servers = []
    for place in range(len(GROUPS[0])):
        for cpu in range(cpus):
            servers.append(SERVER + len(servers))
            stage.keep(nginx(stage, world, servers[-1:], cpu=cpu))
    ways = Ways(stage, world, servers)
    cases = [*CONNECTIONS, SHORT]
    rates = {name: {case: [] for case in cases} for name in ["direct", "MeshAgent", EMPTY, *PEERS]}
    busy = {case: [] for case in cases}
    lost = []
    alert = []

    def rate(way, case, place):
        ports = way.ports[place * cpus : (place + 1) * cpus]
        if case == SHORT:
            return wrk(stage, world, ports, SHORT_AT_ONCE, short=True)
        return wrk(stage, world, ports, case)

    def leg(way, group):
        for place, case in enumerate(group):
            before, began = way.cpu_seconds(), time.monotonic()
            rates[way.name][case].append(rate(way, case, place))
            if way.agent:
                busy[case].append((way.cpu_seconds() - before) / (time.monotonic() - began) * 100)
                if case == ALERT and len(alert) < PEER_ROUNDS:
                    for port in way.ports[place * cpus : (place + 1) * cpus]:
                        _give_up(world, port)
                    alert.append(rate(way, case, place) / rates[way.name][case][-1])
        if way.agent:
            lost.append(way.agent.lost())

    for number in range(PAIRS):
        for group in GROUPS:
            for name in in_turn(number, EMPTY):
                with ways.open(name) as way:
                    leg(way, group)
        if number < PEER_ROUNDS:
            for name in PEERS:
                with ways.open(name) as way:
                    for group in GROUPS:
                        leg(way, group)

    share = {case: ratios(zip(rates["MeshAgent"][case], rates["direct"][case])) for case in cases}
    for case in cases:
        for name, found in rates.items():
            report.row("rate", "requests/s", found[case], connections=case, way=name)
    for case in cases:
        report.row("of direct", "", share[case], connections=case, way="MeshAgent")
        report.row("of direct", "", ratios(zip(rates[EMPTY][case], rates["direct"][case])), connections=case, way=EMPTY)
        for name in PEERS:
            direct = median(rates["direct"][case])
            report.row("of direct", "", [one / direct for one in rates[name][case]], connections=case, way=name)

    for case in cases:
        report.row("its own process", "% of a core", busy[case], connections=case, way="MeshAgent")
    report.row("samples lost", "", lost, way="MeshAgent")
    report.row("of the run before, with failures in the window", "", alert, connections=ALERT, way="MeshAgent")

    for case in CONNECTIONS:
        report.target(f"{case} keep-alive connections, of direct", median(share[case]), ">=", 0.95)
    together = [one for case in CONNECTIONS for one in share[case]]
    report.target("all keep-alive connections, of direct", median(together), ">=", 0.95)
    report.target("a new, stamped connection for each request, of direct", median(share[SHORT]), ">=", 0.90)

    report.note(f"Peers: {versions()}, each with {cpus} workers, plain HTTP, and one proxy on the way.")
    report.note(
        f"'With failures in the window': {ALERT} connections right after {FAILURES} requests that their clients gave "
        "up, as a share of the rate right before: trouble in a window must not cost the traffic."
    )
    report.note(
        "'Empty programs' return at once: two at the cgroup and one on lo, where MeshAgent has these and four that only "
        "new connections meet. Its share cannot be above theirs."
    )
    report.note("The proxies' shares are of the median direct rate of the whole run.")
    report.plot(
        "share", "pairs", "What is left of the direct rate with MeshAgent", x="connections", y="share of direct",
        series={str(case): share[case] for case in cases}, limit=[0.95, "keep-alive: 0.95"],
    )  # fmt: skip
    report.plot(
        "throughput", "bars", "Requests per second on this host", x="connections", y="requests/s",
        series={name: {str(case): median(found[case]) for case in cases} for name, found in rates.items()},
    )  # fmt: skip


def _give_up(world, port):
    """Requests whose client resets the connection without waiting for the answer: failures of the service."""
    for _ in range(FAILURES):
        with world.near.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.connect(("127.0.0.1", port))
            client.send(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
