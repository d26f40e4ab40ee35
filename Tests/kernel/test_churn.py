"""The surroundings never hold still: interfaces, network namespaces and cgroups that come and go by the hundred a
second, a calendar that jumps, a machine that is busy with other things. What may degrade is said with each test;
counts and refusals stay exact.

MESH_CHURN says how many interfaces and cgroups come and go in each test:
    MESH_CHURN=30000 scripts/test-kernel -k come_and_go"""

import collections
import contextlib
import errno
import os
import struct
import subprocess
import threading
import time

import pytest

from meshtest.agent import REQUESTS
from meshtest.host import poll, run
from meshtest.native import native
from meshtest.policies import config, service
from meshtest.storm import Requests
from meshtest.visitor import visitor
from meshtest.traffic import (
    GET,
    Knob,
    Server,
    connect_errno,
    exchange,
    http_server,
    time_to_first_byte,
    until_closed,
)

CHURN = int(os.environ.get("MESH_CHURN", "200"))
PER_SECOND = 100
DAY = 86_400
MIB = 1 << 20


def held(agent):
    """What the agent holds on to, and what it has left in the kernel: all of it has an end."""
    pins = agent.pins()
    found = run("find", pins, "-mindepth", "1").stdout.split()
    links = run("ip", "-n", agent.world.near.name, "-o", "link").stdout.splitlines()
    return {
        "pins": sorted(path.removeprefix(pins) for path in found),
        "attached": agent.attachments(),
        "interfaces": sorted(entry["name"] for entry in agent.status()["interfaces"]),
        "links": len(links),
    }


def descriptors(agent):
    """How many the agent has open: the least of some readings, since the connections of those who ask it come and
    go."""
    found = []
    for _ in range(20):
        found.append(len(os.listdir(f"/proc/{agent.process.pid}/fd")))
        time.sleep(0.005)
    return min(found)


def resident(agent):
    """The agent's anonymous memory, in bytes."""
    with open(f"/proc/{agent.process.pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


@contextlib.contextmanager
def steadily(*actions):
    """Does each action again and again in a thread of its own, until the block ends. Yields how often each was."""
    done, counts, failures = threading.Event(), [0] * len(actions), []

    def work(number, action):
        try:
            while not done.is_set():
                action()
                counts[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []


def paced(count, step):
    """Calls `step(number)` `count` times, no more than `PER_SECOND` a second; a slow machine takes longer."""
    begin = time.monotonic()
    for number in range(count):
        step(number)
        time.sleep(max(0.0, begin + (number + 1) / PER_SECOND - time.monotonic()))


TC = pytest.mark.parametrize("tc", ["tcx", "clsact"])


@TC
@pytest.mark.limit(120 + CHURN // 20)
def test_interfaces_and_namespaces_come_and_go(start_agent, world, tc):
    """May degrade: a rejected request on an interface that is younger than its attachment is let through.
    On those that were there, everything is counted and rejected, and nothing is left of those that went."""
    agent = start_agent(
        config(service(), service("shut", 9002), service("cut", 9003)),
        environment={"MESH_AGENT_FORCE_CLSACT": "1"} if tc == "clsact" else {},
    )
    client, server = world.pair("veth4", 9001)
    pairs = [world.pair("veth4", 9003) for _ in range(60)]
    world.listen("veth4", 9002)
    agent.override("shut", "open")
    refused = lambda: [errno.ECONNREFUSED, connect_errno(world, "veth4", 9002)]
    exchanged, rejected, steps = [0], [0], [0]

    def ask():
        exchange(client, server)
        exchanged[0] += 1
        time.sleep(0.0005)

    def attempt():
        assert len(set(refused())) == 1
        rejected[0] += 1
        time.sleep(0.002)

    def churn(count):
        # Pods as their runtimes make them: every fourth device leads into a namespace that goes with it.
        def step(number):
            name = f"mt-{os.getpid()}-churn{number}"
            if number % 4:
                pod, ends = [], [f"link add churn{number} type veth peer name peer{number}"]
                gone = [f"link del churn{number}"]
            else:
                pod = [f"netns add {name}"]
                ends = [f"link add churn{number} type veth peer name eth0 netns {name}"]
                gone = [f"netns del {name}"]
            world.near.batch(*pod, *ends, f"link set churn{number} up")
            world.near.batch(*gone)
            steps[0] += 1

        paced(count, step)
        poll(lambda: held(agent)["links"] == before["links"], 30, 0.05, "the interfaces are gone")
        agent.expect(lambda: held(agent), before, timeout=10)
        poll(lambda: descriptors(agent) <= opened, what="its descriptors are closed")

    before, opened = held(agent), descriptors(agent)
    agent.override("cut", "open")
    progress = lambda: steps[0] / (CHURN // 4 + CHURN)
    with steadily(ask, attempt), Requests(pairs, 0.005, progress) as requests:
        churn(CHURN // 4)
        memory, early = resident(agent), requests.sent
        churn(CHURN)
    assert 0 < early <= len(pairs) // 4 + 1 < requests.sent and requests.leaked == []
    agent.expect_codes("web", {"200": exchanged[0]})
    agent.expect(lambda: agent.attempts("shut", "connect"), {"rejected": rejected[0]})
    agent.expect(lambda: agent.attempts("cut", "request"), {"rejected": requests.sent})
    assert agent.lost() == 0
    assert resident(agent) - memory < MIB
    assert not [line for line in agent.logs() if line["level"] in ("warning", "error") and "actor" not in line]


@contextlib.contextmanager
def held_rtnl():
    """Nobody in the kernel makes, removes or looks at an interface until the block ends; see Tests/native/rtnl.c."""
    holder = subprocess.Popen([native("rtnl")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        yield
    finally:
        holder.stdin.close()
        assert holder.wait(60) == 0
        holder.stdout.close()


def is_waiting(agent):
    """Whether a thread of the agent waits for something in the kernel that no signal ends."""
    tasks = f"/proc/{agent.process.pid}/task"
    states = []
    for task in os.listdir(tasks):
        with open(f"{tasks}/{task}/stat") as stat:
            states.append(stat.read().rsplit(") ", 1)[1][0])
    return "D" in states


@TC
@pytest.mark.limit(120)
def test_decisions_do_not_wait_for_interfaces(start_agent, world, tc):
    """While others keep the kernel from looking at interfaces, breakers open as ever, at the failure that decides, and
    the agent answers; but for whoever asks whether it is ready: that is seen by looking at interfaces."""
    agent = start_agent(
        config(service(consecutiveFailures=5), service("shut", 9002)),
        environment={"MESH_AGENT_FORCE_CLSACT": "1"} if tc == "clsact" else {},
    )
    client, server = world.pair("veth4", 9001)
    world.listen("lo4", 9002)
    answers, looks = [], lambda: agent.status()["enforcement"]["checks"]
    asker = threading.Thread(target=lambda: answers.append(agent.get("/readyz")[0]))
    # A look of a moment ago would do.
    time.sleep(1.1)
    with held_rtnl():
        asker.start()
        poll(lambda: is_waiting(agent), what="the agent looks at its interfaces")
        before = looks()
        for _ in range(5):
            exchange(client, server, 500)
        assert agent.wait_state("web", "open")["reason"] == "consecutive_failures"
        client.sendall(GET)
        assert until_closed(client) == until_closed(server) == errno.ECONNRESET
        agent.override("shut", "open")
        assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
        agent.expect_codes("web", {"500": 5})
        agent.expect(lambda: agent.attempts("web", "request"), {"admitted": 5, "rejected": 1})
        agent.expect(lambda: agent.attempts("shut", "connect"), {"rejected": 1})
        assert is_waiting(agent) and answers == [] and looks() == before
    asker.join()
    assert answers == [200] and looks() > before
    assert agent.lost() == 0


@pytest.mark.limit(120 + CHURN // 20)
@pytest.mark.parametrize("limit", [20_000, 100], ids=["room", "no-room"])
def test_cgroups_come_and_go(start_agent, world, host, limit):
    """May degrade: who calls. A cgroup that was gone before it could be named is `unknown`; without room for its
    series it is `other`, and `mesh_agent_series_dropped_total` says how often. Each request is counted once all
    the same, under no wrong name."""
    agent = start_agent(config(service(), service("cgroups", 9002), limits={"maxSeries": limit}))
    client, server = world.pair("veth4", 9001)
    exchanged = [0]

    def ask():
        exchange(client, server)
        exchanged[0] += 1
        time.sleep(0.001)

    before, opened, names = held(agent), descriptors(agent), [f"churn-{number}" for number in range(CHURN)]
    # The others go at once, named or not.
    remain = CHURN // 2
    with Server(world.listen("lo4", 9002), http_server()), visitor(world, host.tests, 9002) as visit, steadily(ask):

        def step(number):
            cgroup = visit(names[number])
            if number >= remain:
                cgroup.remove()

        paced(CHURN, step)
        agent.expect(lambda: agent.codes("cgroups"), {"200": CHURN})
        for name in names[:remain]:
            host.tests.at(name).remove()
    agent.expect_codes("web", {"200": exchanged[0]})
    paths = {f"{host.tests.path[1:]}/{name}" for name in names}
    counted = agent.metrics().by(REQUESTS + "_count", "workload", service="cgroups", role="client")
    assert sum(counted.values()) == CHURN
    named = {workload: count for workload, count in counted.items() if workload not in ("unknown", "other")}
    assert named.keys() <= paths and set(named.values()) <= {1}
    if limit > CHURN:
        assert {f"{host.tests.path[1:]}/{name}" for name in names[:remain]} <= named.keys()
        assert "other" not in counted
        assert agent.metrics().value("mesh_agent_series_dropped_total") == 0
    else:
        series = agent.status()["series"]
        assert series["used"] <= 2 * limit and series["dropped"] >= counted["other"]
    own = host.tests.path[1:]
    assert agent.metrics().by(REQUESTS + "_count", "workload", service="web", role="client") == {own: exchanged[0]}
    assert agent.lost() == 0
    agent.expect(lambda: held(agent), before, timeout=10)
    poll(lambda: descriptors(agent) <= opened, what="its descriptors are closed")
    # Through a restart, names and counts are the same.
    agent.kill()
    agent.start()
    assert agent.metrics().by(REQUESTS + "_count", "workload", service="cgroups", role="client") == counted


class Calendar:
    """How far the calendar of what runs under it is off; see Tests/native/calendar.c. Only the agent's: the machine
    is everybody's, and the kernel half has no calendar."""

    def __init__(self, path):
        self._path = path
        self.set(0)
        self.prefix = [native("calendar"), path, "mesh-agent"]

    def set(self, seconds):
        with open(self._path, "r+b" if os.path.exists(self._path) else "wb") as file:
            file.write(struct.pack("q", seconds))


def seconds_of(text):
    """The seconds since 1970 of an RFC 3339 time in UTC."""
    return calendar_time(text.split(".")[0].rstrip("Z"))


def calendar_time(text):
    return time.mktime(time.strptime(text + " UTC", "%Y-%m-%dT%H:%M:%S %Z")) - time.timezone


def admitted(world, port):
    """A connection, if a breaker lets it through."""
    client, address = world.client("lo4")
    return client if client.connect_ex((address, port)) == 0 else None


def shown_offset(agent):
    """By how many days the agent's calendar differs from this process's."""
    agent.override("shown", "close", reason="what time is it?")
    seen = seconds_of(agent.breaker("shown")["override"]["since"]) - time.time()
    return round(seen / DAY)


@pytest.mark.limit(120)
@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
def test_the_calendar_jumps(start_agent, world, tmp_path, restarts):
    """May degrade: times that are shown, or dated in the log and in exemplars, are those of the calendar. Deadlines,
    back-off, ramps, windows, overrides, the lease and durations are not: they go by the clock that only moves on."""
    never = {"ratio": 0.000001, "interval": "1h"}
    ramp = {"ratio": 0.000001, "interval": "10ms", "successes": 1, "ramp": "1h"}
    calendar = Calendar(tmp_path / "calendar")
    agent = start_agent(
        config(
            service("tripped", 9001, consecutiveFailures=1, openFor="60s", probe=never),
            service("brief", 9002, consecutiveFailures=1, openFor="2s", probe=never),
            service("ramping", 9003, consecutiveFailures=1, openFor="1s", probe=ramp),
            service("forced", 9004),
            service("window", 9005, consecutiveFailures=3, window="5m"),
            service("shown", 9006),
        ),
        start=False,
    )  # fmt: skip
    agent.prefix = calendar.prefix
    agent.start()
    assert shown_offset(agent) == 0

    def jump(days):
        calendar.set(days * DAY)
        if restarts:
            agent.kill()
            agent.start()
        # The agent reads its calendar anew, and shows it.
        assert shown_offset(agent) == days

    # A ramp under way, an open breaker, a window with two failures of three, an override.
    for port, times in ((9001, 1), (9003, 1), (9005, 2)):
        for _ in range(times):
            assert connect_errno(world, "lo4", port) == errno.ECONNREFUSED
    agent.wait_state("ramping", "half_open")
    with Server(world.listen("lo4", 9003), http_server()):
        probe = poll(lambda: admitted(world, 9003), what="a probe is admitted")
        time_to_first_byte(probe)
    poll(lambda: agent.breaker("ramping")["probe_share"] == 0.1, what="the ramp begins")
    assert agent.wait_state("tripped", "open")["reason"] == "consecutive_failures"
    agent.override("forced", "open", 900)
    for port in (9001, 9002, 9004):
        world.listen("lo4", port)

    rejected = collections.Counter()
    history = lambda name: [event["kind"] for event in agent.breaker(name)["history"]]
    before = {name: history(name) for name in ("tripped", "ramping", "forced", "window")}
    for days in (1, -1, 365, 0):
        jump(days)
        for name, port in (("tripped", 9001), ("forced", 9004)):
            assert connect_errno(world, "lo4", port) == errno.ECONNREFUSED
            rejected[name] += 1
        assert agent.status()["lease"]["valid"]
        assert agent.metrics().value("mesh_agent_lease_age_seconds") < 10
        assert agent.breaker("ramping")["probe_share"] == 0.1
        assert agent.breaker("window")["window"]["consecutive_failures"] == 2
        assert {name: history(name) for name in before} == before

        # Back by a day, time goes on all the same: a breaker opens, and its time is over.
        agent.override("brief", "open", 1)
        poll(lambda: agent.breaker("brief")["override"] is None, 10, 0.05, "a second's override ends")
        assert connect_errno(world, "lo4", 9002) == 0
    for name, count in rejected.items():
        agent.expect(lambda name=name: agent.attempts(name, "connect").get("rejected"), count)
    assert agent.lost() == 0

    # A deadline that is set before a jump back passes, too.
    calendar.set(DAY)
    with Server(world.listen("lo6", 9002), http_server(status=Knob(500))):
        trip = world.connect("lo6", 9002)
        trip.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert trip.recv(4096).startswith(b"HTTP/1.1 500")
        agent.wait_state("brief", "open")
        jump(-1)
        agent.wait_state("brief", "half_open", timeout=10)
    assert agent.metrics().value(REQUESTS + "_sum", service="brief") < 60


@pytest.mark.limit(180)
def test_a_machine_that_is_busy_with_other_things(start_agent, world, host):
    """The agent has the least of the CPUs: nice 19 beside loops on all of them, and no right to ask for more. May
    degrade: when its decisions and figures come. They are right, and none is missing."""
    agent = start_agent(
        {
            "breakers": {"maxOpenShare": 1.0, "lease": "5m"},
            "services": [service(), service("shut", 9002), service("failing", 9003, consecutiveFailures=5)],
        },
        start=False,
    )
    agent.prefix = ["nice", "-n", "19"]
    agent.start()
    assert os.getpriority(os.PRIO_PROCESS, agent.process.pid) == 19
    client, server = world.pair("veth4", 9001)
    world.listen("lo4", 9002)
    agent.override("shut", "open")
    loops = [world.near.popen("sh", "-c", "while :; do :; done", cgroup=host.home) for _ in range(2 * os.cpu_count())]
    try:
        total, refusals, failures, reset = 5000, 500, 0, False
        for number in range(total):
            exchange(client, server)
            if number % (total // refusals) == 0:
                assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
        failing, failed = world.pair("veth4", 9003)
        # As many failures as it takes: late, the fifth of them opens it.
        while not reset:
            try:
                exchange(failing, failed, 500)
                failures += 1
            except ConnectionResetError:
                reset = True
        agent.expect_codes("web", {"200": total}, timeout=60)
        agent.expect(lambda: agent.attempts("shut", "connect"), {"rejected": refusals}, timeout=60)
        assert failures >= 5
        agent.expect_codes("failing", {"500": failures}, timeout=60)
        assert agent.wait_state("failing", "open", timeout=60)["reason"] == "consecutive_failures"
        assert agent.attempts("failing", "request") == {"admitted": failures, "rejected": 1}
        assert agent.lost() == 0
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
