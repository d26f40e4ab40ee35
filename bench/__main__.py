"""Runs the bench: `make bench`, `make bench SCENARIO=name`, or python3 -m bench [name...] after `make build`."""

import importlib
import os
import pathlib
import pkgutil
import signal
import sys
import time
import traceback

from . import RESULTS, ROOT, machine, scenarios, tables
from .figures import shown
from .report import Report
from .stage import BenchError, Stage

from meshtest.host import Host

# The order of a whole run; those that need the quietest machine first.
ORDER = [
    "hooks", "throughput", "latency", "cpu", "memory", "reaction", "toggle", "stamps", "truth", "scale", "ingest", "storm",
]  # fmt: skip


def stop(*_):
    raise KeyboardInterrupt


def known():
    """The scenarios there are, in the order of a whole run."""
    names = [found.name for found in pkgutil.iter_modules(scenarios.__path__)]
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def play(name, host, described):
    """Plays one scenario and writes its result. Returns it, or None if it did not come to its end."""
    module = importlib.import_module(f"bench.scenarios.{name}")
    title, _, about = module.__doc__.strip().partition("\n")
    result = Report(name, title.rstrip("."), " ".join(about.split()))
    print(f"{name}: {result.title}", flush=True)
    began, stolen = time.monotonic(), machine.stolen_seconds()
    try:
        with Stage(host) as stage:
            module.run(stage, result)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        if os.environ.get("BENCH_TRACEBACK"):
            traceback.print_exc()
        print(f"  FAILED after {time.monotonic() - began:.0f} s: {error}", flush=True)
        return None
    seconds = time.monotonic() - began
    share = (machine.stolen_seconds() - stolen) / seconds / os.cpu_count()
    result.note(f"Meanwhile the hypervisor gave {share:.2%} of this guest's CPU time to others.")
    result.write(described, seconds)
    for target in result.targets:
        print(outcome(target))
    print(f"  {seconds:.0f} s; {(RESULTS / name).relative_to(ROOT)}.md", flush=True)
    return result


def outcome(target):
    """A target as a line of the terminal."""
    limit = f"{tables.SIGNS[target['op']]} {shown(target['limit'], target['unit'])}"
    mark = "ok    " if target["met"] else "MISSED"
    return f"  {mark} {target['what']}: {shown(target['value'], target['unit'])} (must be {limit})"


def main(names):
    if os.geteuid() != 0:
        raise BenchError("the bench loads eBPF programs and makes network namespaces: sudo make bench")
    every = known()
    for name in names:
        if name not in every:
            raise BenchError(f"there is no scenario '{name}'; there are: {', '.join(every)}")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    described = machine.describe()
    print(machine.line(described), flush=True)
    began = time.monotonic()
    host = Host()
    try:
        results = [play(name, host, described) for name in names or every]
    finally:
        host.close()
    tables.write_index()
    targets = [target for result in results if result for target in result.targets]
    missed = sum(not target["met"] for target in targets)
    failed = results.count(None)
    print(
        f"{len(targets) - missed} of {len(targets)} targets met"
        + (f", {failed} scenarios failed" if failed else "")
        + f", in {time.monotonic() - began:.0f} s; see {RESULTS.relative_to(ROOT)}/README.md"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    os.chdir(pathlib.Path(__file__).resolve().parents[1])
    try:
        status = main(sys.argv[1:])
    except (BenchError, AssertionError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("ended early; everything it made is removed", file=sys.stderr)
        status = 130
    sys.exit(status)
