"""An agent is killed, and the next one goes on with what it knew: counters without a gap or a doubled count,
breakers, overrides with who and why, history, bindings.

MESH_KILLS says how many kills the count under load goes through:
    MESH_KILLS=500 scripts/test-kernel -k instant"""

import contextlib
import datetime
import errno
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from meshtest.agent import REQUESTS, committed, same
from meshtest.host import fill, poll, run
from meshtest.policies import config, service
from meshtest.traffic import GET, Server, connect_errno, exchange, http_server, load, response, until_closed

KILLS = int(os.environ.get("MESH_KILLS", "20"))
# The lease holds for as long as a test may take.
LEASE = {"breakers": {"maxOpenShare": 1.0, "lease": "5m"}}
CONNECTS = "mesh_connect_duration_seconds"


def state(agent):
    return pathlib.Path(agent.control + ".state")


def restart(agent):
    agent.kill()
    return agent.start()


def lasting(breaker):
    """What of a breaker does not move with time: its window does."""
    return {key: value for key, value in breaker.items() if key != "window"}


def pages_agree(agent, name, count):
    """All ways in which requests of a service are counted come to `count`, for both roles."""
    for role in ("client", "server"):
        agent.expect(lambda: agent.codes(name, role), {"200": count})
        metrics = agent.metrics()
        buckets = metrics.by(REQUESTS + "_bucket", "le", service=name, role=role)
        assert buckets["+Inf"] == count and max(buckets.values()) == count
        rows = [row for row in agent.ask("/v1/services")["services"] if (row["name"], row["role"]) == (name, role)]
        assert [row["requests_total"] for row in rows] == [count]


def test_counters_go_on(start_agent, world):
    """Before, while there is none, and after: each is counted, and once."""
    agent = start_agent(config(service()))
    client, server = world.pair("lo4", 9001)
    before, dead, after = 300, 200, 100
    for _ in range(before):
        exchange(client, server)
    started = agent.metrics().value("process_start_time_seconds")
    agent.kill()
    for _ in range(dead):
        exchange(client, server)
    second = world.pair("lo4", 9001)
    agent.start()
    for _ in range(after):
        exchange(client, server)
    exchange(*second)
    total = before + dead + after + 1
    pages_agree(agent, "web", total)
    metrics = agent.metrics()
    for role in ("client", "server"):
        assert metrics.value("mesh_connections_opened_total", service="web", role=role) == 2
        assert metrics.value("mesh_connections_active", service="web", role=role) == 2
    assert metrics.by(CONNECTS + "_bucket", "le", service="web")["+Inf"] == 2
    assert agent.attempts("web", "connect")["admitted"] == 2
    assert agent.attempts("web", "request")["admitted"] == total
    assert agent.lost() == 0
    assert metrics.value("process_start_time_seconds") > started, "that is the process's own"
    for client, server in (second, (client, server)):
        client.close()
        assert until_closed(server) == 0
        server.close()

    def moved():
        metrics = agent.metrics()
        kinds = ("mesh_connections_active", "mesh_sent_bytes_total", "mesh_received_bytes_total")
        return [[metrics.value(kind, service="web", role=role) for kind in kinds] for role in ("client", "server")]

    request, answer = total * len(GET), total * len(response())
    agent.expect(moved, [[0, request, answer], [0, answer, request]])


def test_counters_go_on_through_another_layout(start_agent, world):
    """What waits in the ring buffer of the maps that are replaced is counted once, too."""
    agent = start_agent({**config(service()), **LEASE}, environment={"MESH_AGENT_LAYOUT": "1000"})
    agent.override("web", "close", 3600, "a new version")
    client, server = world.pair("lo4", 9001)
    for _ in range(30):
        exchange(client, server)
    agent.expect_codes("web", {"200": 30})
    agent.kill()
    for _ in range(20):
        exchange(client, server)
    del agent.environment["MESH_AGENT_LAYOUT"]
    agent.start()
    pages_agree(agent, "web", 50)
    second = world.pair("lo4", 9001)
    exchange(*second)
    restart(agent)
    exchange(*second)
    pages_agree(agent, "web", 52)
    assert agent.breaker("web")["override"]["reason"] == "a new version"
    assert not [line for line in agent.logs() if "of no use" in line["message"]]


def test_an_override_that_is_ended_is_told_once(start_agent, world):
    """However much has to be kept at that moment, and whatever comes of its service meanwhile."""
    others = [service(f"s{n}", 9100 + n) for n in range(300)]
    agent = start_agent({**config(service(window="5m"), *others), **LEASE})
    # From now on the engine looks at its breaker with each of its requests.
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    with load(world):
        for number in range(10):
            agent.override("web", "close", 60, f"number {number}")
            for other in range(300):
                connect_errno(world, "lo4", 9100 + other)
            agent.automatic("web")
    events = [event for event in agent.ask("/v1/events")["events"] if event["kind"].startswith("override")]
    assert [event["kind"] for event in events] == ["override", "override_end"] * 10
    assert {event["reason"] for event in events} == {"override"}


@pytest.mark.limit(60 + 3 * KILLS)
def test_killed_at_any_instant_under_load(start_agent, world):
    """Whatever the agent was doing. The server's own count of requests says what is right."""
    agent = start_agent({**config(service()), **LEASE})
    dice = random.Random(5)
    with load(world) as totals:
        for _ in range(KILLS):
            time.sleep(dice.random() * 0.3)
            agent.kill()
            agent.start()
    requests, connections = totals()
    assert requests > 100 * KILLS
    pages_agree(agent, "web", requests)
    assert agent.lost() == 0
    metrics = agent.metrics()
    for role in ("client", "server"):
        assert metrics.value("mesh_connections_opened_total", service="web", role=role) == connections
        agent.expect(lambda: agent.metrics().value("mesh_connections_active", service="web", role=role), 0)
    assert agent.attempts("web", "connect")["admitted"] == connections
    assert agent.attempts("web", "request")["admitted"] == requests
    assert not [line for line in agent.logs() if line["level"] in ("warning", "error")], agent.logs()


def test_killed_between_a_commit_and_its_release(start_agent, world):
    """What is in the file and still in the ring buffer, too, is counted once."""
    agent = start_agent({**config(service()), **LEASE})
    client, server = world.pair("lo4", 9001)
    agent.kill()
    count = 0
    for number in range(2, 6):
        agent.spawn(MESH_AGENT_DIE_AT_COMMIT=str(number))
        while agent.process.poll() is None:
            exchange(client, server)
            count += 1
        agent.ended(-signal.SIGKILL)
    agent.start()
    pages_agree(agent, "web", count)
    assert agent.attempts("web", "request")["admitted"] == count


@pytest.mark.limit(120)
def test_killed_while_the_state_is_written(start_agent, world):
    """SIGKILL from outside, at instants around those at which the file grows."""
    agent = start_agent({**config(service()), **LEASE})
    dice = random.Random(6)
    with load(world) as totals:
        for _ in range(max(4, KILLS // 2)):
            size, deadline = state(agent).stat().st_size, time.monotonic() + 2
            while state(agent).stat().st_size == size and time.monotonic() < deadline:
                pass
            time.sleep(dice.random() * 0.0005)
            agent.kill()
            agent.start()
    pages_agree(agent, "web", totals()[0])
    assert agent.attempts("web", "request")["admitted"] == totals()[0]


def test_overrides_stay_with_who_and_why(start_agent, world):
    agent = start_agent({**config(service(), service("second", 9002)), **LEASE})
    world.listen("lo4", 9001)
    agent.meshctl("breaker", "open", "web", "--reason", "a drill", "--for", "1h")
    # At once: it is in the state before the answer.
    agent.kill()
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.start()
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    found = agent.breaker("web")
    assert found["override"]["reason"] == "a drill" and found["override"]["actor"].startswith("root (pid ")
    assert found["state"] == "open" and found["reason"] == "override"
    until = datetime.datetime.fromisoformat(found["override"]["expires_at"][:-1])
    since = datetime.datetime.fromisoformat(found["override"]["since"][:-1])
    assert abs(until - since - datetime.timedelta(hours=1)) < datetime.timedelta(milliseconds=5)
    assert [event["kind"] for event in found["history"]] == ["override"]
    restart(agent)
    assert same(lasting(agent.breaker("web")), lasting(found))
    agent.automatic("web")
    restart(agent)
    assert agent.breaker("web")["override"] is None
    assert connect_errno(world, "lo4", 9001) == 0
    history = agent.breaker("web")["history"]
    assert [event["kind"] for event in history] == ["override", "override_end"]
    assert history[1]["actor"].startswith("root (pid ")
    assert same(history[:1], found["history"])
    transitions = agent.metrics().by("mesh_breaker_transitions_total", "to", service="web")
    assert transitions == {"open": 1, "closed": 1}


def test_an_override_that_ends_while_there_is_no_agent(start_agent, world):
    agent = start_agent({**config(service()), **LEASE})
    world.listen("lo4", 9001)
    agent.override("web", "open", 2)
    agent.kill()
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 6, 0.01)
    agent.start()
    agent.expect(lambda: agent.breaker("web")["override"], None)
    history = agent.breaker("web")["history"]
    assert [(event["kind"], event["reason"]) for event in history] == [
        ("override", "override"),
        ("override_end", "override_expired"),
    ]


def test_breakers_go_on(start_agent, world):
    """An open breaker has its deadline, reason and history; the next opening is longer than the first."""
    probe = {"ratio": 0.000001, "interval": "1s", "successes": 2, "ramp": "1h"}
    settings = config(service(consecutiveFailures=2, openFor="2s", maxOpenFor="1h", probe=probe))
    agent = start_agent({**settings, **LEASE})
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    # The first of two failures in a row is the agent's before.
    agent.expect(lambda: agent.breaker("web")["window"]["consecutive_failures"], 1)
    restart(agent)
    assert agent.breaker("web")["window"]["consecutive_failures"] == 1
    assert agent.breaker("web")["window"]["requests"] == 1
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    opened = agent.wait_state("web", "open")
    # How fast it was, an agent that is killed at once takes with it.
    committed(agent)
    restart(agent)
    assert agent.metrics().value("mesh_breaker_reaction_seconds_count") == 1
    now = agent.breaker("web")
    # Its time may be over by now.
    assert same(lasting(now), lasting(opened)) or now["state"] == "half_open"
    assert same(now["history"][:1], opened["history"])
    agent.wait_state("web", "half_open")
    restart(agent)
    half = agent.breaker("web")
    assert half["state"] == "half_open" and half["reason"] == "deadline"
    # A probe fails while there is no agent: the next one opens it, for twice as long.
    agent.kill()
    probed(world)
    agent.start()
    again = agent.wait_state("web", "open")
    assert again["reason"] == "probe_failed"
    since, until = (datetime.datetime.fromisoformat(again[key][:-1]) for key in ("since", "open_until"))
    assert 4 <= (until - since).total_seconds() <= 4.41
    restart(agent)
    assert [event["to"] for event in again["history"]] == ["open", "half_open", "open"]
    assert same(agent.breaker("web")["history"][:3], again["history"])
    counted = agent.metrics().by("mesh_breaker_transitions_total", "reason", service="web")
    assert counted["consecutive_failures"] == counted["probe_failed"] == 1

    # Probes that succeed, on both sides of a restart, and the ramp that follows.
    agent.wait_state("web", "half_open", timeout=10)
    with Server(world.listen("lo4", 9001), http_server()):

        def succeeds():
            return connect_errno(world, "lo4", 9001) == 0

        poll(succeeds, 5, 0.05, "a probe succeeds")
        agent.expect(lambda: agent.breaker("web")["probe_successes"], 1)
        restart(agent)
        assert agent.breaker("web")["probe_successes"] == 1
        poll(succeeds, 5, 0.05, "another one")
        agent.expect(lambda: agent.breaker("web")["probe_share"], 0.1)
        restart(agent)
        assert agent.breaker("web")["probe_share"] == 0.1
        assert agent.breaker("web")["state"] == "half_open"


def probed(world):
    """Connects for so long that a half-open breaker has let one through, to a port where nobody listens."""
    end = time.monotonic() + 2.2
    while time.monotonic() < end:
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED


def test_what_failed_while_there_was_no_agent_trips(start_agent, world):
    agent = start_agent({**config(service(consecutiveFailures=3)), **LEASE})
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.kill()
    for _ in range(2):
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    world.listen("lo4", 9001)
    agent.start()
    agent.wait_state("web", "open")
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    assert agent.failed("web")["refused"] == 3


def test_the_bindings_of_processes_go_on(start_agent, world):
    agent = start_agent({**config(service()), **LEASE})
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as other:
        for number, process in enumerate((one, other)):
            agent.meshctl("trace", "bind", "--pid", process.pid, "--trace", f"{number + 1:032x}")
        before = agent.ask("/v1/traces")["bindings"]
        assert len(before) == 2
        committed(agent)
        agent.kill()
        other.kill()
        other.wait()
        agent.start()
        after = agent.ask("/v1/traces")["bindings"]
        assert same(after, [binding for binding in before if binding["pid"] == one.pid])
        one.kill()
        one.wait()
        agent.expect(lambda: agent.ask("/v1/traces")["bindings"], [])


def test_a_clean_end_leaves_no_state(start_agent, world):
    agent = start_agent(config(service()))
    client, server = world.pair("lo4", 9001)
    exchange(client, server)
    agent.expect_codes("web", {"200": 1})
    poll(state(agent).exists, what="the state is written")
    agent.stop()
    directory = pathlib.Path(agent.control).parent
    assert [path.name for path in directory.iterdir() if ".state" in path.name] == []
    agent.start()
    exchange(client, server)
    agent.expect_codes("web", {"200": 1})


def test_what_is_kept_on_purpose_goes_on(start_agent, world):
    agent = start_agent({**config(service()), **LEASE}, arguments=["--keep"])
    client, server = world.pair("lo4", 9001)
    for _ in range(5):
        exchange(client, server)
    agent.signal(signal.SIGTERM)
    agent.ended(0)
    for _ in range(4):
        exchange(client, server)
    agent.start()
    exchange(client, server)
    pages_agree(agent, "web", 10)
    agent.kill()


def test_a_damaged_state_is_put_aside(start_agent, world):
    """What waits is counted, what is enforced is enforced, and the log says what happened."""
    agent = start_agent({**config(service(), service("second", 9002)), **LEASE})
    client, server = world.pair("lo4", 9001)
    exchange(client, server)
    agent.expect_codes("web", {"200": 1})
    world.listen("lo4", 9002)
    agent.override("second", "open")
    committed(agent)
    agent.kill()
    content = bytearray(state(agent).read_bytes())
    content[len(content) // 2] ^= 1
    state(agent).write_bytes(content)
    for _ in range(7):
        exchange(client, server)
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    agent.start()
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    assert agent.breaker("second")["override"]["state"] == "open"
    agent.expect_codes("web", {"200": 7})
    warnings = [line for line in agent.logs() if line["level"] == "warning" and "state" in line["message"]]
    assert len(warnings) == 1 and "damaged at byte" in warnings[0]["reason"], agent.logs()
    assert warnings[0]["file"] == agent.control + ".state.bad"
    assert pathlib.Path(warnings[0]["file"]).read_bytes() == content
    # The next one is whole again.
    restart(agent)
    pages_agree(agent, "web", 7)
    os.unlink(warnings[0]["file"])


@contextlib.contextmanager
def small_disk(agent):
    """Puts the directory of an agent's control socket on a disk of 256 kB, which is there as long as the block lasts;
    the agent ends with it."""
    directory = pathlib.Path(agent.control).parent
    run("mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", directory)
    try:
        yield directory
    finally:
        if agent.process:
            agent.kill()
        agent.killed and agent.cleanup()
        agent.killed = False
        run("umount", directory)


def test_a_full_disk_for_the_state(start_agent, world, tmp_path):
    """The agent goes on, says so once, enforces, and recovers."""
    agent = start_agent({**config(service(), service("second", 9002)), **LEASE}, start=False)
    with small_disk(agent) as directory:
        agent.start()
        kept = lambda: agent.metrics().value("mesh_agent_state_kept")
        client, server = world.pair("lo4", 9001)
        exchange(client, server)
        agent.expect(kept, 1)
        filler = directory / "filler"

        def fails():
            fill(filler)
            exchange(client, server)
            sent[0] += 1
            return kept() == 0

        sent = [1]
        poll(fails, 20, 0.0, "the file finds no room")
        world.listen("lo4", 9002)
        agent.override("second", "open", 3600, "no room")
        assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
        agent.expect_codes("web", {"200": sent[0]})
        failures = lambda: agent.metrics().value("mesh_agent_state_failures_total")
        before = failures()
        poll(lambda: failures() > before, 10, 0.1, "it tries again")
        told = lambda text: [line for line in agent.logs() if text in line["message"]]
        assert len(told("the state cannot be kept")) == 1
        assert "no space left" in told("the state cannot be kept")[0]["error"]

        filler.unlink()
        poll(kept, 10, 0.05, "it is kept again")
        assert len(told("the state is kept again")) == 1
        restart(agent)
        assert agent.breaker("second")["override"]["reason"] == "no room"
        exchange(client, server)
        pages_agree(agent, "web", sent[0] + 1)
        agent.stop()


def test_killed_while_the_disk_is_full(start_agent, world):
    """The state is older than what was counted: the next agent says so, and what is enforced is enforced."""
    agent = start_agent({**config(service(), service("second", 9002)), **LEASE}, start=False)
    with small_disk(agent) as directory:
        agent.start()
        client, server = world.pair("lo4", 9001)
        exchange(client, server)
        agent.expect_codes("web", {"200": 1})
        committed(agent)

        def fails():
            fill(directory / "filler")
            exchange(client, server)
            return agent.metrics().value("mesh_agent_state_kept") == 0

        poll(fails, 20, 0.0, "the file finds no room")
        world.listen("lo4", 9002)
        agent.override("second", "open", 3600, "no room")
        agent.expect(lambda: connect_errno(world, "lo4", 9002), errno.ECONNREFUSED)
        for _ in range(5):
            exchange(client, server)
        failures = lambda: agent.metrics().value("mesh_agent_state_failures_total")
        before = failures()
        poll(lambda: failures() > before, 10, 0.1, "what was counted left the ring buffer")
        agent.kill()
        (directory / "filler").unlink()
        agent.start()
        assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
        assert agent.breaker("second")["override"]["state"] == "open"
        short = [line for line in agent.logs() if "counts are short" in line["message"]]
        assert len(short) == 1 and short[0]["bytes_of_samples"] > 0
        agent.stop()
