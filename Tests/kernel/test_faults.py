"""What goes wrong around the agent: memory, disks, pipes, files and full maps. Each test states what may suffer, and
shows that nothing else did. docs/reliability.md has a row for each."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from meshtest.agent import _ControlConnection
from meshtest.host import cgroup_mount, fill, poll, run
from meshtest.policies import config, service
from meshtest.storm import Storm
from meshtest.traffic import connect_errno, exchange, load

LEASE = {"breakers": {"maxOpenShare": 1.0, "lease": "5m"}}


def two(*more, **settings):
    """A service that is called (`web`, 9001), and one whose breaker is forced open (`second`, 9002)."""
    return {**config(service(), service("second", 9002), *more, **settings), **LEASE}


def forced_open(agent, world):
    world.listen("lo4", 9002)
    agent.override("second", "open", 3600, "a fault")
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED


def told(agent, text):
    return [line for line in agent.logs() if text in line["message"]]


def listens(agent):
    """Whether somebody listens at the control socket's path."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(agent.control) == 0


def all_refused(storm):
    assert set(storm.results[9002]) == {errno.ECONNREFUSED}, storm.results
    return storm.results[9002][errno.ECONNREFUSED]


class MemoryLimit:
    """A memory cgroup with a limit in bytes, of cgroup v2 where that has the controller, else of v1. What the root gives
    its children is as it was afterwards."""

    def __init__(self, limit):
        root = pathlib.Path(cgroup_mount())
        self.v2 = "memory" in (root / "cgroup.controllers").read_text().split()
        self.control = root / "cgroup.subtree_control"
        self.enabled = self.v2 and "memory" not in self.control.read_text().split()
        # A name that a later run sweeps, if this one is killed.
        self.directory = (root if self.v2 else pathlib.Path("/sys/fs/cgroup/memory")) / f"mesh-test-{os.getpid()}-oom"
        self.limit = limit

    def make(self):
        if self.enabled:
            self.control.write_text("+memory")
        self.directory.mkdir()
        if self.v2:
            (self.directory / "memory.max").write_text(str(self.limit))
            (self.directory / "memory.oom.group").write_text("1")
            swap = self.directory / "memory.swap.max"
        else:
            (self.directory / "memory.limit_in_bytes").write_text(str(self.limit))
            swap = self.directory / "memory.memsw.limit_in_bytes"
        # With swap it would be slow, and not killed.
        if swap.exists():
            swap.write_text("0" if self.v2 else str(self.limit))

    def adopt(self, pid):
        (self.directory / "cgroup.procs").write_text(str(pid))

    def kills(self):
        """How many processes the kernel has killed for want of memory."""
        text = (self.directory / ("memory.events" if self.v2 else "memory.oom_control")).read_text()
        return {words[0]: int(words[1]) for words in map(str.split, text.splitlines())}["oom_kill"]

    def remove(self):
        try:
            if self.directory.exists():
                procs = self.directory / "cgroup.procs"
                for pid in procs.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                poll(lambda: not procs.read_text(), what="the memory cgroup is empty")
                self.directory.rmdir()
        finally:
            if self.enabled:
                self.control.write_text("-memory")


@contextlib.contextmanager
def memory_limit(limit):
    made = MemoryLimit(limit)
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.mark.limit(120)
def test_out_of_memory_under_load(start_agent, world):
    """The kernel kills the agent for want of memory. Nothing suffers but what a SIGKILL may cost: what is enforced is,
    and the next agent counts all that came meanwhile."""
    agent = start_agent(two())
    forced_open(agent, world)
    many = [
        {"name": f"s{n}", "endpoints": [f"10.{n >> 8}.{n & 255}.1:{port}" for port in range(1, 11)]}
        for n in range(9000)
    ]
    with memory_limit(4 << 20) as memory, load(world) as totals, Storm(world.near, (9002,)) as storm:
        poll(lambda: totals()[0] > 200)
        # What it has already is not charged; what so large a configuration takes is.
        memory.adopt(agent.process.pid)
        agent.write(two(*many))
        agent.signal(signal.SIGHUP)
        agent.ended(-signal.SIGKILL)
        assert memory.kills() == 1
        dead = totals()[0]
        poll(lambda: totals()[0] > dead + 200)
        agent.write(two())
        agent.start()
        alive = totals()[0]
        poll(lambda: totals()[0] > alive + 200)
    refused = all_refused(storm)
    requests, connections = totals()
    agent.expect_codes("web", {"200": requests})
    assert agent.attempts("web", "connect")["admitted"] == connections
    assert agent.attempts("second", "connect")["rejected"] == refused + 1
    assert agent.breaker("second")["override"]["reason"] == "a fault"
    assert agent.lost() == 0


@pytest.mark.limit(120)
def test_stopped_and_continued_under_load(start_agent, world):
    """SIGSTOP, and SIGCONT after a while, three times. Figures are late meanwhile; then all is counted, or known to be
    lost, and each refusal is counted once."""
    agent = start_agent(two())
    forced_open(agent, world)
    with load(world) as totals, Storm(world.near, (9002,)) as storm:
        for _ in range(3):
            agent.pause()
            before = totals()[0]
            poll(lambda: totals()[0] > before + 2000, 60)
            agent.resume()
            agent.ask("/v1/breakers")
    refused = all_refused(storm)
    requests, _ = totals()

    def accounted():
        metrics = agent.metrics()
        return metrics.value("mesh_request_duration_seconds_count", service="web") + metrics.value(
            "mesh_agent_samples_lost_total"
        )

    if agent.lost() == 0:
        agent.expect_codes("web", {"200": requests})
    else:
        # A sample of another kind may be among those lost.
        assert accounted() >= 2 * requests
    assert agent.attempts("second", "connect")["rejected"] == refused + 1


# Maps


@pytest.mark.limit(180)
@pytest.mark.parametrize(
    "what, settings, says",
    [
        (
            "endpoints",
            lambda: {
                "services": [
                    {"name": "big", "endpoints": [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:80" for n in range(262_145)]}
                ]
            },
            "262144",
        ),
        (
            "prefixes",
            lambda: {
                "services": [
                    {
                        "name": "big",
                        "endpoints": [
                            f"10.{n >> 8}.{n & 255}.0/24:{p}" for n in range(65_536) for p in (1, 2, 3, 4, 5)
                        ][:262_145],
                    }
                ]
            },
            "262144",
        ),
        (
            "services",
            lambda: {
                "services": [{"name": f"s{n}", "endpoints": [f"10.{n >> 8}.{n & 255}.1:80"]} for n in range(20_001)]
            },
            "20000",
        ),
        ("exempt", lambda: {"exempt": [f"10.{n >> 8}.{n & 255}.0/24" for n in range(10_001)]}, "10000"),
        ("scope", lambda: {"stamp": {"destinations": [f"10.{n >> 8}.{n & 255}.0/24" for n in range(10_001)]}}, "10000"),
    ],
)
def test_more_than_a_map_holds(start_agent, world, what, settings, says):
    """A configuration that no map has room for is refused by a sentence, and the one before stays in force."""
    agent = start_agent(two())
    forced_open(agent, world)
    client, server = world.pair("lo4", 9001)
    after = agent.reload(settings())
    assert says in after["error"] and "at most" in after["error"], after["error"][:500]
    exchange(client, server)
    agent.expect_codes("web", {"200": 1})
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    assert [row["service"] for row in agent.ask("/v1/breakers")["breakers"]] == ["second", "web"]
    assert agent.reload(two(service("third", 9003)))["error"] is None
    assert agent.status()["services"]["configured"] == 3


@pytest.mark.limit(180)
@pytest.mark.parametrize(
    "of",
    [
        lambda first, n: f"10.{first + (n >> 16)}.{n >> 8 & 255}.{n & 255}:80",
        lambda first, n: f"10.{n >> 10}.{n >> 2 & 255}.0/24:{first + 1 + (n & 3)}",
    ],
    ids=["addresses", "prefixes"],
)
def test_a_full_set_of_networks_and_endpoints_is_replaced(start_agent, world, of):
    """As much as there may be, and then as much of others: a reload adds before it removes, and there is room."""
    most, own = 262_144, sum(len(entry["endpoints"]) for entry in two()["services"])
    agent = start_agent(two())
    forced_open(agent, world)

    def full(first):
        networks = [f"10.{first + (n >> 8)}.{n & 255}.0/24" for n in range(10_000)]
        big = {"name": "big", "endpoints": [of(first, n) for n in range(most - own)]}
        return two(big, exempt=networks, stamp={"destinations": [*networks[:9_999], "127.0.0.0/8"]})

    for first in (0, 100):
        assert agent.reload(full(first))["error"] is None
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    exchange(*world.pair("lo4", 9001))
    agent.expect_codes("web", {"200": 1})
    assert agent.metrics().value("mesh_stamps_total", direction="sent", result="ok") >= 1


@pytest.mark.limit(120)
def test_all_bindings_are_in_use(start_agent, world, tmp_path):
    """One more binding is refused by a sentence. Nothing else suffers: what is bound is stamped with its trace, what
    is not with a fresh one, and as soon as there is room there is room."""
    agent = start_agent(two())
    forced_open(agent, world)
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    agent.meshctl("trace", "bind", "--pid", os.getpid(), "--trace", trace)
    pinned, capacity = agent.pins() + "/maps/bindings", 65_536
    number = lambda pid: " ".join(str(byte) for byte in struct.pack("<I", pid))
    # Processes that are none: their numbers are beyond what the kernel gives.
    first = 1 << 30
    keys = [number(first + n) for n in range(capacity - 1)]
    value = " ".join(["1"] * 16)
    batch = tmp_path / "batch"
    batch.write_text("".join(f"map update pinned {pinned} key {key} value {value} noexist\n" for key in keys))
    run("bpftool", "batch", "file", batch, timeout=100)
    refused = agent.meshctl("trace", "bind", "--pid", sleepers[0].pid, code=1)
    assert "65536 entries are all in use" in refused
    assert [row["pid"] for row in agent.ask("/v1/traces")["bindings"]] == [os.getpid()]
    # One that has a binding may change it.
    agent.meshctl("trace", "bind", "--pid", os.getpid(), "--trace", trace[::-1])
    exchange(*world.pair("lo4", 9001))
    agent.expect_codes("web", {"200": 1})
    assert {flow["trace_id"] for flow in agent.connections("web", role="client")} == {trace[::-1]}
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    run("bpftool", "map", "delete", "pinned", pinned, "key", *keys[0].split())
    agent.meshctl("trace", "bind", "--pid", sleepers[0].pid)
    assert "all in use" in agent.meshctl("trace", "bind", "--pid", sleepers[1].pid, code=1)
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()


# The log


class Pipe:
    """A pipe at a path for an agent's log, small, and read only from `drain` on."""

    def __init__(self, path):
        self._path, self._text, self._done = path, b"", threading.Event()
        os.mkfifo(path)
        self._end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._end, fcntl.F_SETPIPE_SZ, 4096)
        self._thread = threading.Thread(target=self._read)

    def _read(self):
        while not self._done.is_set():
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(self._end, 65_536):
                    self._text += piece
            time.sleep(0.005)

    def drain(self):
        self._thread.start()

    def lines(self):
        whole = self._text[: self._text.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.decode().splitlines()]

    def replace(self):
        """Puts a file in its place, for those who look at the log after the test; the agent writes on into the pipe."""
        os.unlink(self._path)
        self._path.write_text("")
        if not self._thread.ident:
            self.drain()

    def close(self):
        self._done.set()
        self._thread.join()
        os.close(self._end)


@pytest.mark.limit(120)
def test_nobody_reads_the_log(start_agent, world):
    """Standard error is a pipe that is full. Lines are missing, and how many is counted, and told once somebody reads;
    decisions, overrides and metrics go on meanwhile."""
    agent = start_agent(two(), start=False)
    pipe = Pipe(agent.log_path)
    try:
        agent.start()
        sleeper = subprocess.Popen(["sleep", "600"])
        dropped = lambda: int(agent.metrics().value("mesh_agent_log_lines_dropped_total"))
        assert dropped() == 0
        control = _ControlConnection(agent.control, 30)
        sent = 0
        while dropped() == 0:
            for _ in range(1000):
                control.request("PUT", f"/v1/traces/{sleeper.pid}", b"{}")
                assert control.getresponse().read()
                sent += 1
        control.close()
        # Dropped as well: the override, and that the binding ended.
        before = dropped()
        forced_open(agent, world)
        exchange(*world.pair("lo4", 9001))
        agent.expect_codes("web", {"200": 1})
        sleeper.kill()
        sleeper.wait()
        agent.expect(lambda: agent.ask("/v1/traces")["bindings"], [])
        agent.expect(dropped, before + 2)
        assert before < sent

        pipe.drain()
        count = lambda text: sum(line["message"] == text for line in pipe.lines())
        poll(lambda: count("trace bound") == sent - before, 30, 0.05, "all that was not dropped is written")
        told = [line["lines"] for line in pipe.lines() if "lines were dropped" in line["message"]]
        assert sum(told) == before + 2 == dropped()
        agent.override("web", "close", 60, "it is written again")
        poll(lambda: count("breaker overridden") == 1, 10, 0.01)
    finally:
        pipe.replace()
        if agent.process:
            agent.stop()
        pipe.close()


def test_a_full_disk_for_the_log(start_agent, world, tmp_path):
    """The log, the audit trail in it, goes to a file on a disk that is full. Lines are missing, and how many is counted
    and told once there is room; all else goes on, and events are still with the agent."""
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk)
    try:
        agent = start_agent(two(), start=False)
        agent.log_path = disk / "agent.log"
        agent.start()
        fill(disk / "filler")
        dropped = lambda: int(agent.metrics().value("mesh_agent_log_lines_dropped_total"))
        forced_open(agent, world)
        # The page in which the log ends has some room yet.
        count = 1
        lines = lambda: [line for line in agent.log_path.read_text().splitlines() if line.endswith("}")]
        written = lambda: sum('"breaker overridden"' in line for line in lines())
        while dropped() == 0:
            agent.override("second", "open", 3600, f"number {count}, " + "x" * 400)
            count += 1
            poll(lambda: written() + dropped() >= count, what="it is in the log, or dropped")
        agent.override("second", "open", 3600, "in the dark")
        poll(lambda: written() + dropped() >= count + 1, what="it is in the log, or dropped")
        last = dropped()
        assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
        exchange(*world.pair("lo4", 9001))
        agent.expect_codes("web", {"200": 1})
        assert agent.breaker("second")["history"][-1]["text"] == "in the dark"
        assert agent.breaker("second")["override"]["reason"] == "in the dark"
        (disk / "filler").unlink()
        agent.override("second", "open", 3600, "in the light")
        whole = lambda: [json.loads(line) for line in lines()]
        found = lambda: [line["lines"] for line in whole() if "lines were dropped" in line["message"]]
        poll(found, 5, 0.01, "it is told")
        assert found() == [last] and dropped() == last
        texts = [line["text"] for line in whole() if line["message"] == "breaker overridden"]
        assert texts[-1] == "in the light" and "in the dark" not in texts
        # All but what was dropped is there, one of it perhaps cut off in the middle.
        assert len(texts) == count + 2 - last
        agent.stop()
    finally:
        run("umount", "-l", disk)


# Files of the agent that somebody removes


def test_the_control_socket_is_removed(start_agent, world):
    """meshctl finds no agent for up to two seconds; then the socket is there again. Who is connected stays so, and
    nothing is refused or admitted that should not be."""
    agent = start_agent(two())
    forced_open(agent, world)
    follow = agent.follow("/v1/events?follow=1")
    listening = lambda: agent.metrics().value("mesh_agent_control_listening")
    assert listening() == 1
    for _ in range(3):
        os.unlink(agent.control)
        poll(lambda: listens(agent), 10, 0.01, "it is made anew")
        assert agent.status()["pid"] == agent.process.pid
        assert os.stat(agent.control).st_mode & 0o777 == 0o600
    agent.expect(lambda: len(told(agent, "the control socket was removed, and is made anew")), 3)
    follow.close()

    follow = agent.follow("/v1/events?follow=1")
    os.unlink(agent.control)
    poll(lambda: listens(agent), 10, 0.01, "it is made anew")
    agent.override("web", "close", 60, "over the new one")
    assert follow.until(lambda event: event.get("text") == "over the new one")["service"] == "web"
    follow.close()

    # Something else lies there: that is said, once, and left alone.
    os.unlink(agent.control)
    pathlib.Path(agent.control).write_text("mine")
    poll(lambda: told(agent, "the control socket was removed: meshctl finds no agent"), 10, 0.01)
    assert listening() == 0 and pathlib.Path(agent.control).read_text() == "mine"
    # It looks with each heartbeat, of which there is one in two seconds.
    beat = lambda: time.monotonic() - agent.metrics().value("mesh_agent_lease_age_seconds")
    first = beat()
    poll(lambda: beat() > first + 1, 10, 0.02, "it has looked again")
    assert len(told(agent, "the control socket was removed: meshctl finds no agent")) == 1
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    os.unlink(agent.control)
    poll(lambda: listening() == 1, 10, 0.02, "it is made anew")
    assert agent.breaker("second")["override"]["reason"] == "a fault"
    agent.stop()
    assert not os.path.exists(agent.control)


def test_all_its_files_are_removed(start_agent, world):
    """The directory of the control socket goes, with the state: both are there again within two seconds, and the next
    agent knows all that this one did."""
    agent = start_agent(two(), capabilities=None)
    forced_open(agent, world)
    client, server = world.pair("lo4", 9001)
    for _ in range(10):
        exchange(client, server)
    agent.expect_codes("web", {"200": 10})
    state = pathlib.Path(agent.control + ".state")
    shutil.rmtree(state.parent)
    poll(lambda: state.exists() and listens(agent), 10, 0.01, "they are made anew")
    agent.expect(lambda: len(told(agent, "the state was removed, and is written anew")), 1)
    assert state.parent.stat().st_mode & 0o777 == 0o700
    poll(lambda: agent.metrics().value("mesh_agent_state_kept") == 1)
    agent.kill()
    agent.start()
    agent.expect_codes("web", {"200": 10})
    assert agent.breaker("second")["override"]["reason"] == "a fault"


# The configuration


@pytest.mark.limit(180)
@pytest.mark.parametrize("how", ["rewritten", "renamed"])
def test_the_configuration_is_written_while_it_is_read(start_agent, world, how):
    """A writer that never rests, and reloads all the time: the services are always all of one text or all of the other,
    never a part of one or of both. What could not be read is said, and the one before stays in force."""
    count = 60
    texts, names = {}, {}
    for kind in "ab":
        services = [service(f"{kind}-{n}", 20_000 + n) for n in range(count)]
        names[kind] = sorted(entry["name"] for entry in services) + ["second"]
        texts[kind] = {**config(service("second", 9002), *services), **LEASE}
    agent = start_agent(texts["a"])
    forced_open(agent, world)
    path = agent.config_path
    encoded = {kind: json.dumps(agent.settings(text), indent=2).encode() for kind, text in texts.items()}
    assert len(encoded["a"]) == len(encoded["b"]) > 20_000
    done = threading.Event()

    def write():
        number = 0
        while not done.is_set():
            number += 1
            content = encoded["ab"[number % 2]]
            if how == "renamed":
                beside = path.with_suffix(".new")
                beside.write_bytes(content)
                beside.rename(path)
                continue
            # In pieces, so that there is something to be read between them.
            with open(path, "wb", buffering=0) as file:
                for start in range(0, len(content), 8192):
                    file.write(content[start : start + 8192])
            # A writer that rests now and then is what people have.
            time.sleep(0.05 if number % 5 == 0 else 0)

    writer = threading.Thread(target=write)
    writer.start()
    found, errors, deadline = set(), set(), time.monotonic() + 8
    try:
        while time.monotonic() < deadline:
            agent.signal(signal.SIGHUP)
            now = sorted(row["service"] for row in agent.ask("/v1/breakers")["breakers"])
            kind = now[0][0]
            assert now == names[kind], (kind, now)
            found.add(kind)
            errors.add(agent.status()["config"]["error"])
    finally:
        done.set()
        writer.join()
    assert found == {"a", "b"}, "both were in force"
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    for error in errors - {None}:
        assert str(path) in error, error
    if how == "renamed":
        assert errors <= {None}
    path.write_bytes(encoded["b"])
    agent.signal(signal.SIGHUP)
    poll(lambda: "b-0" in {row["service"] for row in agent.ask("/v1/breakers")["breakers"]}, 10, 0.02)
    assert agent.status()["config"]["error"] is None
    assert agent.breaker("second")["override"]["reason"] == "a fault"
