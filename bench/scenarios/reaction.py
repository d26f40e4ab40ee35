"""From the deciding response to the first refused attempt.

A program calls a service over a kept connection, at a rate of background requests on a hundred other
services, until five answers in a row are failures (500), or five calls are slow (2 ms, where 1 ms is slow).
With the deciding answer in hand it calls connect() until one is refused: the time from recv() to that
refusal is the reaction. Each trial has a service, and a breaker, of its own. Envoy's outlier detection gets
the same server, the same failures and the same background traffic, which does not pass through it: there the
first refusal is the first 503 that it answers by itself. It has nothing that detects slow calls. "The machine, idle"
is without agent and proxy, in the same minutes: how long a thread of the highest real-time priority takes to run on
another CPU once it is woken (bench/native/wakeup.c), which no decision of another thread can be sure to beat."""

import os

from meshtest.metrics import parse_text

from bench.figures import percentile, thinned
from bench.machine import stolen_seconds
from bench.peers import envoy

RATES = [10, 1000, 50_000]
CAUSES = {"failures": ["--status", 500], "slow calls": ["--status", 200, "--delay-us", 2000]}
ROUNDS, TRIALS = 3, 60
MACHINE = "the machine, idle"
ENVOY_TRIALS = 40
REACTION = "mesh_breaker_reaction_seconds"
# The ports at which Envoy listens and to which it goes, one of each for a trial.
LISTENS, SERVES = 15100, 20100
# How long a trial waits for its refusal, in seconds: PATIENCE_NS in bench/native/attempts.h.
PATIENCE = 2
# A single endpoint is never ejected by the defaults of these two; see the notes.
ENVOY = {
    "Envoy, default": {},
    "Envoy, fast": {"consecutive_5xx": 5, "interval": "0.1s", "base_ejection_time": "5s"},
}


def services(count):
    breaker = {
        "mode": "enforce", "consecutiveFailures": 5, "minimumRequests": 5, "slowCallDuration": "1ms", "openFor": "60s",
    }  # fmt: skip
    watched = [
        {"name": f"s{n}", "endpoints": [f"127.{1 + n // 250}.{n % 250}.1:7000"], "breaker": breaker}
        for n in range(count)
    ]
    background = [
        {"name": f"b{n}", "endpoints": [f"127.100.{n}.1:7001"], "breaker": {"mode": "enforce"}} for n in range(100)
    ]
    return {"services": watched + background, "breakers": {"maxOpenShare": 1.0}}


def run(stage, report):
    world = stage.world()
    program = stage.program("reaction")
    measured, achieved = {}, {rate: [] for rate in RATES}
    own, stolen, waited, woken = {}, {}, {}, []

    def trial(name, rate, *words, **options):
        """One call of the program; its seconds go to `name`."""
        before = stolen_seconds()
        result = stage.measure(world, program, "--rate", rate, *words, **options)
        stolen.setdefault((name, rate), []).append((stolen_seconds() - before) * 1e3)
        measured.setdefault((name, rate), []).extend(result["seconds"] + [PATIENCE] * result["never"])
        waited.setdefault((name, rate), []).extend(result["waited"] + [0] * result["never"])
        achieved[rate].append(result["rate"])
        if result["never"]:
            report.note(
                f"{name}, {rate} requests/s: {result['never']} trials were not refused in {PATIENCE} s, and count as that."
            )

    for number in range(ROUNDS):
        if os.cpu_count() > 1:
            woken += stage.measure(world, stage.program("wakeup"), "--trials", TRIALS)["seconds"]
        with stage.agent(world, services(len(RATES) * len(CAUSES) * TRIALS)) as agent:
            first = 0
            for rate in RATES:
                for cause, words in CAUSES.items():
                    trial(cause, rate, "--trials", TRIALS, "--first", first, *words)
                    first += TRIALS
            page = parse_text(agent.page(encoding="gzip")[1])
            for bound, count in page.by(REACTION + "_bucket", "le").items():
                own[bound] = own.get(bound, 0) + count
            assert page.value("mesh_agent_samples_lost_total") == 0
        for name, outlier in ENVOY.items():
            count = ENVOY_TRIALS * len(RATES)
            routes = {LISTENS + n: SERVES + n for n in range(count)}
            with envoy(stage, world, routes, outlier):
                for index, rate in enumerate(RATES):
                    trial(
                        name, rate, "--trials", ENVOY_TRIALS, "--pause-ms", 10, "--through", LISTENS,
                        "--server", SERVES, "--first", ENVOY_TRIALS * index,
                    )  # fmt: skip

    if woken:
        report.percentiles(woken, cause=MACHINE)
    for (name, rate), seconds in measured.items():
        report.percentiles(seconds, cause=name, rate=rate)
        ran = [whole - wait for whole, wait in zip(seconds, waited[name, rate])]
        report.row("p99 without its waits for a CPU", "ms", [percentile(ran, 0.99) * 1e3], cause=name, rate=rate)
        report.row("kept by the hypervisor", "ms of a run", stolen[name, rate], cause=name, rate=rate)
    for rate in RATES:
        for cause in CAUSES:
            p99 = percentile(measured[cause, rate], 0.99) * 1e3
            report.target(f"reaction to {cause}, p99, {rate:,} requests/s", p99, "<=", 1, "ms")
        report.row("background requests achieved", "1/s", achieved[rate], rate=rate)
    total = own["+Inf"]
    report.note(
        f"{REACTION}, the agent's own figure from the kernel's time stamp on the deciding sample to the write: "
        + ", ".join(
            f"{own[bound] / total:.1%} within {float(bound) * 1e3:g} ms" for bound in ("0.0001", "0.001", "0.005")
        )
        + f", of {total:,.0f}."
    )
    report.note(
        "The client is an ordinary thread beside others on two CPUs. 'Without its waits' leaves out what it waited for a "
        "CPU itself between the answer and the refusal, in which it could attempt nothing; the targets leave it in."
    )
    report.note(
        "A connect() that finds the breaker already open takes some 10 µs, which is the least that can be measured: "
        "the agent is woken as the answer arrives, before recv() returns."
    )
    report.note(
        "Envoy's max_ejection_percent is 100 and its panic threshold 0 in both variants, because its defaults never "
        'eject a service\'s only endpoint. All else is its default, or in "fast" the interval 0.1 s; a streak of '
        "failures ejects at once in both."
    )
    for rate in RATES:
        series = {
            f"MeshAgent, {cause}" if cause in CAUSES else cause: [1e3 * s for s in thinned(seconds)]
            for (cause, at), seconds in measured.items()
            if at == rate
        }
        if woken:
            series[MACHINE] = [1e3 * s for s in thinned(woken)]
        report.plot(
            f"{rate}", "cdf", f"From the deciding response to the first refusal, {rate:,} requests/s beside it",
            "ms", "share of trials", series, logx=True, limit=[1, "target: p99 ≤ 1 ms"],
        )  # fmt: skip
