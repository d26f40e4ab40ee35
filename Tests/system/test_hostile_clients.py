"""Hostile clients of the agent's own sockets: garbage at the metrics port at full speed, requests to the
control API that nobody meant, and users who may not. INPUTS and SEED as in test_hostile_packets."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import socket
import tempfile
import threading
import urllib.parse

import pytest

from meshtest.agent import ROOT
from meshtest.host import poll, run
from meshtest.native import SEED, inputs
from meshtest.policies import config, service

NOBODY = 65534


def memory(agent):
    return agent.metrics().value("process_resident_memory_bytes")


def test_garbage_at_the_metrics_port_keeps_no_scrape_out(start_agent, world):
    """Four clients send noise as fast as they can, and hundreds sit there with half a request."""
    agent = start_agent(config(service()))
    agent.metrics()
    before = memory(agent)
    stop, sent = threading.Event(), []

    def connect():
        made = world.host.outside.socket(world.near)
        made.connect(("127.0.0.1", agent.port))
        return made

    def shout(number):
        noise = random.Random(number).randbytes(1 << 16)
        openings = [b"", b"GET /metrics HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: " + b"x" * 9000, b"\r\n" * 1000]
        while not stop.is_set():
            with connect() as client, contextlib.suppress(OSError):
                client.settimeout(1)
                client.sendall(openings[len(sent) % len(openings)])
                while not stop.is_set():
                    sent.append(client.send(noise))

    slow = [connect() for _ in range(400)]
    for client in slow:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Never-Ends: ")
    threads = [threading.Thread(target=shout, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        poll(lambda: len(sent) > 100, 20, what="garbage arrives")
        for _ in range(100):
            status, _, body = agent.get("/metrics")
            assert status == 200 and body.endswith(b"\n")
            assert agent.get("/readyz")[0] == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for client in slow:
            client.close()
    assert memory(agent) - before < 32 << 20
    assert agent.status()["breakers"]["enforce"] == 1


# The control API

WORDS = [
    *("web", "api", "nobody", "*:9001", "other", "", ".", "..", "%2e", "%00", "%ff", "%C3%A9", "a%2Fb", "\u00e9"),
    *("1", "0", "-1", "2147483648", "99999999999999999999", "open", "close", "auto", "?", "&", "=", "+", "#"),
    *('{"reason": "x"}', '{"reason": "x", "for_seconds": 1e9}', '{"reason": " "}', '{"reason": 1}', "[]", "null"),
    *('{"reason": "x", "for_seconds": 1e-300}', '{"for_seconds": NaN}', '{"reason": "\\u0000\\n"}', '{"trace_id": 1}'),
    *('{"trace_id": "0af7651916cd43dd8448eb211c80319c"}', '{"trace_id": null}', "{" * 100, '"' * 9, "\x00", "\x7f"),
]
TARGETS = [
    *("/v1/status", "/v1/services", "/v1/breakers", "/v1/flows", "/v1/events", "/v1/traces", "/v1", "/", "/v2/status"),
    *("/v1/breakers/web", "/v1/breakers/web/open", "/v1/breakers/web/close", "/v1/breakers/web/auto"),
    *("/v1/breakers/api/open", "/v1/flows?service=web", "/v1/flows?trace=0af7651916cd43dd8448eb211c80319c"),
    *("/v1/events?follow=0", "/v1/traces/1", "/v1/traces/2147483647", "/v1/breakers//open", "//v1/status"),
]
BODIES = [word.encode() for word in WORDS if word[:1] in ("{", "[", '"')] + [b"", b"{}"]
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"]


def mutated(text, chance):
    """A text with a few changes."""
    for _ in range(chance.choice((0, 0, 1, 2))):
        at = chance.randrange(len(text) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            text = text[:at] + chance.choice(WORDS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + chance.randrange(4) :]
        elif kind == 2:
            text = text[:at] + chr(chance.randrange(256)) + text[at:]
        else:
            text = text[:at] + text[: chance.randrange(20)]
    return text


def hostile_request(chance):
    """One whole request: framed as HTTP wants it, or nothing in it would reach what is behind."""
    method = chance.choice(METHODS[:4] if chance.randrange(8) else METHODS)
    target = mutated(chance.choice(TARGETS), chance)
    # Streams have no end; the server's tests have them.
    target = target.replace("follow", "folow") if "?" in target else target
    if chance.randrange(8):
        target = urllib.parse.quote(target, safe="/?&=%+:*#[]@!$'(),;~")
    body = chance.choice(BODIES)
    if chance.randrange(2):
        body = mutated(body.decode(), chance).encode("utf-8", "surrogatepass")
    return b"%s %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (
        method.encode(),
        target.encode("latin-1", "replace"),
        len(body),
        body,
    )


class Control:
    """A connection to the control socket that is made anew when the agent ends it."""

    def __init__(self, path):
        self._path, self._socket, self._buffer = path, None, b""

    def ask(self, request):
        if self._socket is None:
            self._socket, self._buffer = socket.socket(socket.AF_UNIX), b""
            self._socket.settimeout(20)
            self._socket.connect(self._path)
        self._socket.sendall(request)
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        length = 0 if request.startswith(b"HEAD") or not length else int(length[1])
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        if b"\r\nConnection: close" in head:
            self._socket.close()
            self._socket = None
        return int(head.split()[1]), body

    def _more(self):
        piece = self._socket.recv(1 << 16)
        assert piece, f"the connection ended after {self._buffer!r}"
        self._buffer += piece


@pytest.mark.limit(1500)
def test_hostile_calls_of_the_control_api(start_agent, world):
    """Each gets an answer that says what is wrong with it; none is the agent's fault, and none leaves more
    behind than what the calls are for."""
    agent = start_agent(config(service(), service("api", 9002)), arguments=("--log-level", "error"))
    chance, count = random.Random(SEED), inputs(4000)
    control = Control(agent.control)
    seen, before = {}, None
    for number in range(count):
        request = hostile_request(chance)
        try:
            status, body = control.ask(request)
            assert status in (200, 400, 404, 405, 409, 413, 414, 431, 501), status
            if not request.startswith(b"HEAD"):
                answer = json.loads(body)
                assert status == 200 or answer["error"], answer
        except (AssertionError, OSError, ValueError) as error:
            raise AssertionError(f"SEED={SEED}, input {number}: {request!r}: {error}") from error
        seen[status] = seen.get(status, 0) + 1
        if number == count // 10:
            before = memory(agent)
    # Both what is done and what is refused, or this has tested little.
    assert min(seen[200], seen[400], seen[404]) > count * 0.02, seen
    assert memory(agent) - before < 32 << 20
    status = agent.status()
    assert status["services"]["configured"] == 2
    assert len(agent.ask("/v1/traces")["bindings"]) <= 1
    for name in ("web", "api"):
        agent.automatic(name)
        assert agent.breaker(name)["state"] == "closed"


# Who may toggle

CALLER = """
import http.client, json, socket, sys
path, calls = sys.argv[1], json.loads(sys.argv[2])
found = []
for method, target in calls:
    connection = http.client.HTTPConnection("agent", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(path)
        connection.request(method, target, '{"reason": "because I can"}' if method == "POST" else None)
        found.append(connection.getresponse().status)
    except PermissionError:
        found.append("not let in")
print(json.dumps(found))
"""


def every_call():
    """Each route of docs/control-api.md, with its own names put in."""
    text = (ROOT / "docs" / "control-api.md").read_text()
    calls = re.findall(r"^\| `(GET|POST|PUT|DELETE) (/v1/[^`]*)`", text, re.M)
    assert len(calls) == 14
    return [[method, target.replace("NAME", "web").replace("PID", str(os.getpid()))] for method, target in calls]


@pytest.fixture
def reachable():
    """A directory that every user gets to, and root alone may change."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="mesh-hostile-", dir="/run"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("who", ["another user", "root of a user namespace"])
def test_no_call_of_an_unprivileged_user_is_answered(start_agent, reachable, who):
    agent = start_agent(config(service()), start=False)
    agent.control = str(reachable / "control" / "control.sock")
    agent.start()
    calls = every_call()
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if who == "root of a user namespace":
        words += ["unshare", "--user", "--map-root-user"]

    def call():
        done = run(*words, "/usr/bin/python3", "-c", CALLER, agent.control, json.dumps(calls))
        return json.loads(done.stdout)

    # The agent made the directory and the socket for itself alone.
    assert (os.stat(reachable / "control").st_mode & 0o7777, os.stat(agent.control).st_mode & 0o7777) == (0o700, 0o600)
    assert call() == ["not let in"] * len(calls)
    os.chmod(reachable / "control", 0o711)
    assert call() == ["not let in"] * len(calls)
    # Even if somebody opens it, the agent itself looks at who asks, and remembers.
    os.chmod(agent.control, 0o666)
    assert call() == [403] * len(calls)
    wanted = [(f"{method} {target.partition('?')[0]}", NOBODY) for method, target in calls]

    def logged():
        lines = [line for line in agent.logs() if line["message"] == "control call refused"]
        return [(line["call"], line["uid"]) for line in lines if line["level"] == "warning"] == wanted

    poll(logged, what=f"each call in the log: {wanted}")
    breaker = agent.breaker("web")
    assert (breaker["state"], breaker["override"]) == ("closed", None)
    assert agent.ask("/v1/traces")["bindings"] == []
    assert agent.ask("/v1/events")["events"] == []


def refusal(agent):
    """What an agent says that does not start."""
    agent.launch()
    assert agent.process.wait(20) == 1
    agent.process = None
    return agent.logs()[-1]["message"]


@pytest.mark.parametrize("what", ["owner", "mode", "link", "parent", "their link"])
def test_a_directory_that_others_can_change_is_refused(start_agent, reachable, what):
    agent = start_agent(start=False)
    place = reachable / "control"
    agent.control = str(place / "control.sock")
    if what == "owner":
        place.mkdir(mode=0o755)
        os.chown(place, NOBODY, NOBODY)
        wanted = f"{place}: it belongs to nobody, who could put another socket there"
    elif what == "mode":
        place.mkdir()
        place.chmod(0o1777)
        wanted = f"{place}: with mode 1777, others could put a socket of their own there"
    elif what == "link":
        (reachable / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(reachable / "elsewhere")
        wanted = f"{place}: it is a symbolic link"
    elif what == "parent":
        reachable.chmod(0o777)
        wanted = f"{reachable}: with mode 777, others could put a socket of their own there"
    else:
        # Sticky, so that it may be on the way; but what lies there is somebody else's.
        reachable.chmod(0o1777)
        (reachable / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(reachable / "elsewhere")
        os.chown(place, NOBODY, NOBODY, follow_symlinks=False)
        agent.control = str(place / "below" / "control.sock")
        wanted = f"{place}: it belongs to nobody, who could put another socket there"
    assert wanted in refusal(agent)
    reachable.chmod(0o711)


def test_a_lock_on_the_directory_holds_nobody_up(start_agent, reachable):
    """Whoever may read a directory may lock it. The agent's own lock is a file that nobody else can open."""
    agent = start_agent(start=False)
    place = reachable / "control"
    place.mkdir()
    place.chmod(0o755)
    agent.control = str(place / "control.sock")
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "flock", place]
    holder = agent.world.near.popen(*words, "sh", "-c", "echo held; cat", stdin=-1, stdout=-1, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        agent.start()
        assert os.stat(agent.control + ".lock").st_mode & 0o7777 == 0o600
    finally:
        holder.stdin.close()
        holder.wait(10)


def is_ready(agent):
    with contextlib.suppress(OSError):
        return agent.get("/readyz")[0] == 200


def test_a_swarm_of_links_never_gets_the_socket(start_agent, reachable):
    """In a sticky directory, as /tmp is, somebody makes and removes a link where the agent's directory shall
    be, as fast as they can. Each start is refused, or the socket is where it should be and root's alone."""
    reachable.chmod(0o1777)
    trap = reachable / "trap"
    trap.mkdir()
    trap.chmod(0o777)
    script = (
        "import os, sys\n"
        "place, trap = sys.argv[1:]\n"
        "while True:\n"
        "    for make in (lambda: os.symlink(trap, place), lambda: os.mkdir(place)):\n"
        "        for step in (make, lambda: os.unlink(place), lambda: os.rmdir(place)):\n"
        "            try: step()\n"
        "            except OSError: pass\n"
    )
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "/usr/bin/python3", "-c", script]
    for number in range(10):
        place = reachable / f"control{number}"
        # Not confined: a mount at the place would be in the swarm's way.
        agent = start_agent(start=False, name=f"agent{number}", capabilities=None)
        agent.control = str(place / "control.sock")
        swarm = agent.world.near.popen(*words, place, trap)
        try:
            agent.launch()
            poll(
                lambda: agent.process.poll() is not None or os.path.exists(agent.control) and not place.is_symlink(),
                20,
                what="a socket, or a refusal",
            )
        finally:
            swarm.kill()
            swarm.wait()
        assert os.listdir(trap) == []
        if agent.process.poll() is None:
            for path in (place, place / "control.sock"):
                status = os.lstat(path)
                assert (status.st_uid, status.st_mode & 0o077) == (0, 0)
            poll(lambda: is_ready(agent), 20, what="ready")
            agent.stop()
        else:
            assert agent.process.returncode == 1
            assert "cannot use the directory" in agent.logs()[-1]["message"]
            agent.process = None
