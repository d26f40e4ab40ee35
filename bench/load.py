"""Load on a way to nginx, and what it measured: wrk, h2load and bench/native/load.c."""

import json
import re
import subprocess

from meshtest.host import need

from .figures import percentile
from .peers import bound
from .stage import BenchError

# What wrk says of requests that did not come to a good end.
FAILED = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)|Non-2xx.*: (\d+)")


def wrk(stage, world, ports, connections, seconds=1, short=False):
    """Requests per second over all of `ports`, each of which has a wrk of one thread with its share of the
    connections, bound to the CPU of the port's number in the list. `short`: a new connection a request."""
    running = []
    for cpu, port in enumerate(ports):
        share = connections // len(ports) + (cpu < connections % len(ports))
        if share:
            words = [*bound(cpu), need("wrk"), "-t", 1, "-c", share, "-d", f"{seconds}s"]
            words += ["-H", "Connection: close"] if short else []
            running.append(
                stage.process(
                    world,
                    *words,
                    f"http://127.0.0.1:{port}/",
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
    rate = 0.0
    for process in running:
        said, complaint = process.communicate(timeout=seconds + 30)
        found = re.search(r"Requests/sec:\s*([\d.]+)", said)
        failed = sum(int(number) for groups in FAILED.findall(said) for number in groups if number)
        if process.returncode != 0 or not found or failed:
            raise BenchError(f"wrk: {failed} requests failed: {complaint or said}")
        rate += float(found[1])
    return rate


class Load:
    """A run of bench/native/load.c over consecutive ports, under way; see there."""

    def __init__(self, stage, world, ports, connections, seconds, rate=None, warmup=0.1, cpu=None):
        words = [*bound(cpu), stage.program("load"), "--ports", f"{ports[0]}-{ports[-1]}"]
        words += ["--connections", connections, "--seconds", seconds, "--warmup", warmup]
        words += ["--rate", rate] if rate else []
        self._process = stage.process(world, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self):
        """Waits for its end and returns what it prints."""
        said, complaint = self._process.communicate(timeout=60)
        if self._process.returncode != 0:
            raise BenchError(complaint.strip() or "load failed")
        found = json.loads(said)
        if found["errors"] or not found["requests"]:
            raise BenchError(f"load: {found['errors']} of {found['requests']} requests failed")
        return found


def load(*arguments, **options):
    """A run of bench/native/load.c, from its beginning to what it prints."""
    return Load(*arguments, **options).finish()


def h2load(stage, world, port, connections, seconds, rate, cpu=None):
    """The latencies in microseconds, all of them, that h2load logs at a fixed rate in its HTTP/1 mode."""
    log = stage.directory / "h2load.log"
    log.unlink(missing_ok=True)
    words = [*bound(cpu), need("h2load"), "--h1", "-c", connections, "-D", seconds, "--warm-up-time", "100ms"]
    words += ["--rps", rate / connections, "--log-file", log, f"http://127.0.0.1:{port}/"]
    world.near.run(*words, cgroup=stage.host.tests, timeout=seconds + 30)
    lines = [line.split() for line in log.read_text().splitlines()]
    failed = sum(status != "200" for _, status, _ in lines)
    if failed or not lines:
        raise BenchError(f"h2load: {failed} of {len(lines)} requests failed")
    return [int(microseconds) for _, _, microseconds in lines]


# The percentiles that a sidecar's users look at, and what load.c calls them.
PERCENTILES = {"p50": (0.5, "p50_ns"), "p90": (0.9, "p90_ns"), "p99": (0.99, "p99_ns"), "p99.9": (0.999, "p999_ns")}


def of_load(found):
    """The percentiles of one run of load(), in microseconds."""
    return {name: found[key] / 1000 for name, (_, key) in PERCENTILES.items()}


def of_h2load(latencies):
    """The percentiles of one run of h2load()."""
    return {name: percentile(latencies, share) for name, (share, _) in PERCENTILES.items()}
