#!/usr/bin/python3
"""Runs the kernel tests on other kernels, each in a virtual machine: `make test-kernels`.

    Tests/kernels/run.py [--all] [--record] [--limit SECONDS] [KERNEL...] [-- PYTEST ARGUMENTS]

With no kernel named it takes every one, and essential.txt on each; --all runs the whole of Tests/kernel, which
takes hours. --record writes what the
verifier processed to verifier.json and docs/kernels.md."""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

import record
from debian import KERNELS, ROOT, NoKernel, kernel
from machine import Died, boot

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from meshtest.native import native  # noqa: E402

# Emulation takes ten to fifty times longer than the processor; what waits for the network does not.
TIME_SCALE = "20"
# Too old for the agent: there it must say so.
REFUSED = "5.10"
# What the kernel says of its own faults, at the beginning of a line of the console after its time. Not
# among them: stalls and lockups, which an emulated processor that gets no time reports too.
FAULT = re.compile(r"^(?:\[[ .\d]+\] )?(?:BUG|WARNING|Oops|general protection fault)\b.*", re.MULTILINE)


class Failed(Exception):
    """A kernel on which something failed; the message says what."""


def essential():
    lines = [line.strip() for line in (HERE / "essential.txt").read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def arguments(name, options):
    """What pytest is asked for on a kernel."""
    if options.pytest:
        return options.pytest
    if name == REFUSED:
        return ["Tests/kernels/test_refusal.py"]
    return ["Tests/kernel"] if options.all else essential()


def judge(results):
    """How many tests ran. Fails for one that failed or was skipped, and for a kernel that complained."""
    outcome = json.loads((results / "outcome.json").read_text())
    suite = xml.etree.ElementTree.parse(results / "tests.xml").getroot().find("testsuite").attrib
    if outcome["exit"] != 0 or int(suite["skipped"]) or not int(suite["tests"]):
        raise Failed(
            f"pytest ended with {outcome['exit']}: {suite['failures']} failed, {suite['errors']} had errors and"
            f" {suite['skipped']} were skipped of {suite['tests']}; see {results.relative_to(ROOT)}/guest.log"
        )
    console = (results / "console.log").read_text(errors="replace").replace("\r", "")
    faults = FAULT.findall(console.partition("mesh: the tests begin")[2])
    if faults:
        raise Failed(f"the kernel complained, see {results.relative_to(ROOT)}/console.log:\n" + "\n".join(faults))
    return int(suite["tests"])


def show(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def play(name, options):
    """Runs one kernel's tests. Returns a line about it, and the verifier's counts if they were taken."""
    machine = kernel(name)
    print(f"{name}: booting Linux {machine.release} (Debian {machine.version})", flush=True)
    began = time.monotonic()
    environment = {
        "CI": "true",
        "MESH_TEST_TIME_SCALE": TIME_SCALE,
        "MESH_VERIFIER_REPORT": "/run/results/verifier.json",
    }
    wanted = {"arguments": arguments(name, options), "environment": environment}
    results = boot(machine, wanted, options.limit, show)
    tests = judge(results)
    counts = results / "verifier.json"
    return (
        f"Linux {machine.linux}: {tests} tests passed in {time.monotonic() - began:.0f} s",
        (machine.linux, json.loads(counts.read_text())) if counts.exists() else None,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="the whole of Tests/kernel, not essential.txt alone")
    parser.add_argument("--record", action="store_true", help="write the verifier's counts to the record")
    parser.add_argument("--limit", type=float, default=None, help="seconds that one kernel may take")
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(KERNELS)} (default: all)")
    words = sys.argv[1:]
    mine, pytest = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options = parser.parse_args(mine)
    options.pytest = pytest
    options.limit = options.limit or (20_000 if options.all else 1200)
    unknown = [name for name in options.kernels if name not in KERNELS]
    if unknown:
        parser.error(f"no kernel is called {unknown[0]}: there are {', '.join(KERNELS)}")
    if os.uname().machine != "x86_64":
        sys.exit("error: the kernels that this boots are for x86-64, and so are the binaries that it needs.")
    if subprocess.run(["sh", "-c", "command -v qemu-system-x86_64"], capture_output=True).returncode != 0:
        sys.exit("error: there is no qemu-system-x86_64: run scripts/bootstrap kernels.")

    # So that a machine ends with this, whoever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # What a machine cannot make by itself.
    native("confine")
    native("calls", "Sources/CMeshSystem/sandbox.c")
    told, counts, failed = {}, {}, False
    for name in options.kernels or KERNELS:
        try:
            told[name], counted = play(name, options)
            if counted:
                counts[name] = counted
        except (Failed, Died, NoKernel) as error:
            told[name], failed = f"FAILED: {error}", True
    print("\n" + "\n".join(f"{name:8} {line}" for name, line in told.items()))
    print(record.compared(counts), end="")
    if options.record and not failed:
        record.write(counts)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
