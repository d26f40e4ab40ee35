"""A minute of `make soak`: whatever happens to the agent and around it, counts are exact and what it holds is flat."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from meshtest.agent import ROOT
from meshtest.host import cgroup_mount, poll, scaled
from meshtest.native import SEED
from soak.__main__ import FLAT, Soak

PINS = "/sys/fs/bpf/mesh-agent"


@contextlib.contextmanager
def soak(directory, minutes, **options):
    """A soak in a process of its own, which does not outlive the test."""
    words = [sys.executable, "-m", "soak", "--minutes", minutes, "--seed", SEED, "--no-plots", "--results", directory]
    run = subprocess.Popen(
        [str(word) for word in words], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "Tests")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    try:
        yield run
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.communicate(timeout=scaled(60))
            run.kill()


def pins(pid):
    """The pins of a soak of that process."""
    return [name for name in os.listdir(PINS) if f"mesh-bench-{pid}-" in name] if os.path.isdir(PINS) else []


def left(pid):
    """What a soak of that process has left."""
    found = [name for name in os.listdir(cgroup_mount()) if name == f"mesh-test-{pid}"]
    found += [name for name in os.listdir("/run/netns") if name.startswith(f"mt-{pid}-")]
    return found + pins(pid)


@pytest.mark.limit(240)
def test_a_minute_of_soak(tmp_path):
    with soak(tmp_path, 1) as run:
        said, complaint = run.communicate(timeout=scaled(200))
    assert run.returncode == 0, said + complaint
    assert said.endswith("exact and flat\n")
    result = json.loads((tmp_path / "soak.json").read_text())
    figures = {row["what"]: row["median"] for row in result["rows"]}
    assert min(figures["requests"], figures["connections"], figures["connects refused by a breaker"]) > 0
    assert figures["faults"] > 0 and len({sample["pid"] for sample in result["samples"]}) > 1
    assert left(run.pid) == []


@pytest.mark.limit(120)
def test_a_soak_that_is_interrupted_leaves_nothing(tmp_path):
    with soak(tmp_path, 60, start_new_session=True) as run:
        poll(lambda: pins(run.pid), 30, what="its agent is there")
        # As a terminal does it: to all of its processes.
        os.killpg(run.pid, signal.SIGINT)
        said, complaint = run.communicate(timeout=scaled(60))
    assert run.returncode == 130, said + complaint
    assert "everything it made is removed" in complaint
    assert left(run.pid) == []


def judged(**growth):
    """What a soak of 80 seconds says of figures that grow by so much a second."""
    made = Soak(None, 80, SEED)
    made.samples = [{"seconds": n, **{key: 5000 + growth.get(key, 0) * n for key in FLAT}} for n in range(80)]
    made.judge()
    return made.problems


def test_what_grows_is_not_flat():
    assert judged() == []
    assert judged(descriptors=1) == [
        "descriptors is not flat: 5,030 in the second quarter, 5,070 in the last",
        "descriptors is not flat: 5,050 in the third quarter, 5,070 in the last",
    ]
    assert judged(resident_kib=25) == []
    assert judged(resident_kib=55) == ["resident_kib is not flat: 6,622 in the second quarter, 8,822 in the last"]
