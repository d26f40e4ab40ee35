"""The agent as the demo runs it: its configuration, its meshctl, its metrics."""

import json
import re
import subprocess
import time

from demo.stage import ROOT, StageError

BINARIES = ROOT / ".build" / "release"
METRICS = "127.0.0.1:9464"
CATALOG_PORT, PAYMENTS_PORT = 8080, 9001

# Times are short so that the whole story fits; docs/configuration.md has the usual ones.
BREAKER = {
    "mode": "enforce",
    "window": "2s",
    "minimumRequests": 10,
    "failureRate": 0.5,
    "consecutiveFailures": 5,
    "slowCallDuration": "100ms",
    "slowCallRate": 0.5,
    "openFor": "2s",
    "maxOpenFor": "8s",
    "probe": {"ratio": 0.01, "interval": "200ms", "successes": 3, "ramp": "3s"},
}


def service(name, port):
    return {"name": name, "endpoints": [f"10.77.0.2:{port}", f"[fd77::2]:{port}"], "breaker": BREAKER}


class Refused(Exception):
    """meshctl said no; the text is what it said."""


class Agent:
    def __init__(self, stage):
        self.stage = stage
        self.control = stage.directory / "control.sock"
        self.log_path = stage.directory / "agent.log"
        configuration = {
            "listen": METRICS,
            "cgroup": str(stage.cgroup),
            "services": [service("catalog", CATALOG_PORT), service("payments", PAYMENTS_PORT)],
        }
        path = stage.directory / "config.json"
        path.write_text(json.dumps(configuration, indent=2))
        command = [BINARIES / "mesh-agent", "run", "--config", path, "--control", self.control]
        with open(self.log_path, "wb") as log:
            self.process = stage.start([str(word) for word in command], "client", stdout=log, stderr=log)

    def wait_until_ready(self, seconds=10):
        deadline = time.monotonic() + seconds
        while self._get("/readyz") is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise StageError(
                    f"the agent did not become ready; this may say why:\n{self.last_words()}\n{self._doctor()}"
                )
            time.sleep(0.05)

    def last_words(self):
        """Whether it runs, and the end of its log."""
        try:
            state = f"the agent has ended with status {self.process.wait(0.5)}"
        except subprocess.TimeoutExpired:
            state = "the agent runs"
        lines = self.log_path.read_text(errors="replace").splitlines()[-10:]
        return "\n".join([f"{state}; its log ends with:", *lines])

    def _doctor(self):
        done = subprocess.run([BINARIES / "meshctl", "doctor"], capture_output=True, text=True)
        return done.stdout + done.stderr

    def _command(self, *words):
        return [str(BINARIES / "meshctl"), "--control", str(self.control), *words]

    def meshctl(self, *words):
        """What a meshctl command prints for people."""
        done = subprocess.run(self._command(*words), capture_output=True, text=True)
        if done.returncode:
            raise Refused(done.stderr.strip() or f"meshctl {' '.join(words)}: exit {done.returncode}")
        return done.stdout

    def query(self, *words):
        """What a meshctl command tells scripts."""
        return json.loads(self.meshctl("-o", "json", *words))

    def follow(self, *words):
        """A meshctl command that goes on; its stdout has one JSON object a line."""
        return self.stage.start(
            self._command("-o", "json", *words, "--follow"),
            "client",
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _get(self, path):
        command = ["curl", "-sf", "--max-time", "2", f"http://{METRICS}{path}"]
        done = subprocess.run(self.stage.inside("client", command), capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    def metrics(self):
        return Metrics(self._get("/metrics") or "")

    def memory_bytes(self):
        return self.metrics().total("process_resident_memory_bytes")


class Metrics:
    """One scrape: series by name and labels."""

    LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
    LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

    def __init__(self, text):
        self.series = []
        for line in text.splitlines():
            if match := self.LINE.match(line):
                self.series.append((match[1], dict(self.LABEL.findall(match[2] or "")), float(match[3])))

    def total(self, name, **wanted):
        """The sum over the series that have these labels; a tuple means any of its values."""
        return sum(
            value
            for series, labels, value in self.series
            if series == name
            and all(
                labels.get(label) in want if isinstance(want, tuple) else labels.get(label) == want
                for label, want in wanted.items()
            )
        )
