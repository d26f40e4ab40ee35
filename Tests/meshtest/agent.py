"""The agent under test: started in a namespace with a configuration of the test's, watched through
/metrics, the control API and meshctl, and stopped with a check that nothing of it is left."""

import datetime
import glob
import gzip
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
import urllib.parse

from .host import poll, run, scaled
from .metrics import parse_openmetrics, parse_text
from .native import native

ROOT = pathlib.Path(__file__).resolve().parents[2]
PORT = 9464
REQUESTS = "mesh_request_duration_seconds"
# As in CapEff: CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF. It has to do with these.
CAPABILITIES = 1 << 12 | 1 << 38 | 1 << 39
# May raise its priority with this one.
CAP_SYS_NICE = 1 << 23


def binary(name, variable):
    """An executable of the project: from the environment, or what was built last."""
    if os.environ.get(variable):
        return os.environ[variable]
    for kind in ("release", "debug"):
        path = ROOT / ".build" / kind / name
        if path.exists():
            return str(path)
    raise AssertionError(f"{name} is not built: run `make build`, or set {variable}")


def same(one, other):
    """Whether two answers of the agent say the same; times may differ by the clocks' last digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, str) and isinstance(other, str) and one.endswith("Z") and other.endswith("Z"):
        one, other = (datetime.datetime.fromisoformat(text[:-1]) for text in (one, other))
        return abs(one - other) <= datetime.timedelta(milliseconds=5)
    return one == other


def commits(agent):
    return agent.metrics().value("mesh_agent_state_commits_total")


def committed(agent):
    """Waits until all that was counted is in the state: there are no more commits, of which there would be one
    each second."""

    def idle():
        before = commits(agent)
        time.sleep(1.5)
        return commits(agent) == before

    poll(idle, 20, 0, "the state is complete")


class _ControlConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout=10.0):
        super().__init__("localhost", timeout=scaled(timeout))
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Follow:
    """A control endpoint's stream of JSON lines, opened before what it shall see happens."""

    def __init__(self, path, target):
        self._connection = _ControlConnection(path)
        self._connection.request("GET", target)
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()

    def until(self, wanted):
        """Reads on to the first line for which `wanted` holds, and returns that."""
        while True:
            line = self._response.readline()
            assert line, "the stream ended"
            found = json.loads(line)
            if wanted(found):
                return found

    def close(self):
        self._connection.close()


class Agent:
    """One `mesh-agent run`. `config` lacks what every test agrees on; see `settings`. It runs confined: with
    these capabilities, and nothing to write to but its control socket's directory and bpffs. With
    `capabilities=None` it runs as root does by itself."""

    def __init__(
        self,
        world,
        directory,
        config,
        cgroup=None,
        environment=None,
        port=PORT,
        arguments=(),
        capabilities=CAPABILITIES,
        home=None,
    ):
        self.world, self.directory, self.port = world, pathlib.Path(directory), port
        self.cgroup = cgroup or world.host.scratch
        # Where it runs itself: outside of what it measures, unless said otherwise.
        self.home = home or world.host.home
        self.environment = {**os.environ, **(environment or {})}
        self.arguments, self.capabilities = list(arguments), capabilities
        # Words before the command, and before those that confine it.
        self.prefix = []
        self.program = binary("mesh-agent", "MESH_AGENT")
        self.config_path = self.directory / "config.json"
        control = self.directory / "control"
        control.mkdir(mode=0o700, exist_ok=True)
        self.control = str(control / "control.sock")
        self.log_path = self.directory / "agent.log"
        self.process = None
        self.killed = False
        self.write(config)

    def settings(self, config):
        return {"cgroup": self.cgroup.path, "interfaces": ["auto"], "listen": f"127.0.0.1:{self.port}", **config}

    def write(self, config):
        self.config_path.write_text(json.dumps(self.settings(config), indent=2))

    # Life

    # What was attached before the first agent of a control socket, which those that take over leave too.
    _before = {}

    def launch(self):
        """Starts the process without waiting for it."""
        if not self.pins():
            self._before[self.control] = self.attachments()
        self.before = self._before[self.control]
        return self.spawn()

    def spawn(self, **environment):
        """The same, with no look at what is attached."""
        self.log = open(self.log_path, "ab")
        self.process = self.world.near.popen(
            *self.prefix,
            *self.confinement(),
            self.program,
            "run",
            "--config",
            self.config_path,
            "--control",
            self.control,
            "--log-format",
            "json",
            *self.arguments,
            cgroup=self.home,
            stdout=self.log,
            stderr=self.log,
            env={**self.environment, **environment},
        )
        return self

    def confinement(self):
        """The words before a command that confine it."""
        if self.capabilities is None:
            return []
        # The agent makes its control socket's directory, if need be, in one that is there.
        place = pathlib.Path(self.control).parent
        while not os.path.exists(place):
            place = place.parent
        writable = [place, *(["/sys/fs/bpf"] if os.path.isdir("/sys/fs/bpf") else [])]
        return [native("confine"), f"{self.capabilities:x}", *writable, "--"]

    def start(self, timeout=20.0):
        """Starts the agent and waits until it says that it is ready."""
        self.launch()

        def ready():
            assert self.process.poll() is None, f"the agent ended: {self.log_path.read_text()}"
            try:
                return self.get("/readyz")[0] == 200 and self.status()["pid"] == self.process.pid
            except (OSError, http.client.HTTPException):
                return False

        poll(ready, timeout, 0.01, "the agent is ready")
        return self

    def signal(self, number):
        os.kill(self.process.pid, number)

    def pause(self):
        """Stops the agent with SIGSTOP, and returns when it stands still."""
        self.signal(signal.SIGSTOP)
        poll(lambda: self._state() == "T", what="the agent stopped")

    def resume(self):
        self.signal(signal.SIGCONT)

    def cpu(self):
        """The CPU that the engine's thread runs on, or ran on last (proc(5), stat, processor)."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[36])

    def _state(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]

    def stop(self, code=0):
        """Ends the agent with TERM and checks how it left."""
        self.resume()
        self.signal(signal.SIGTERM)
        assert self.process.wait(scaled(15)) == code, self.log_path.read_text()
        self.log.close()
        assert self.attachments() == self.before, "left behind after the agent's end"
        # Its filter lets through all that it does.
        assert "calls were refused" not in self.log_path.read_text()
        self.process = None

    def kill(self):
        self.signal(signal.SIGKILL)
        self.ended(-signal.SIGKILL)

    def ended(self, code):
        """Waits for an end that leaves everything as it was: a killed agent's, or one's with `--keep`."""
        assert self.process.wait(scaled(15)) == code, self.log_path.read_text()
        self.log.close()
        self.process = None
        self.killed = True

    def cleanup(self):
        """Removes what a killed agent left."""
        if self.pins():
            self.meshctl("cleanup")
        assert self.attachments() == self.before, "left behind after the cleanup"

    def pins(self):
        """The directory of this agent's pins, if there is one."""
        if "--pins" in self.arguments:
            directory = self.arguments[self.arguments.index("--pins") + 1]
            return directory if os.path.exists(directory) else None
        name = re.sub("[^A-Za-z0-9-]", "_", self.control)
        return next(iter(glob.glob(f"/sys/fs/bpf/mesh-agent/{name}_????????")), None)

    def attachments(self):
        """What of the agent's is attached: its programs in the cgroup and on this world's devices, and pins."""
        found = [f"pins: {self.pins()}"] if self.pins() else []
        tree = json.loads(run("bpftool", "-j", "cgroup", "tree", self.cgroup.directory).stdout.strip() or "[]")
        for directory in tree:
            found += [
                f"{directory['cgroup']}: {program['attach_type']} {program['name']}"
                for program in directory["programs"]
                if program["name"].startswith("mesh")
            ]
        for netns in self.world._netns:
            for device in json.loads(run("ip", "-j", "-n", netns.name, "link").stdout):
                for hook in ("ingress", "egress"):
                    shown = netns.run("tc", "filter", "show", "dev", device["ifname"], hook, check=False).stdout
                    found += [line for line in shown.splitlines() if " mesh" in line]
        return found

    def reload(self, config=None):
        """Sends HUP, with a new configuration if there is one, and waits until the agent has taken it
        (or refused it): returns the `config` part of its status."""
        before = self.status()["config"]
        if config is not None:
            self.write(config)
        self.signal(signal.SIGHUP)

        def done():
            now = self.status()["config"]
            return now if now != before else None

        return poll(done, 20.0, 0.02, "the reload is done")

    def logs(self):
        """The log so far, one object a line."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines() if line]

    # HTTP

    def get(self, path, headers=None, method="GET"):
        """A scrape from outside the cgroup: (status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=scaled(10))
        connection.sock = self.world.host.outside.socket(self.world.near)
        try:
            connection.sock.connect(("127.0.0.1", self.port))
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def page(self, accept=None, encoding=None):
        headers = {}
        if accept:
            headers["Accept"] = accept
        if encoding:
            headers["Accept-Encoding"] = encoding
        status, answered, body = self.get("/metrics", headers)
        assert status == 200, (status, body)
        if answered.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return answered, body.decode("utf-8")

    def metrics(self):
        return parse_text(self.page()[1])

    def openmetrics(self):
        return parse_openmetrics(self.page(accept="application/openmetrics-text; version=1.0.0")[1])

    # Control

    def api(self, method, target, body=None):
        """A request to the control API: (status, parsed body)."""
        connection = _ControlConnection(self.control)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, target, payload, {"Content-Type": "application/json"} if payload else {})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def ask(self, target):
        status, answer = self.api("GET", target)
        assert status == 200, answer
        return answer

    def tell(self, method, target, body=None):
        status, answer = self.api(method, target, body)
        assert status == 200, answer
        return answer

    def status(self):
        return self.ask("/v1/status")

    def breaker(self, service):
        return self.ask("/v1/breakers/" + urllib.parse.quote(service, safe=""))

    def override(self, service, state, seconds=900, reason="a test"):
        path = f"/v1/breakers/{urllib.parse.quote(service, safe='')}/{state}"
        return self.tell("POST", path, {"reason": reason, "for_seconds": seconds})

    def automatic(self, service):
        return self.tell("POST", f"/v1/breakers/{urllib.parse.quote(service, safe='')}/auto", {})

    def wait_state(self, service, state, timeout=5.0):
        """Waits until the breaker is in a state, and returns it."""

        def reached():
            breaker = self.breaker(service)
            return breaker if breaker["state"] == state else None

        return poll(reached, timeout, 0.005, f"breaker {service} {state}, it is {self.breaker(service)}")

    def connections(self, service=None, **wanted):
        """The live connections that the agent lists, those with the given fields."""
        target = "/v1/flows" + (f"?service={urllib.parse.quote(service, safe='')}" if service else "")
        return [
            flow for flow in self.ask(target)["connections"] if all(flow[key] == value for key, value in wanted.items())
        ]

    def follow(self, target):
        return Follow(self.control, target)

    def meshctl(self, *words, output="json", code=0, control=None):
        """Runs meshctl: its JSON, or its text with `output="table"`."""
        done = subprocess.run(
            [binary("meshctl", "MESHCTL"), "--control", control or self.control, "-o", output, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=scaled(30),
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        if code:
            return done.stderr
        return json.loads(done.stdout) if output == "json" else done.stdout

    # What was counted

    def codes(self, service, role="client", **labels):
        """The requests of a service, counted for each code."""
        return self.metrics().by(REQUESTS + "_count", "code", service=service, role=role, **labels)

    def attempts(self, service, point):
        """The decisions of a breaker at `connect` or `request`, counted."""
        return self.metrics().by("mesh_breaker_attempts_total", "decision", service=service, point=point)

    def failed(self, service):
        """The connects that failed, counted for each reason."""
        return self.metrics().by("mesh_connections_failed_total", "reason", service=service)

    def lost(self):
        return self.metrics().value("mesh_agent_samples_lost_total")

    def expect(self, read, wanted, timeout=3.0):
        """Checks that a number or table read from the agent comes to be exactly `wanted`, and stays."""
        deadline = time.monotonic() + scaled(timeout)
        while (found := read()) != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert found == wanted
        assert read() == wanted

    def expect_codes(self, service, client, server=None, **options):
        """Checks the requests of both roles; the server's are the client's where nothing else is said."""
        self.expect(lambda: self.codes(service), client, **options)
        self.expect(lambda: self.codes(service, "server"), client if server is None else server, **options)

    def duration(self, service, role="client"):
        """The sum of a service's request durations so far, in seconds."""
        return self.metrics().value(REQUESTS + "_sum", service=service, role=role)


class Agents:
    """Starts agents and ends those that a test leaves running."""

    def __init__(self, world, directory):
        self._world, self._directory, self._started = world, directory, []

    def __call__(self, config=None, start=True, name="agent", world=None, **options):
        directory = self._directory / name
        directory.mkdir(exist_ok=True)
        made = Agent(world or self._world, directory, config or {}, **options)
        self._started.append(made)
        return made.start() if start else made

    def close(self):
        failures = []
        for made in self._started:
            if made.process is None:
                continue
            if made.process.poll() is not None:
                failures.append(
                    f"the agent ended by itself, code {made.process.returncode}: {made.log_path.read_text()}"
                )
                made.killed = True
                continue
            try:
                made.stop()
            except BaseException as error:
                made.process and made.process.kill()
                made.killed = True
                failures.append(str(error))
        # Only now: an agent that was killed may have had a successor.
        for made in self._started:
            if made.killed:
                try:
                    made.cleanup()
                except BaseException as error:
                    failures.append(str(error))
        assert not failures, failures
