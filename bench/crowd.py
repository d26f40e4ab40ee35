"""Many connections over lo, driven line by line (bench/native/scale.c), and the services that they call."""

import json
import os
import subprocess

PORT = 9000


def services(count, port=PORT, breaker=True):
    """The configuration's services for a crowd of as many: 127.1.0.1, 127.1.0.2 ..."""
    made = []
    for number in range(count):
        at = 0x7F010001 + number
        address = ".".join(str(at >> shift & 255) for shift in (24, 16, 8, 0))
        made.append({"name": f"service-{number}", "endpoints": [f"{address}:{port}"]})
        if breaker:
            made[-1]["breaker"] = {"mode": "enforce"}
    return made


class Crowd:
    """Connections to services, both ends in processes of the cgroup that the agent watches or, if not
    `watched`, out of its sight. A block."""

    def __init__(self, stage, world, services, port=PORT, watched=True, cpu=None):
        cgroup = stage.host.tests if watched else stage.host.home
        hold = ["taskset", "-c", str(cpu)] if cpu is not None else []
        self._process = stage.process(
            world, *hold, stage.program("scale"), services, port,
            cgroup=cgroup, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def tell(self, line):
        """Has it do something (see scale.c), and returns what it says when that is done."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the crowd has ended"
        return json.loads(answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()


def hold_on(pid, cpu):
    """Keeps all threads of a process on one CPU."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), {cpu})
