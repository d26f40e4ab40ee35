"""Runs the soak: `make soak`, `make soak MINUTES=10 SEED=4`. Exit code 1 if a count is not exact or something is not
flat; 2 if it could not run."""

import argparse
import contextlib
import datetime
import http.client
import json
import os
import pathlib
import random
import signal
import statistics
import sys
import threading
import time
import traceback

from . import ROOT

from bench import machine, tables
from bench.figures import shown
from bench.report import Report
from bench.stage import Stage
from meshtest.agent import REQUESTS
from meshtest.host import Host, endpoints, poll
from meshtest.policies import service
from meshtest.traffic import Server, http_server
from meshtest.visitor import visitor

from .faults import CGROUPS, LEASE, Faults, held
from .traffic import Traffic

# The name, route and breaker of each service. No one touches the first.
BREAKER = {"openFor": "1s", "maxOpenFor": "2s", "probe": {"ratio": 0.1, "interval": "100ms", "ramp": "1s"}}
SERVICES = [
    ("steady", "lo4", {}),
    ("failing", "veth4", {"consecutiveFailures": 5, **BREAKER}),
    ("rated", "lo6", {"minimumRequests": 20, "failureRate": 0.3, "window": "5s", **BREAKER}),
    ("slow", "veth6", {"minimumRequests": 20, "slowCallDuration": "20ms", "slowCallRate": 0.5, "window": "5s", **BREAKER}),
    ("mapped", "mapped", {"consecutiveFailures": 3, **BREAKER}),
]  # fmt: skip
PORT = 9001
VISITED = 9050
# Between two requests of a client, in seconds.
PAUSE = 0.003
# A second, and how many scrapes it has: what each leaves behind, be it little, is seen within minutes.
SECOND, SCRAPES = 1.0, 10
# What may be held in the last quarter beyond the second: a share of that, and as much at least.
FLAT = {
    "resident_kib": (0.15, 1024), "descriptors": (0.0, 6), "maps_kib": (0.02, 64), "series": (0.05, 8),
    "discovered": (0.0, 0), "interfaces": (0.0, 0), "pins": (0.0, 4), "connections": (0.0, 10), "state_kib": (0.5, 2048),
}  # fmt: skip


def configuration():
    services = [service(name, PORT + number, **breaker) for number, (name, _, breaker) in enumerate(SERVICES)]
    services.append({"name": "visited", "endpoints": endpoints(VISITED)})
    return {"breakers": {"maxOpenShare": 1.0, "lease": f"{LEASE:g}s"}, "services": services}


class Soak:
    """One run."""

    def __init__(self, stage, seconds, seed):
        self._stage, self._seconds, self._dice = stage, seconds, random.Random(seed)
        self.faults_done, self.samples, self.problems = {}, [], []
        self._done = threading.Event()

    def run(self):
        stage, config = self._stage, configuration()
        world = stage.world()
        self.traffic = [
            Traffic(world, name, route, PORT + number, self._dice.random(), PAUSE)
            for number, (name, route, _) in enumerate(SERVICES)
        ]
        # Before there are threads: it forks. It comes only when it is told to.
        visit = stage.keep(visitor(world, stage.host.tests, VISITED))
        stage.keep(Server(world.listen("lo4", VISITED), http_server()))
        agent = stage.agent(world, config)
        stage.keep(removed(agent))
        self.faults = faults = Faults(agent, world, self.traffic, visit, self._dice, config)
        stage.keep(contextlib.closing(faults))
        # From here on it ends as if it was killed, but for the last of all.
        agent.arguments = ["--keep"]
        faults.killed()
        for each in self.traffic:
            each.start()
            stage.keep(contextlib.closing(each))
        self._warm_up()
        sampler = threading.Thread(target=self._sample, args=(agent,), daemon=True)
        sampler.start()
        try:
            self._harm(agent)
        finally:
            self._done.set()
            sampler.join()
        for each in self.traffic:
            each.end_calls()
        try:
            self._compare(agent)
            faults.restarted_at_last()
            self._compare(agent)
        except (OSError, AssertionError, http.client.HTTPException) as error:
            self.problems.append(f"at the end the agent does not answer: {type(error).__name__}: {error}")
        self._read_log(agent)
        self.judge()

    # While it runs

    def _warm_up(self):
        """Shows the agent every kind of outcome and every short-lived workload once, so that what comes later is no
        growth."""
        for trouble in ("fail", "reset", None):
            for each in self.traffic:
                each.trouble = trouble
            # Until each breaker that opens has let some through again.
            marks = [sum(each.tally.server.values()) for each in self.traffic]
            for each, mark in zip(self.traffic, marks):
                poll(lambda: sum(each.tally.server.values()) > mark + 2, 30, 0.02, f"requests to {each.name}")
        for _ in range(2 * CGROUPS):
            self.faults.a_cgroup()

    def _harm(self, agent):
        """Faults at random. In the second half the agent is one process, so that what it holds shows a leak."""
        begin = time.monotonic()
        while (now := time.monotonic() - begin) < self._seconds:
            names = Faults.others + (Faults.restarts * 2 if now < self._seconds / 2 else [])
            name = self._dice.choice(names)
            try:
                getattr(self.faults, name)()
            except Exception as error:
                if os.environ.get("SOAK_TRACEBACK"):
                    traceback.print_exc()
                self.problems.append(f"{now:.0f} s: {name}: {type(error).__name__}: {error}")
                return
            self.faults_done[name] = self.faults_done.get(name, 0) + 1
            if agent.process.poll() is not None:
                self.problems.append(f"{now:.0f} s: after '{name}' the agent ended, code {agent.process.returncode}")
                return
            failures = [each.failure for each in self.traffic if each.failure]
            if failures:
                self.problems += failures
                return
            time.sleep(self._dice.random() * 0.5)

    def _sample(self, agent):
        begin, told = time.monotonic(), 0
        while not self._done.wait(SECOND):
            with self.faults.away:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    for _ in range(SCRAPES):
                        agent.get("/metrics")
                now, found = time.monotonic() - begin, held(agent)
            done = sum(sum(each.tally.client.values()) for each in self.traffic)
            if found:
                self.samples.append({"seconds": round(now, 2), "requests": done, **found})
            if now >= told + 60:
                told = now
                memory = f", {shown(found['resident_kib'] / 1024, 'MiB')}" if found else ""
                faults = sum(self.faults_done.values())
                print(f"  {now / 60:.0f} min: {shown(done)} requests, {shown(faults)} faults{memory}", flush=True)

    # At the end

    def _compare(self, agent):
        """Holds the counters against what was seen; the last connections end a moment after their clients."""
        with contextlib.suppress(AssertionError):
            poll(lambda: not self._differences(agent.metrics()), 10, 0.1)
        self.problems += self._differences(agent.metrics())

    def _differences(self, page):
        found = []

        def hold(what, counted, seen):
            if counted != seen:
                found.append(f"{what}: the agent counted {counted}, seen were {seen}")

        hold("samples lost", page.value("mesh_agent_samples_lost_total"), 0)
        for each in self.traffic:
            name, tally = each.name, each.tally
            for role, seen, connections in (
                ("client", tally.client, tally.connected),
                ("server", tally.server, tally.accepted),
            ):
                mine = {"service": name, "role": role}
                hold(f"{name}, requests, {role}", page.by(REQUESTS + "_count", "code", **mine), dict(seen))
                opened = page.value("mesh_connections_opened_total", **mine)
                hold(f"{name}, connections, {role}", opened, connections)
                hold(f"{name}, connections still open, {role}", page.value("mesh_connections_active", **mine), 0)
            for point, passed, rejected in (
                ("connect", tally.connected, tally.refused),
                ("request", sum(tally.client.values()), tally.rejected),
            ):
                decided = page.by("mesh_breaker_attempts_total", "decision", service=name, point=point)
                hold(f"{name}, rejected at {point}", decided.pop("rejected", 0), rejected)
                hold(f"{name}, let through at {point}", sum(decided.values()), passed)
        steady = self.traffic[0].tally
        hold("rejected by the breaker that nobody touched", 0, steady.refused + steady.rejected)
        visits = page.value(REQUESTS + "_count", service="visited", role="client")
        hold("requests out of short-lived cgroups", visits, self.faults.visits)
        return found

    def _read_log(self, agent):
        for line in agent.logs():
            if line["level"] == "error" and "configuration" not in line["message"] and "reload" not in line["message"]:
                self.problems.append(f"the agent's log says: {line}")

    def quarter(self, number):
        """The samples of a quarter of the time, counted from 0."""
        begin, end = self._seconds * number / 4, self._seconds * (number + 1) / 4
        return [sample for sample in self.samples if begin <= sample["seconds"] < end]

    def medians(self, key):
        return [
            statistics.median(sample[key] for sample in self.quarter(number)) if self.quarter(number) else 0
            for number in range(4)
        ]

    def judge(self):
        """Says of each thing that is held whether it is flat."""
        if not all(self.quarter(number) for number in (1, 2, 3)):
            self.problems.append("there are too few samples to tell what is flat: give it more time")
            return
        for key, (share, least) in FLAT.items():
            _, second, third, last = self.medians(key)
            for name, before in (("second", second), ("third", third)):
                if last > before + max(share * before, least):
                    self.problems.append(
                        f"{key} is not flat: {shown(before)} in the {name} quarter, {shown(last)} in the last"
                    )


@contextlib.contextmanager
def removed(agent):
    """Whatever became of the agent, nothing of it stays."""
    try:
        yield
    finally:
        if agent.process is not None and agent.arguments:
            agent.process.kill()
            agent.process.wait()
            agent.process = None
        if agent.process is None:
            agent.cleanup()


def plots_of(samples, limit=150):
    """What is to be seen of the samples, of which so many are drawn."""
    points = samples[:: -(-len(samples) // limit) or 1]
    series = lambda key, scale=1: [[point["seconds"] / 60, point[key] / scale] for point in points]
    common = {"kind": "lines", "x": "minutes", "ylim": [0, None]}
    memory = {
        "anonymous memory of the agent": series("resident_kib", 1024),
        "eBPF maps": series("maps_kib", 1024),
        "file of the state": series("state_kib", 1024),
    }
    numbers = {key: series(key) for key in ("descriptors", "series", "pins", "connections")}
    return [
        {**common, "name": "soak", "title": "What the agent holds: memory", "y": "MiB", "series": memory},
        {**common, "name": "held", "title": "What the agent holds: numbers of things", "y": "", "series": numbers},
    ]


def report(soak, seed, seconds):
    """The run as a result of the bench's form."""
    made = Report(
        "soak", "Soak",
        "Mixed traffic to services on five ways, and faults at random: the agent killed, restarted, upgraded, stopped and "
        "reloaded, breakers forced, interfaces and cgroups that come and go, slow scrapes, servers that fail, delay and "
        f"reset. Seed {seed}, {seconds / 60:g} minutes.",
    )  # fmt: skip
    total = lambda what: sum(getattr(each.tally, what) for each in soak.traffic)
    requests = sum(sum(each.tally.client.values()) for each in soak.traffic)
    for what, value in (
        ("requests", requests), ("connections", total("connected")), ("connects refused by a breaker", total("refused")),
        ("requests rejected by a breaker", total("rejected")), ("faults", sum(soak.faults_done.values())),
    ):  # fmt: skip
        made.row(what, "", value)
    for name in Faults.restarts + Faults.others:
        made.row(f"fault: {name.replace('_', ' ')}", "", soak.faults_done.get(name, 0))
    for key, (share, least) in FLAT.items():
        _, second, third, last = soak.medians(key)
        unit = {"kib": "KiB"}.get(key.rpartition("_")[2], "")
        before = min(second, third)
        name = key.removesuffix("_kib").replace("_", " ")
        made.target(
            f"{name}: last quarter against {shown(before, unit)}", last, "<=", before + max(share * before, least), unit
        )
    made.target("counts that are not exact, and other problems", len(soak.problems), "<=", 0)
    for problem in soak.problems:
        made.note(problem)
    for plot in plots_of(soak.samples):
        made.plot(**plot)
    return made


def write(made, soak, directory, described, seconds, plots):
    """The samples as JSON, the summary as Markdown, the plots as SVG."""
    directory.mkdir(parents=True, exist_ok=True)
    result = {
        "scenario": made.name, "title": made.title, "about": made.about, "machine": described, "seconds": seconds,
        "rows": made.rows, "targets": made.targets, "notes": made.notes, "plots": made.plots if plots else [],
    }  # fmt: skip
    (directory / "soak.md").write_text(tables.page(result))
    kept = {key: value for key, value in result.items() if key != "plots"}
    (directory / "soak.json").write_text(json.dumps({**kept, "samples": soak.samples}, ensure_ascii=False) + "\n")
    if plots:
        # Drawing takes matplotlib, which the tests do without.
        from bench.plots import draw

        for plot in made.plots:
            draw(plot, directory / tables.file_of(result, plot), machine.line(described))


def main():
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--results", type=pathlib.Path, default=None, help="the directory of what is written")
    parser.add_argument("--no-plots", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("error: the soak loads eBPF programs and makes network namespaces: sudo make soak", file=sys.stderr)
        return 2
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    seconds = options.minutes * 60
    again = f"make soak MINUTES={options.minutes:g} SEED={seed}"
    # SIGINT, too: whoever starts it in the background may have left that ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    described = machine.describe()
    now = datetime.datetime.now(datetime.timezone.utc)
    directory = options.results or ROOT / ".build" / "soak" / f"{now:%Y%m%d-%H%M}-{seed}"
    print(f"{machine.line(described)}\n{options.minutes:g} minutes, seed {seed}: {again}", flush=True)
    host = Host()
    try:
        with Stage(host) as stage:
            soak = Soak(stage, seconds, seed)
            soak.run()
    finally:
        host.close()
    made = report(soak, seed, seconds)
    write(made, soak, directory, described, round(seconds), not options.no_plots)
    for row in made.rows[:5]:
        print(f"  {row['what']}: {shown(row['median'])}")
    print(f"  {directory}/soak.md")
    if soak.problems:
        for problem in soak.problems:
            print(f"error: {problem}", file=sys.stderr)
        print(f"not exact, or not flat; to run it again: {again}", file=sys.stderr)
        return 1
    print("exact and flat")
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    try:
        status = main()
    except AssertionError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("ended early; everything it made is removed", file=sys.stderr)
        status = 130
    sys.exit(status)
