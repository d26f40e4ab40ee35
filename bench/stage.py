"""Where a scenario plays: its namespaces, agents and native programs, all gone when it ends."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from meshtest.agent import CAP_SYS_NICE, CAPABILITIES, Agent
from meshtest.host import World, need, run

from . import BUILD, ROOT

NATIVE = ROOT / "bench" / "native"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
LIBRARIES = ["-lpthread", "-lm", "-l:libbpf.a", "-l:libelf.a", "-l:libz.a"]


class BenchError(Exception):
    """Something that the bench needs is not there, or did not do what it is for."""


class StagedAgent(Agent):
    """The tests' agent as a block: it is stopped, and has left nothing, at the block's end. Beside what those of the
    tests may, it may raise its priority, as it may where it is installed."""

    def __init__(self, *words, **options):
        super().__init__(*words, **{"capabilities": CAPABILITIES | CAP_SYS_NICE, **options})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.stop()
            return
        # It has ended before, as it does beside the bench at a Ctrl-C, which reaches both.
        code, self.process = self.process.returncode, None
        self.log.close()
        if code:
            raise BenchError(f"the agent ended by itself, code {code}: {self.log_path.read_text()}")


class Stage:
    """The place of one scenario. What it hands out is closed with it, last first."""

    def __init__(self, host):
        self.host = host
        self._closing = contextlib.ExitStack()
        # In memory, as /run is on a node: the agent's state lies beside its control socket.
        place = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"mesh-bench-{os.getpid()}-", dir=place))
        self._closing.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._agents = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closing.close()

    def world(self):
        """Two namespaces joined by a veth pair (see meshtest.host.World)."""
        made = World(self.host)
        self._closing.callback(made.close)
        return made

    def agent(self, world, config, **options):
        """A started agent that watches the scratch cgroup and the devices of the world's `near`.
        It is to be used as a block, or ends with the scenario."""
        self._agents += 1
        directory = self.directory / f"agent-{self._agents}"
        directory.mkdir()
        made = StagedAgent(world, directory, config, **options)
        self._closing.callback(made.__exit__)
        made.start()
        return made

    def keep(self, block):
        """Enters a context that ends with the scenario, and returns what it gives."""
        return self._closing.enter_context(block)

    def process(self, world, *words, cgroup=None, **options):
        """A process in `near` and, unless said otherwise, in the cgroup that the agent watches. It is
        ended with the scenario if it still runs then."""
        made = world.near.popen(*words, cgroup=cgroup or self.host.tests, **options)
        self._closing.callback(end, made)
        return made

    def program(self, name):
        """The path of bench/native/NAME.c, compiled."""
        BUILD.mkdir(parents=True, exist_ok=True)
        source, built = NATIVE / f"{name}.c", BUILD / name
        newest = max(path.stat().st_mtime for path in NATIVE.iterdir())
        if not built.exists() or built.stat().st_mtime < newest:
            made = built.with_suffix(f".{os.getpid()}")
            run(
                need("clang"), "-std=gnu11", "-O2", "-g", *WARNINGS, "-I", ROOT / "Sources/CMeshABI/include",
                "-o", made, source, *LIBRARIES,
            )  # fmt: skip
            made.rename(built)
        return str(built)

    def measure(self, world, *words, timeout=120, cgroup=None, **options):
        """Runs a native program in `near` to its end and returns the JSON object that it prints."""
        done = world.near.run(*words, cgroup=cgroup or self.host.tests, timeout=timeout, **options)
        return json.loads(done.stdout)


def end(process):
    """Ends a process that the bench started, if it still runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_seconds(pid):
    """The CPU time of a process so far, of all its threads, to the nanosecond (proc(5), schedstat)."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError):
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                total += int(file.read().split()[0])
    return total / 1e9


def cgroup_seconds(cgroup):
    """The CPU time so far of all that runs or ran in a cgroup, to the microsecond (cgroup-v2, cpu.stat)."""
    with open(f"{cgroup.directory}/cpu.stat") as lines:
        return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6


def kernel_threads_seconds():
    """The CPU time so far of the kernel's own threads: soft interrupts put off, work queues, RCU."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{pid}/stat") as file:
                parent = file.read().rpartition(")")[2].split()[1]
            if parent == "2":
                with open(f"/proc/{pid}/schedstat") as file:
                    total += int(file.read().split()[0])
    return total / 1e9


def memory_kb(pid):
    """What a process has resident, by kind, in KiB: VmRSS, RssAnon, RssFile, RssShmem (proc(5), status)."""
    found = {}
    with open(f"/proc/{pid}/status") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            if name in ("VmRSS", "RssAnon", "RssFile", "RssShmem"):
                found[name] = int(rest.split()[0])
    return found
