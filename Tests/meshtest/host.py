"""The host side of a test: waiting for events, running commands, and cgroups and network namespaces
that are made for the test and gone after it."""

import contextlib
import ctypes
import errno
import glob
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()
# How many times longer than on a usual machine the tests wait before they give up: software emulation is
# slow. It moves limits alone, never what a test expects.
TIME_SCALE = float(os.environ.get("MESH_TEST_TIME_SCALE", "1"))


def scaled(seconds):
    """A limit in seconds, on this machine."""
    return seconds * TIME_SCALE


def poll(probe, timeout=5.0, interval=0.005, what=None):
    """Calls `probe` until it returns something true, and returns that; fails past `timeout` seconds."""
    timeout = scaled(timeout)
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or getattr(probe, '__name__', 'condition')}")
        time.sleep(interval)


def run(*command, check=True, input=None, timeout=60, env=None):
    """Runs a command to its end and returns it with its output as text; fails when the command does."""
    words = [str(word) for word in command]
    done = subprocess.run(words, input=input, capture_output=True, text=True, timeout=scaled(timeout), env=env)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stderr or done.stdout}")
    return done


def need(program):
    """The path of a program the tests rely on; a missing one fails the test, nothing is skipped."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin:/opt/swift/usr/bin")
    assert path, f"{program} is missing: install its Debian package"
    return path


def cgroup_mount():
    """Where cgroup2 is mounted, from mountinfo."""
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            fields, rest = line.split(" - ")
            if rest.split()[0] == "cgroup2":
                return fields.split()[4]
    raise AssertionError("no cgroup2 is mounted")


def fill(path):
    """Takes what room there is."""
    with open(path, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"." * 4096):
            pass


class Cgroup:
    """A cgroup2 directory; `path` is relative to the mount and begins with a slash."""

    def __init__(self, path):
        self.path = path
        self.directory = cgroup_mount() + path

    @classmethod
    def current(cls):
        with open("/proc/self/cgroup") as lines:
            for line in lines:
                if line.startswith("0::"):
                    return cls(line.rstrip("\n")[3:])
        raise AssertionError("this process is in no cgroup2")

    @property
    def procs(self):
        return os.path.join(self.directory, "cgroup.procs")

    @property
    def id(self):
        return os.stat(self.directory).st_ino

    def at(self, name):
        return Cgroup(self.path.rstrip("/") + "/" + name)

    def child(self, name):
        made = self.at(name)
        os.mkdir(made.directory)
        return made

    def adopt(self, pid):
        with open(self.procs, "w") as file:
            file.write(str(pid))

    def pids(self):
        """The processes in it."""
        try:
            with open(self.procs) as file:
                return [int(line) for line in file]
        except OSError as error:
            # A threaded cgroup has threads alone.
            if error.errno != errno.EOPNOTSUPP:
                raise
            with open(os.path.join(self.directory, "cgroup.threads")) as file:
                return [int(line) for line in file]

    def remove(self):
        """Ends what still runs inside and removes the directory with all below it."""
        for directory, _, _ in os.walk(self.directory, topdown=False):
            inside = Cgroup(directory[len(cgroup_mount()) :])

            def emptied():
                for pid in inside.pids():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                try:
                    os.rmdir(directory)
                except FileNotFoundError:
                    return True
                except OSError:
                    return False
                return True

            poll(emptied, what=f"{directory} removed")


class Netns:
    """A network namespace with its own lo up. Sockets made through it stay in it, whoever uses them."""

    def __init__(self, name):
        self.name = name
        self.path = f"/run/netns/{name}"
        run("ip", "netns", "add", name)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self.ip("link", "set", "lo", "up")

    def ip(self, *words, **options):
        return run("ip", "-n", self.name, *words, **options)

    def batch(self, *lines):
        return run("ip", "-n", self.name, "-batch", "-", input="\n".join(lines) + "\n")

    def command(self, *words, cgroup=None):
        """The words that run a command here, in `cgroup` if there is one."""
        prefix = ["nsenter", f"--net={self.path}", "--"]
        if cgroup:
            prefix += ["sh", "-c", 'echo $$ > "$0" && exec "$@"', cgroup.procs]
        return prefix + [str(word) for word in words]

    def run(self, *words, cgroup=None, **options):
        return run(*self.command(*words, cgroup=cgroup), **options)

    def popen(self, *words, cgroup=None, **options):
        return subprocess.Popen(self.command(*words, cgroup=cgroup), **options)

    def sysctl(self, name, value):
        with self.entered(), open("/proc/sys/" + name.replace(".", "/"), "w") as file:
            file.write(str(value))

    @contextlib.contextmanager
    def entered(self):
        """The calling thread is in this namespace, until the block ends."""
        before = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self.fd)
            yield
        finally:
            _setns(before)
            os.close(before)

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0, timeout=10.0):
        with self.entered():
            made = socket.socket(family, kind, protocol)
        made.settimeout(scaled(timeout))
        return made

    def close(self):
        os.close(self.fd)
        run("ip", "netns", "del", self.name)


def _setns(fd):
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Outside:
    """A process that stays out of the scratch cgroup and makes sockets there for the tests, so that a
    scrape of the agent, or a server that must not be seen, is not among what the agent measures."""

    def __init__(self):
        self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            self._here.close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _serve_sockets(there)
            os._exit(0)
        there.close()

    def socket(self, netns, family=socket.AF_INET, kind=socket.SOCK_STREAM, timeout=10.0):
        with self._lock:
            self._here.send(json.dumps([netns.path, int(family), int(kind)]).encode())
            reply, fds, _, _ = socket.recv_fds(self._here, 4096, 1)
        assert reply == b"ok", reply.decode()
        made = socket.socket(fileno=fds[0])
        made.settimeout(scaled(timeout))
        return made

    def close(self):
        self._here.close()
        os.waitpid(self.pid, 0)


def _serve_sockets(channel):
    while True:
        request = channel.recv(4096)
        if not request:
            return
        try:
            path, family, kind = json.loads(request)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            _setns(fd)
            os.close(fd)
            made = socket.socket(family, kind)
            socket.send_fds(channel, [b"ok"], [made.fileno()])
            made.close()
        except OSError as error:
            channel.send(str(error).encode())


class Host:
    """The session's scratch cgroup, with the test process itself moved into its child `tests`."""

    def __init__(self):
        self._sweep()
        self.home = Cgroup.current()
        self.outside = Outside()
        self.scratch = Cgroup("/").child(f"mesh-test-{os.getpid()}")
        self.tests = self.scratch.child("tests")
        self.tests.adopt(os.getpid())

    @staticmethod
    def _sweep():
        """Removes what a test run that was killed left: cgroups and namespaces whose process is gone."""
        for directory in glob.glob(cgroup_mount() + "/mesh-test-*"):
            if not os.path.exists("/proc/" + os.path.basename(directory).split("-")[2]):
                Cgroup(directory[len(cgroup_mount()) :]).remove()
        for path in glob.glob("/run/netns/mt-*"):
            if not os.path.exists("/proc/" + path.split("-")[1]):
                run("ip", "netns", "del", os.path.basename(path), check=False)

    def close(self):
        self.home.adopt(os.getpid())
        self.scratch.remove()
        self.outside.close()


ADDRESSES = {
    # route: (server in far?, client family, server family, address to listen at, address to connect to)
    "lo4": (False, socket.AF_INET, socket.AF_INET, "127.0.0.1", "127.0.0.1"),
    "lo6": (False, socket.AF_INET6, socket.AF_INET6, "::1", "::1"),
    "veth4": (True, socket.AF_INET, socket.AF_INET, "10.77.0.2", "10.77.0.2"),
    "veth6": (True, socket.AF_INET6, socket.AF_INET6, "fd77::2", "fd77::2"),
    "mapped": (False, socket.AF_INET6, socket.AF_INET6, "::", "::ffff:127.0.0.1"),
    "veth-mapped": (True, socket.AF_INET6, socket.AF_INET6, "::", "::ffff:10.77.0.2"),
}
LOOPBACK = ["lo4", "lo6", "mapped"]
ROUTES = list(ADDRESSES)


def endpoints(port):
    """The endpoints of a service on `port` by every route there is."""
    return [f"127.0.0.1:{port}", f"[::1]:{port}", f"10.77.0.2:{port}", f"[fd77::2]:{port}"]


def mac_of(ipv4):
    """The hardware address of the device with an address, in the worlds of these tests."""
    return "02:00:" + ":".join(f"{int(byte):02x}" for byte in ipv4.split("."))


def _device(name, v4, v6, peer_v4, peer_v6, peer_mac):
    return (
        f"addr add {v4}/24 dev {name}",
        f"addr add {v6}/64 dev {name} nodad",
        f"link set {name} up",
        f"neigh replace {peer_v4} lladdr {peer_mac} dev {name} nud permanent",
        f"neigh replace {peer_v6} lladdr {peer_mac} dev {name} nud permanent",
    )


class World:
    """Two namespaces joined by a veth pair: `near`, where the agent and the clients are, and `far`.
    IPv4 10.77.0.1 and .2, IPv6 fd77::1 and ::2; the device is called `veth0` at both ends."""

    def __init__(self, host):
        self.host = host
        self._netns = []
        self._sockets = []
        self.near = self.netns()
        self.far = self.netns()
        self.join(self.near, "veth0", self.far, "veth0", "10.77.0.1", "10.77.0.2", "fd77::1", "fd77::2")

    def netns(self):
        made = Netns(f"mt-{os.getpid()}-{next(_serial)}")
        self._netns.append(made)
        return made

    @staticmethod
    def join(one, device, other, other_device, v4, other_v4, v6, other_v6):
        """A veth pair between two namespaces, with an address of each family on each end. Each end knows
        the other's hardware address: an IPv6 neighbour that has to be asked for first costs a second."""
        mac, other_mac = mac_of(v4), mac_of(other_v4)
        one.ip(
            "link",
            "add",
            device,
            "address",
            mac,
            "type",
            "veth",
            "peer",
            "name",
            other_device,
            "address",
            other_mac,
            "netns",
            other.name,
        )
        one.batch(*_device(device, v4, v6, other_v4, other_v6, other_mac))
        other.batch(*_device(other_device, other_v4, other_v6, v4, v6, mac))

    def pod(self, number):
        """A namespace behind a veth whose host end, `pod<number>`, is in `near`: 10.9<number>.0.2."""
        made = self.netns()
        v4, v6 = f"10.9{number}.0", f"fd9{number}:"
        self.join(self.near, f"pod{number}", made, "eth0", f"{v4}.1", f"{v4}.2", f"{v6}:1", f"{v6}:2")
        made.batch(f"route add default via {v4}.1")
        self.near.sysctl("net.ipv4.ip_forward", 1)
        return made

    def keep(self, made):
        """A socket to be closed with this world."""
        self._sockets.append(made)
        return made

    def listen(self, route, port, backlog=512, outside=False, **options):
        """A listening socket at the server's end of a route."""
        far, _, family, address, _ = ADDRESSES[route]
        return self.listen_at(self.far if far else self.near, address, port, backlog, outside, family, **options)

    def listen_at(self, netns, address, port, backlog=512, outside=False, family=None, protocol=0):
        family = family or (socket.AF_INET6 if ":" in address else socket.AF_INET)
        made = self.keep(
            self.host.outside.socket(netns, family) if outside else netns.socket(family, protocol=protocol)
        )
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
        made.bind((address, port))
        made.listen(backlog)
        return made

    def client(self, route, outside=False):
        """An unconnected client socket for a route, and the address it would connect to."""
        _, family, _, _, address = ADDRESSES[route]
        made = self.host.outside.socket(self.near, family) if outside else self.near.socket(family)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.keep(made), address

    def connect(self, route, port, outside=False):
        made, address = self.client(route, outside)
        made.connect((address, port))
        return made

    def pair(self, route, port, listener=None):
        """A connection's two ends: (client, server)."""
        own = listener or self.listen(route, port)
        client = self.connect(route, port)
        server, _ = own.accept()
        server.settimeout(scaled(10.0))
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.keep(server)
        if listener is None:
            own.close()
        return client, server

    def close(self):
        for made in self._sockets:
            made.close()
        for netns in reversed(self._netns):
            netns.close()
