"""What the demo runs in: two network namespaces with a veth pair between them, a cgroup, a directory.

The namespaces have no names: they live as long as the processes in them, and each process dies
with the demo (PR_SET_PDEATHSIG), so that even kill -9 leaves nothing that runs.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHON = ["/usr/bin/python3", "-B"]
PREFIX = "mesh-demo-"

CLIENT_ADDRESSES = ("10.77.0.1/24", "fd77::1/64")
SERVER_ADDRESSES = ("10.77.0.2/24", "fd77::2/64")
SERVER_INTERFACE = "server0"

# Enters a cgroup ($1), then becomes the rest of the arguments; dies when its parent does.
ENTER = 'echo 0 >"$1" && shift && exec setpriv --pdeathsig KILL "$@"'


class StageError(Exception):
    """Something that the demo needs is not there; the text says what to do."""


def cgroup2_mount():
    """Where cgroup2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside cgroup 1."""
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == "cgroup2":
            return pathlib.Path(fields.split()[4])
    raise StageError("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


def alive(pid):
    return pathlib.Path(f"/proc/{pid}").exists()


def remove_cgroup(path):
    """Removes a cgroup and those below it; waits a moment for the dead to leave it."""
    for attempt in range(100):
        try:
            for directory, _, _ in os.walk(path, topdown=False):
                os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
    raise StageError(f"the cgroup {path} cannot be removed: a process is still in it")


def pins():
    """What is pinned in the BPF file system."""
    return set(pathlib.Path("/sys/fs/bpf").rglob("*"))


def sweep():
    """Removes what a killed demo left: its cgroup and its directory (nothing of it runs any more)."""
    for path in cgroup2_mount().glob(f"{PREFIX}*.slice"):
        if not alive(path.name[len(PREFIX) :].removesuffix(".slice")):
            remove_cgroup(path)
    for path in pathlib.Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not alive(path.name[len(PREFIX) :]):
            shutil.rmtree(path, ignore_errors=True)


class Stage:
    """Makes all of it, and on leaving the `with` block removes all of it, last made first."""

    def __init__(self):
        name = f"{PREFIX}{os.getpid()}"
        self.directory = pathlib.Path(tempfile.gettempdir()) / name
        self.cgroup = cgroup2_mount() / f"{name}.slice"
        self.processes = []
        self.namespaces = {}
        self.inodes = set()
        self.pins = pins()

    def __enter__(self):
        try:
            sweep()
            self.directory.mkdir(mode=0o700)
            self.cgroup.mkdir()
            self._make_network()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def _make_network(self):
        for side in ("client", "server"):
            holder = self._start(["unshare", "--net", "sleep", "infinity"])
            own = os.readlink("/proc/self/ns/net")
            self.namespaces[side] = f"/proc/{holder.pid}/ns/net"
            while os.readlink(self.namespaces[side]) == own:
                if holder.poll() is not None:
                    raise StageError("unshare --net failed: making network namespaces takes root")
                time.sleep(0.005)
            self.inodes.add(os.readlink(self.namespaces[side]))
        peer = self.namespaces["server"].split("/")[2]
        self._ip("client", f"link add client0 type veth peer name {SERVER_INTERFACE} netns {peer}")
        self._configure("client", "client0", CLIENT_ADDRESSES)
        self._configure("server", SERVER_INTERFACE, SERVER_ADDRESSES)

    def _configure(self, side, interface, addresses):
        for address in addresses:
            self._ip(side, f"address add {address} dev {interface}" + (" nodad" if ":" in address else ""))
        self._ip(side, f"link set {interface} up")
        self._ip(side, "link set lo up")

    def _ip(self, side, arguments):
        subprocess.run(self.inside(side, ["ip", *arguments.split()]), check=True, stdout=subprocess.DEVNULL)

    def inside(self, side, command):
        """The command that runs `command` in a side's network namespace."""
        return ["nsenter", f"--net={self.namespaces[side]}", *command]

    def start(self, command, side, service=None, **options):
        """Starts a long-running command in a side's namespace and, if told, in a service's cgroup."""
        cgroup = None
        if service:
            cgroup = self.cgroup / f"{service}.service"
            cgroup.mkdir(exist_ok=True)
        return self._start(self.inside(side, command), cgroup, **options)

    def _start(self, command, cgroup=None, **options):
        procs = str(cgroup / "cgroup.procs") if cgroup else "/dev/null"
        # A session of its own: Ctrl-C reaches the demo alone, which then ends each in order.
        process = subprocess.Popen(
            ["sh", "-c", ENTER, "sh", procs, *command],
            cwd=ROOT,
            start_new_session=True,
            **options,
        )
        self.processes.append(process)
        return process

    def stop(self, process, seconds=5):
        """Ends a process: asks, then kills."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()
        if process in self.processes:
            self.processes.remove(process)

    def close(self):
        # A second Ctrl-C does not keep this from its end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while self.processes:
            self.stop(self.processes[-1])
        if self.cgroup.exists():
            remove_cgroup(self.cgroup)
        shutil.rmtree(self.directory, ignore_errors=True)

    def left_behind(self):
        """What is still there after close(): an empty list, or something is wrong."""
        left = [str(path) for path in (self.cgroup, self.directory) if path.exists()]
        left += [str(pin) for pin in sorted(pins() - self.pins)]
        for link in pathlib.Path("/proc").glob("[0-9]*/ns/net"):
            try:
                if os.readlink(link) in self.inodes:
                    left.append(f"process {link.parts[2]} in a namespace of the demo")
            except OSError:
                pass  # It ended while we looked.
        return left
