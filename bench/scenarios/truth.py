"""Ten million requests against a log of every one: counts by code, and latency.

A server and a client on loopback, eight services (IPv4 and IPv6), 16 kinds of answer (15 statuses and one that
is no HTTP), 20% of them delayed by up to 30 ms, and 2% that end without one: the server or the client closes,
or resets. Each end counts what it sees. How long a request took is the difference between the kernel's time
stamps (SO_TIMESTAMPNS) of the two segments, as their receivers read them: a clock reading of the network
stack, of which the agent's programs know nothing, and which no wait for a CPU can delay. Of a request that
was not answered it ends when its process closed the connection, by that one's own clock.

A socket whose own process closes or resets it with a request pending has it aborted; one that its peer resets
has it reset. Latency is compared at 64 bucket bounds: as many requests must be below a bound by the agent's
count as are by the truth's, with a bound that is off by at most 50 us or 1%. The deviation at a bound is how
far it would have to be moved for the two to agree exactly.
"""

import array
import bisect
import collections
import itertools

REQUESTS = 10_000_000
CONNECTIONS = 192
# On a machine that is too slow for them all, the comparison is of as many as it made.
SECONDS = 235
SERVICES = {f"s{2 * n + six}": f"{('127.0.0.1', '[::1]')[six]}:{9001 + n}" for n in range(4) for six in (0, 1)}
ROLES = ("client", "server")
METRICS = {
    "connections": "mesh_connections_opened_total",
    "sent": "mesh_sent_bytes_total",
    "received": "mesh_received_bytes_total",
}
# 64 is as many as the agent takes.
BOUNDS = [round(20e-6 * 1.188**n, 6) for n in range(64)]
SHARES = (0.01, 0.999)


def run(stage, report):
    world = stage.world()
    config = {
        "histogram": {"buckets": BOUNDS},
        "services": [{"name": name, "endpoints": [endpoint]} for name, endpoint in SERVICES.items()],
    }
    log = stage.directory / "latencies"
    with stage.agent(world, config) as agent:
        truth = stage.measure(world, stage.program("truth"), REQUESTS, CONNECTIONS, SECONDS, log, timeout=SECONDS + 30)
        metrics = agent.metrics()
    lost = metrics.value("mesh_agent_samples_lost_total")
    report.row("requests", "", truth["requests"])
    report.row("requests", "1/s", truth["requests"] / truth["seconds"])
    compare_counts(report, truth, metrics)
    report.target("requests", truth["requests"] - truth["unstamped"], ">=", 10_000_000)
    report.target("samples lost", lost, "<=", 0)
    compare_latency(report, latencies(log), metrics)


def compare_counts(report, truth, metrics):
    """Holds every count by role, service and code against the logs."""
    wrong, checked, by_end = 0, 0, collections.Counter()
    for role, service in itertools.product(ROLES, SERVICES):
        counted = collections.Counter()
        for sample in metrics.samples("mesh_request_duration_seconds_count", role=role, service=service):
            counted[sample.labels["code"]] += int(sample.value)
        logged = truth[role][service]
        for code in logged.keys() | counted.keys():
            difference = abs(counted[code] - logged.get(code, 0))
            if difference:
                report.note(f"{role}, {service}, {code}: {counted[code]:,} counted, {logged.get(code, 0):,} logged.")
            wrong += difference
            checked += 1
            by_end[role, code if code in ("aborted", "reset") else "answered"] += logged.get(code, 0)
        for name, metric in METRICS.items():
            difference = abs(metrics.value(metric, role=role, service=service) - truth[f"{role}_{name}"][service])
            if difference:
                report.note(f"{role}, {service}, {name}: off by {difference:,}.")
            wrong += difference
            checked += 1
    for (role, how), count in sorted(by_end.items()):
        report.row(f"{how}, by the log", "", count, role=role)
    report.row("counts compared: by role, service and code; connections, bytes", "", checked)
    report.target("requests, connections and bytes counted wrong", wrong, "<=", 0)


def latencies(path):
    """By role: how many requests took at most n microseconds, for each n."""
    bins = array.array("I")
    bins.frombytes(path.read_bytes())
    half = len(bins) // 2
    return {role: list(itertools.accumulate(part)) for role, part in zip(ROLES, (bins[:half], bins[half:]))}


def compare_latency(report, truth, metrics):
    worst_excess, shares, moves = None, {}, {}
    for role in ROLES:
        buckets = collections.Counter()
        for sample in metrics.samples("mesh_request_duration_seconds_bucket", role=role):
            buckets[float(sample.labels["le"])] += int(sample.value)
        below, total = truth[role], truth[role][-1]
        deviations = []
        for bound in BOUNDS:
            count = buckets[bound]
            if not SHARES[0] * total <= count <= SHARES[1] * total:
                continue
            # The bound at which the truth counts as many: between the last of them and the next request.
            least, most = bisect.bisect_left(below, count), bisect.bisect_right(below, count) + 1
            moved = max(least - bound * 1e6, bound * 1e6 - most, 0.0)
            deviations.append((moved, moved - max(50, bound * 1e6 * 0.01), bound))
        report.row("latency: bounds between p1 and p99.9 compared", "", len(deviations), role=role)
        moved, _, bound = max(deviations)
        report.row("latency: worst deviation", "µs", moved, role=role)
        report.row("latency: the bound where that is", "µs", bound * 1e6, role=role)
        report.row("latency: deviations", "µs", [deviation for deviation, _, _ in deviations], role=role)
        excess = max(excess for _, excess, _ in deviations)
        worst_excess = excess if worst_excess is None else max(worst_excess, excess)
        for share in (0.01, 0.5, 0.9, 0.99, 0.999):
            report.row(
                f"latency: p{share * 100:g} by the log", "µs", bisect.bisect_left(below, share * total), role=role
            )
        moves[role] = [[bound * 1e3, max(moved, 0.5)] for moved, _, bound in deviations]
        if role == "client":
            shares["the agent"] = [[bound * 1e3, buckets[bound] / total] for bound in BOUNDS]
            shares["the log"] = [[bound * 1e3, below[round(bound * 1e6) - 1] / total] for bound in BOUNDS]
    report.target("latency: worst excess over 50 µs or 1%, p1 to p99.9", worst_excess, "<=", 0, "µs")
    moves["allowed"] = [[bound * 1e3, max(50, bound * 1e6 * 0.01)] for bound in BOUNDS]
    report.plot(
        "truth", "lines", "Latency by the agent and by the log of every request", x="ms", y="share of requests",
        series=shares, logx=True,
    )  # fmt: skip
    report.plot(
        "deviation", "lines", "How far the agent's latency is off (0.5 µs: not at all)", x="bound, ms", y="µs",
        series=moves, logx=True, logy=True,
    )  # fmt: skip
