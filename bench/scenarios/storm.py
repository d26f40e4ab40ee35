"""Ten thousand breakers open at once.

Two processes, which are all that the machine's CPUs can take, hold a connection to each of 10,000 services and
send requests as fast as they go, round and round. One good request on each comes first; then every answer is
500, and the fifth opens the breaker. So some 10,000 decisions fall into one round of the traffic. The times
are the agent's own (mesh_breaker_reaction_seconds: from the kernel's time stamp on the deciding sample to the
write of the breaker); the counts are the traffic's own. The services fail three times, on an agent that goes on:
memory is compared after the second and the third."""

import re

from meshtest.host import poll

from bench.stage import memory_kb

SERVICES = 10_000
STORMS = 3
REACTION = "mesh_breaker_reaction_seconds"


def services():
    breaker = {
        "mode": "enforce", "consecutiveFailures": 5, "openFor": "10s",
        "probe": {"ratio": 1, "interval": "10ms", "successes": 1, "ramp": "0s"},
    }  # fmt: skip
    return [
        {
            "name": f"s{n}",
            "endpoints": [f"127.{1 + n // 250}.{n % 250}.1:{7000 if n < SERVICES // 2 else 7001}"],
            "breaker": breaker,
        }
        for n in range(SERVICES)
    ]


class Page:
    """What is looked for in a metrics page of 100 MB, which the tests' strict parser would take minutes for."""

    LINE = re.compile(
        r"^(mesh_request_duration_seconds_count|mesh_breaker_reaction_seconds_\w+|mesh_agent_samples_lost_total)"
        r"(?:\{(.*)\})? (\S+)$",
        re.MULTILINE,
    )

    def __init__(self, text):
        self.rows = [
            (name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
            for name, labels, value in self.LINE.findall(text)
        ]

    def values(self, name, **wanted):
        return [
            (labels, value)
            for found, labels, value in self.rows
            if found == name and all(labels.get(key) == wanted[key] for key in wanted)
        ]

    def sum(self, name, **wanted):
        return sum(value for _, value in self.values(name, **wanted))

    def reaction(self):
        return {labels["le"]: value for labels, value in self.values(REACTION + "_bucket")}


def within(buckets, share):
    """The least bound, in ms, that so many of the decisions do not exceed."""
    total = buckets["+Inf"]
    return min(float(bound) * 1e3 for bound, count in buckets.items() if count >= share * total)


def run(stage, report):
    world = stage.world()
    sent = []
    with stage.agent(world, {"services": services(), "breakers": {"maxOpenShare": 1.0, "lease": "30s"}}) as agent:
        memory = [memory_kb(agent.process.pid)["VmRSS"] / 1024]
        for _ in range(STORMS):
            sent.append(stage.measure(world, stage.program("storm"), "--services", SERVICES, "--hold-ms", 1000))
            assert agent.status()["breakers"]["open"] == SERVICES
            memory.append(memory_kb(agent.process.pid)["VmRSS"] / 1024)
            # Then the first good request of the next storm is the probe.
            poll(lambda: agent.status()["breakers"]["half_open"] == SERVICES, 30, 0.25, "all are half-open")
        page = Page(agent.page(encoding="gzip")[1])

    decisions = page.reaction()
    failures = sum(storm["failures"] for storm in sent)
    counted = page.sum("mesh_request_duration_seconds_count", role="client", code="500")
    good = page.sum("mesh_request_duration_seconds_count", role="client", code="200")
    lost = page.sum("mesh_agent_samples_lost_total")
    report.row("failures sent", "1/s", [storm["failures"] / storm["seconds"] for storm in sent])
    for bound, count in decisions.items():
        if bound != "+Inf":
            report.row(f"decisions within {float(bound) * 1e3:g} ms", "%", 100 * count / decisions["+Inf"])
    for label, megabytes in zip(["configured", "after one storm", "after two", "after three"], memory):
        report.row(f"agent resident, {label}", "MB", megabytes)
    report.target("decisions, the slowest of all, at most", within(decisions, 1), "<=", 5, "ms")
    report.target("decisions, p99, at most", within(decisions, 0.99), "<=", 5, "ms")
    report.target("breakers opened", decisions["+Inf"], ">=", SERVICES * STORMS)
    report.target("samples lost", lost, "<=", 0)
    report.target("requests sent and not counted, or counted and not sent",
        abs(failures - counted) + abs(sum(storm["good"] for storm in sent) - good), "<=", 0,
    )  # fmt: skip
    report.target("attempts on an open breaker that were admitted", sum(s["admitted"] for s in sent), "<=", 0)
    report.target("agent resident after three storms, of that after two", memory[3] / memory[2], "<=", 1.05)
    report.note(
        "The bounds are those of the histogram's buckets: the slowest decision took no longer than the bucket's bound."
    )
    report.plot(
        "storm", "lines", "10,000 breakers open at once: how soon", "ms from the deciding sample to the write",
        "% of decisions",
        {"MeshAgent": [[float(b) * 1e3, 100 * c / decisions["+Inf"]] for b, c in decisions.items() if b != "+Inf"]},
        logx=True,
    )  # fmt: skip
