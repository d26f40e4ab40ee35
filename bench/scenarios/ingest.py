"""Ingest: how many samples a second the agent takes.

Genuine samples of requests of 100 services, with both ends on this host and three statuses, are replayed into
the agent's own ring buffer by an eBPF program on one CPU (bench/native/replay.bpf.c, with the reserve, submit
and loss count of bpf/events.h, and its wake-up of a reader that falls behind), while the agent, held on the other, takes them. Sustained: at rates up
to the greatest that the producing CPU reaches. Capacity: samples per second of the agent's own CPU time.
Bursts: the agent is stopped while the ring buffer fills, and goes on. Above capacity: at full speed, with the
agent stopped now and then, so that samples are lost; what was produced must be what was taken and what the
loss counter says."""

import json
import os
import subprocess
import time

from bench.crowd import Crowd, hold_on, services
from bench.figures import median
from bench.kernel import compiled_bpf, held_maps
from bench.stage import cpu_seconds

SERVICES, CONNECTIONS, REQUESTS = 100, 400, 5_000
RATES = [100_000, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 0]
SECONDS, BURSTS, BURST = 2, 30, 57_600


def run(stage, report):
    program, replay = stage.program("ingest"), compiled_bpf("replay")
    world = stage.world()
    agent = stage.agent(world, {"services": services(SERVICES)})
    pid = agent.process.pid
    with Crowd(stage, world, SERVICES) as crowd:
        crowd.tell(f"open {CONNECTIONS}")
        crowd.tell(f"run {REQUESTS} 3")
    maps = held_maps(pid)
    words = ["taskset", "-c", "1", program, replay, str(maps["events"]["id"]), str(maps["counters"]["id"])]
    environment = {**os.environ, "INGEST_SAMPLES": str(stage.directory / "samples")}
    hold_on(pid, 0)

    def received():
        return agent.status()["samples"]["received"]

    def produce(rate, amount, during=None):
        """One run: what was produced, lost by the kernel's counter, taken by the agent, and the agent's CPU time."""
        taken, cpu = received(), cpu_seconds(pid)
        process = subprocess.Popen([*words, str(rate), str(amount)], env=environment, stdout=subprocess.PIPE, text=True)
        if during:
            during(process)
        found = json.loads(process.communicate()[0])
        assert process.returncode == 0, "the producer failed"
        found["taken"] = received() - taken
        found["cpu"] = cpu_seconds(pid) - cpu
        return found

    produce(1_000_000, 0.5)
    missing, capacity, best, points = [], [], 0, []
    for rate in RATES:
        runs = [produce(rate, SECONDS) for _ in range(2)]
        name = f"{rate:,}" if rate else "no limit"
        rates = [found["taken"] / found["seconds"] for found in runs]
        report.row("samples taken a second", "1/s", rates, rate=name)
        report.row("agent's CPU time per sample", "ns", [f["cpu"] / f["taken"] * 1e9 for f in runs], rate=name)
        report.row("lost", "samples", [found["lost"] for found in runs], rate=name)
        missing += [found["produced"] - found["taken"] - found["lost"] for found in runs]
        points += [[found["taken"] / found["seconds"], found["cpu"] / found["seconds"] * 100] for found in runs]
        if rate >= 1_000_000 or not rate:
            capacity += [found["taken"] / found["cpu"] for found in runs]
        for found, each in zip(runs, rates):
            if found["lost"] == 0:
                best = max(best, each)
    lost_below = sum(row["max"] for row in report.rows if row["what"] == "lost" and row["rate"] != "no limit")

    bursts = []
    for _ in range(BURSTS):
        agent.pause()
        cpu = cpu_seconds(pid)
        found = subprocess.run([*words, "0", str(-BURST)], env=environment, capture_output=True, text=True, check=True)
        found = json.loads(found.stdout)
        agent.resume()
        received()
        bursts.append((found["produced"] - found["lost"]) / (cpu_seconds(pid) - cpu))
    report.row("samples per CPU second, bursts that fill the ring buffer", "1/s", bursts)
    report.row("samples per CPU second, sustained at 1,000,000/s and more", "1/s", capacity)

    def stumble(process):
        """Stops the agent for longer than the ring buffer lasts, twice a second."""
        time.sleep(0.3)
        while process.poll() is None:
            agent.pause()
            time.sleep(0.25)
            agent.resume()
            time.sleep(0.25)

    over = [produce(0, SECONDS, stumble) for _ in range(3)]
    report.row("lost, above capacity", "samples", [found["lost"] for found in over], rate="no limit")
    report.row("produced a second, above capacity", "1/s", [f["produced"] / f["seconds"] for f in over])
    missing += [found["produced"] - found["taken"] - found["lost"] for found in over]

    report.target("samples per second of one core's time, sustained", median(capacity), ">=", 3_000_000, "1/s")
    report.target("greatest sustained rate with nothing lost, one core", best, ">=", 3_000_000, "1/s")
    report.target("lost at 3,000,000/s and below", lost_below, "<=", 0, "samples")
    report.target("samples unaccounted for, in all runs", sum(map(abs, missing)), "<=", 0, "samples")
    report.target(
        "losses were provoked, so that their count was tried", min(f["lost"] for f in over), ">=", 1, "samples"
    )
    report.plot(
        "ingest", "lines", "The agent's CPU by the rate of samples", x="samples taken a second",
        y="% of one core", series={"MeshAgent": sorted(points)}, limit=[100, "one core"],
    )  # fmt: skip
