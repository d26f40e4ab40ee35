"""From an override to the first refused connect().

A program asks the agent to open a breaker and calls connect() until one is refused. It asks in two ways: by
starting meshctl, so that the start of a process counts, and with the request's bytes on a control socket that
is connected already. Each trial has a breaker of its own. The two ways are interleaved."""

from meshtest.agent import binary

from bench.figures import percentile, thinned

ROUNDS, TRIALS = 5, 40


def services(count):
    return [
        {"name": f"s{n}", "endpoints": [f"127.{1 + n // 250}.{n % 250}.1:7000"], "breaker": {"mode": "enforce"}}
        for n in range(count)
    ]


def run(stage, report):
    world = stage.world()
    ways = {"control socket": [], "meshctl": ["--meshctl", binary("meshctl", "MESHCTL")]}
    seconds = {way: [] for way in ways}
    with stage.agent(world, {"services": services(len(ways) * ROUNDS * TRIALS)}) as agent:
        first = 0
        for _ in range(ROUNDS):
            for way, words in ways.items():
                found = stage.measure(
                    world, stage.program("toggle"), "--control", agent.control,
                    "--first", first, "--trials", TRIALS, *words,
                )  # fmt: skip
                seconds[way] += found["seconds"]
                first += TRIALS
        assert agent.status()["breakers"]["overridden"] == len(ways) * ROUNDS * TRIALS
    for way, values in seconds.items():
        report.percentiles(values, way=way)
    report.target("meshctl started to first refusal, p99", percentile(seconds["meshctl"], 0.99) * 1e3, "<=", 20, "ms")
    report.target(
        "request on the control socket to first refusal, p99",
        percentile(seconds["control socket"], 0.99) * 1e3, "<=", 1, "ms",
    )  # fmt: skip
    report.plot(
        "toggle", "cdf", "From an override to the first refused connect()", "ms", "share of trials",
        {way: [1e3 * value for value in thinned(values)] for way, values in seconds.items()}, logx=True,
    )  # fmt: skip
