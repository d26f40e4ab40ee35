"""Latency added to a request, beside two proxies.

One connection asks again as soon as it has its answer, and 16 connections ask at a fixed rate, through
MeshAgent, Envoy, HAProxy, and through nothing. Client and server share a CPU, and at one connection so does the
proxy: no request waits for another CPU to wake up, which takes longer than all the rest and is the noise of
a measurement like this. At a fixed rate the proxies have all CPUs. What is added is the difference to a direct
run right beside it, which programs at the same hooks that do nothing are measured against as well: what the kernel
itself takes for calling them. Latencies are kept to the nanosecond (bench/native/load.c), each of them; h2load asks at
the same rate in bursts of one request for each of its connections, so that its latencies are those of a burst.
"""


from ..figures import differences, median
from ..load import PERCENTILES, h2load, load, of_h2load, of_load
from ..peers import EMPTY, SERVER, Ways, in_turn, nginx, versions

CPU = 0
ONE, RATES, CONNECTIONS = "1 connection", {"2,000/s": 2000, "10,000/s": 10000}, 16
H2LOAD = "10,000/s, h2load"
CASES = [ONE, *RATES, H2LOAD]
PEERS = ["Envoy", "HAProxy"]
PAIRS, PEER_ROUNDS = 7, 3


def run(stage, report):
    world = stage.world()
    stage.keep(nginx(stage, world, [SERVER], cpu=CPU))
    near, free = Ways(stage, world, [SERVER], cpu=CPU), Ways(stage, world, [SERVER])
    found = {name: {case: [] for case in CASES} for name in ["direct", "MeshAgent", EMPTY, *PEERS]}

    def one_connection(way):
        found[way.name][ONE].append(of_load(load(stage, world, way.ports, 1, 0.6, cpu=CPU)))

    def fixed_rates(way):
        for case, rate in RATES.items():
            one = load(stage, world, way.ports, CONNECTIONS, 0.8, rate=rate, cpu=CPU)
            found[way.name][case].append(of_load(one))
        # The last: it leaves with requests under way, which are failures.
        latencies = h2load(stage, world, way.ports[0], CONNECTIONS, 1, RATES["10,000/s"], cpu=CPU)
        found[way.name][H2LOAD].append(of_h2load(latencies))

    def leg(name):
        with near.open(name) as way:
            one_connection(way)
            if name not in PEERS:
                fixed_rates(way)
        if name in PEERS:
            with free.open(name) as way:
                fixed_rates(way)

    for number in range(PAIRS):
        for name in in_turn(number, EMPTY):
            leg(name)
        if number < PEER_ROUNDS:
            for name in PEERS:
                leg(name)

    added = {name: {} for name in ["MeshAgent", EMPTY, *PEERS]}
    for case in CASES:
        for name, runs in found.items():
            for which in PERCENTILES:
                report.row("latency", "µs", [run[which] for run in runs[case]], case=case, way=name, percentile=which)
    for case in CASES:
        for name in added:
            added[name][case] = {}
            for which in PERCENTILES:
                direct = [run[which] for run in found["direct"][case]]
                through = [run[which] for run in found[name][case]]
                beside = [median(direct)] * len(through) if name in PEERS else direct
                values = differences(zip(through, beside))
                added[name][case][which] = values
                report.row("added", "µs", values, case=case, way=name, percentile=which)

    for case in [ONE, *RATES]:
        mesh, envoy = (median(added[name][case]["p50"]) for name in ("MeshAgent", "Envoy"))
        report.target(f"added p50, {case}", mesh, "<=", 5, "µs")
        report.target(f"added p50 as a share of Envoy's, {case}", mesh / envoy, "<=", 1 / 50)

    report.note(f"Peers: {versions()}, plain HTTP, and one proxy on the way where a mesh has two.")
    report.note("What a proxy adds is the difference to the median direct run.")
    report.plot(
        "latency", "bars", f"Latency of a request, {ONE}", x="percentile", y="µs", logy=True,
        series={
            name: {which: median([run[which] for run in runs[ONE]]) for which in PERCENTILES}
            for name, runs in found.items()
        },
    )  # fmt: skip
    for case, rate in RATES.items():
        report.plot(
            f"{rate}", "bars", f"Latency of a request at {case} over {CONNECTIONS} connections", x="percentile",
            y="µs", logy=True,
            series={
                name: {which: median([run[which] for run in runs[case]]) for which in PERCENTILES}
                for name, runs in found.items()
            },
        )  # fmt: skip
    report.plot(
        "added", "pairs", "What MeshAgent adds to the median request, each run", x="", y="µs",
        series={case: added["MeshAgent"][case]["p50"] for case in [ONE, *RATES]}, limit=[5, "5 µs"],
    )  # fmt: skip
