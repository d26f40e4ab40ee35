"""A machine with a systemd of its own: namespaces over a copy of this host's files that is kept in memory.
What is installed, started or broken there is gone with it, and the host's own root is never written to."""

import os
import pathlib
import shutil
import signal
import subprocess

from .host import poll, run

SCRIPT = pathlib.Path(__file__).with_name("machine.sh")


class Machine:
    """`cgroup` becomes the root of what the machine sees of cgroup2."""

    def __init__(self, directory, cgroup):
        self.directory, self.cgroup = pathlib.Path(directory), cgroup
        self.console = open(self.directory / "console", "wb")
        (self.directory / "disk").mkdir()
        isolated = [
            "unshare",
            "--mount",
            "--propagation=private",
            "--pid",
            "--fork",
            "--uts",
            "--ipc",
            "--net",
            "--cgroup",
        ]
        enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', cgroup.procs]
        self._unshare = subprocess.Popen(
            [*enter, *isolated, str(SCRIPT), str(self.directory / "disk")],
            stdin=subprocess.DEVNULL,
            stdout=self.console,
            stderr=self.console,
        )
        self.pid = poll(self._first, what="the machine's first process")
        poll(lambda: self.try_run("systemctl", "is-system-running").stdout.strip() == "running", 30, 0.05, self.log())

    def _first(self):
        assert self._unshare.poll() is None, self.log()
        with open(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children") as file:
            return int(file.read() or 0)

    def log(self):
        return "the machine runs; its console: " + (self.directory / "console").read_text()

    def try_run(self, *words, **options):
        """Runs a command in the machine, whatever comes of it."""
        inside = ["nsenter", f"--target={self.pid}", "--all", "--root", "--wd=/", "--"]
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND": "noninteractive",
            "LC_ALL": "C.UTF-8",
        }
        return run(*inside, *words, check=False, env=environment, **options)

    def run(self, *words, **options):
        """Runs a command in the machine and returns what it prints; it must succeed."""
        done = self.try_run(*words, **options)
        assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def put(self, path, target):
        """Copies a file into the machine."""
        shutil.copy(path, f"/proc/{self.pid}/root{target}")

    def service(self, name, key):
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={key}", name).strip()

    def written(self, *found):
        """The paths that were written, and are there, that `find` finds."""
        lines = self.run("find", "/run/written", *found, "!", "-type", "c").splitlines()
        return sorted(line.removeprefix("/run/written") for line in lines)

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait(15)
        self.console.close()
        self.cgroup.remove()
