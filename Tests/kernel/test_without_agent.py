"""meshctl where no agent runs: it shows what the kernel goes on enforcing, forces breakers, and the next agent goes on
with that as with its own."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess

import pytest

from meshtest.agent import binary, committed, same
from meshtest.host import poll, run
from meshtest.policies import config, service
from meshtest.storm import Storm
from meshtest.traffic import GET, connect_errno, exchange, until_closed

LASTING = {"openFor": "1h", "maxOpenFor": "1h", "probe": {"ratio": 0.000001, "interval": "1h"}}
LEASE = {"breakers": {"maxOpenShare": 1.0, "lease": "5m"}}


def meshctl(agent, *words, code=0, prefix=()):
    """Runs meshctl, and returns its answer and what it says besides."""
    command = [*prefix, binary("meshctl", "MESHCTL"), "--control", agent.control, "-o", "json", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    said = json.loads(done.stderr) if done.stderr else {}
    return json.loads(done.stdout) if done.stdout else None, said


def table(agent, *words, code=0):
    command = [binary("meshctl", "MESHCTL"), "--control", agent.control, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def breaker_state(agent, number):
    """What the kernel's map has of a breaker, by its service's number."""
    pinned = agent.pins() + "/maps/breakers"
    key = [str(byte) for byte in number.to_bytes(4, "little")]
    found = json.loads(run("bpftool", "-j", "map", "lookup", "pinned", pinned, "key", *key).stdout)["value"]
    return int(found[0], 16)


def without_figures(breaker):
    """What of a breaker stays as it is: its window slides."""
    return {key: value for key, value in breaker.items() if key not in ("window", "agent", "rejects")}


def dead(start_agent, world, *more, **options):
    """A killed agent with a breaker that is closed (`web`, 9001), one that tripped (`second`, 9002), one that
    observes (`third`, 9003) and a service without one (`plain`)."""
    plain = service("plain", 9004)
    del plain["breaker"]
    services = [
        service(),
        service("second", 9002, consecutiveFailures=1, **LASTING),
        service("third", 9003, mode="observe"),
        plain,
        *more,
    ]
    agent = start_agent({**config(*services), **LEASE}, **options)
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    agent.wait_state("second", "open")
    for port in (9001, 9002, 9003):
        world.listen("lo4", port)
    shown = {name: agent.breaker(name) for name in ("web", "second", "third")}
    committed(agent)
    agent.kill()
    return agent, shown


def test_it_is_shown_as_the_agent_showed_it(start_agent, world):
    agent, before = dead(start_agent, world)
    listed, said = meshctl(agent, "breaker", "list")
    assert listed["agent"] is None and "no agent runs" in said["warning"] and "lease ends" in said["warning"]
    assert [row["service"] for row in listed["breakers"]] == ["second", "third", "web"]
    assert [row["rejects"] for row in listed["breakers"]] == [True, False, False]
    for name, shown in before.items():
        now, _ = meshctl(agent, "breaker", "show", name)
        assert now["agent"] is None
        # The kernel has it as a number of 2^-32.
        assert now.pop("probe_share") == pytest.approx(shown.pop("probe_share"), abs=2**-32)
        assert same(without_figures(now), without_figures(shown)), (now, shown)
    text, said = table(agent, "breaker", "list")
    assert "consecutive_failures" in text and said.startswith("meshctl: warning: no agent runs at " + agent.control)
    # What is asked is not counted or changed.
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    again, _ = meshctl(agent, "breaker", "show", "second")
    assert again["attempts"]["connect"]["rejected"] == before["second"]["attempts"]["connect"]["rejected"] + 1


def test_status(start_agent, world):
    agent, _ = dead(start_agent, world)
    meshctl(agent, "breaker", "open", "web", "--reason", "INC-1", "--for", "1h")
    status, said = meshctl(agent, "status", code=3)
    assert status["agent"] is None and said == {}
    assert status["last_agent"]["pid"] > 0 and status["last_agent"]["seen_at"]
    assert all(hook["attached"] for hook in status["hooks"]) and len(status["hooks"]) == 6
    assert {"lo", "veth0"} <= {entry["name"] for entry in status["interfaces"]}
    assert status["pins"]["directory"] == agent.pins() and status["lease"]["valid"] and status["lease"]["ends_at"]
    assert status["services"] == {"configured": 4, "discovered": 0}
    assert status["breakers"] == {
        "enforce": 2,
        "observe": 1,
        "open": 2,
        "half_open": 0,
        "overridden": 1,
        "rejecting": 2,
    }
    assert [(row["service"], row["state"], row["reason"]) for row in status["overrides"]] == [("web", "open", "INC-1")]
    text, said = table(agent, "status", code=3)
    assert "NONE RUNS" in text and "web forced open by root" in text and said == ""


def test_forced_and_taken_over(start_agent, world):
    agent, _ = dead(start_agent, world)
    pair = world.pair("veth4", 9001)
    opened, said = meshctl(agent, "breaker", "open", "web", "--reason", "INC-7: it is down", "--for", "1h")
    assert opened["agent"] is None and opened["rejects"] is True and "next agent" in said["warning"]
    assert (opened["state"], opened["override"]["reason"]) == ("open", "INC-7: it is down")
    assert opened["override"]["actor"].startswith("root (pid ")
    # At once: connects, and requests on what is established.
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    client, server = pair
    client.sendall(GET)
    assert until_closed(client) == until_closed(server) == errno.ECONNRESET
    shown, _ = meshctl(agent, "breaker", "show", "web")
    assert shown["attempts"]["connect"]["rejected"] == 1 and shown["attempts"]["request"]["rejected"] == 1
    closed, _ = meshctl(agent, "breaker", "close", "second", "--reason", "it is up again")
    assert (closed["state"], closed["rejects"]) == ("closed", False)
    assert connect_errno(world, "lo4", 9002) == 0
    automatic, _ = meshctl(agent, "breaker", "auto", "second")
    assert (automatic["state"], automatic["override"]) == ("open", None)
    assert connect_errno(world, "lo4", 9002) == errno.ECONNREFUSED
    meshctl(agent, "breaker", "auto", "web")
    assert connect_errno(world, "lo4", 9001) == 0
    meshctl(agent, "breaker", "auto", "web")
    opened, _ = meshctl(agent, "breaker", "open", "web", "--reason", "INC-8", "--for", "2h")
    shown, _ = meshctl(agent, "breaker", "show", "web")
    assert [event["kind"] for event in shown["history"]] == ["override", "override_end", "override"]

    agent.start()
    taken = agent.breaker("web")
    assert same(taken["override"], opened["override"])
    assert taken["history"] == shown["history"]
    assert agent.breaker("second")["state"] == "open" and agent.breaker("second")["override"] is None
    texts = [event["text"] for event in agent.ask("/v1/events")["events"] if event["kind"] == "override"]
    assert texts == ["INC-7: it is down", "it is up again", "INC-8"]
    changes = agent.metrics().by("mesh_breaker_transitions_total", "reason", service="web")
    assert changes["override"] == 3
    # What nobody was there to log is in the log of the next one, once.
    told = lambda: [line["text"] for line in agent.logs() if line["message"] == "breaker overridden"]
    assert told() == texts
    assert all(line["happened_at"] for line in agent.logs() if line["message"] == "breaker overridden")
    agent.kill()
    agent.start()
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    # What is logged after all that a start logs is in the log by now.
    agent.override("third", "open", 60, "the last line")
    agent.expect(told, texts + ["the last line"])
    agent.automatic("web")
    assert connect_errno(world, "lo4", 9001) == 0
    agent.stop()


def test_samples_that_wait_are_counted_once_all_the_same(start_agent, world):
    """What is added to the state keeps its place in the ring buffer."""
    agent = start_agent({**config(service()), **LEASE})
    client, server = world.pair("lo4", 9001)
    for _ in range(50):
        exchange(client, server)
    agent.expect_codes("web", {"200": 50})
    # So that their room in the ring buffer is free: a place before it would be wrong.
    committed(agent)
    agent.kill()
    for _ in range(30):
        exchange(client, server)
    meshctl(agent, "breaker", "close", "web", "--reason", "x")
    for _ in range(20):
        exchange(client, server)
    meshctl(agent, "breaker", "auto", "web")
    agent.start()
    agent.expect_codes("web", {"200": 100})
    assert agent.attempts("web", "request")["admitted"] == 100
    assert agent.lost() == 0
    assert not [line for line in agent.logs() if "no use" in line["message"] or "short" in line["message"]]


@pytest.mark.limit(120)
def test_no_attempt_leaks_when_it_is_taken_over(start_agent, world):
    agent = start_agent({**config(service()), **LEASE})
    world.listen("lo4", 9001)
    agent.kill()
    meshctl(agent, "breaker", "open", "web", "--reason", "a storm", "--for", "1h")
    with Storm(world.near, (9001,)) as storm:
        for _ in range(5):
            agent.start()
            agent.kill()
            meshctl(agent, "breaker", "open", "web", "--reason", "again", "--for", "1h")
        agent.start()
    assert set(storm.results[9001]) == {errno.ECONNREFUSED}
    assert agent.attempts("web", "connect")["rejected"] == storm.results[9001][errno.ECONNREFUSED]
    assert agent.breaker("web")["override"]["reason"] == "again"


def test_past_the_lease(start_agent, world):
    """An open breaker that needs the lease rejects nothing any more, and that is said; one that is forced does."""
    settings = config(service(consecutiveFailures=1, **LASTING), breakers={"lease": "1s", "maxOpenShare": 1.0})
    agent = start_agent(settings)
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.wait_state("web", "open")
    world.listen("lo4", 9001)
    agent.kill()
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 5, 0.02, "the lease is over")
    shown, said = meshctl(agent, "breaker", "show", "web")
    assert (shown["state"], shown["rejects"]) == ("open", False) and "lease is over" in said["warning"]
    assert "open (lease over)" in table(agent, "breaker", "list")[0]
    status, _ = meshctl(agent, "status", code=3)
    assert status["lease"]["valid"] is False and status["breakers"]["rejecting"] == 0
    forced, _ = meshctl(agent, "breaker", "open", "web", "--reason", "x")
    assert forced["rejects"] is True
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED


def test_an_override_ends_by_itself_and_the_next_agent_tells_it(start_agent, world):
    agent, _ = dead(start_agent, world)
    meshctl(agent, "breaker", "open", "web", "--reason", "x", "--for", "3s")
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 8, 0.02, "it expires")
    shown, _ = meshctl(agent, "breaker", "show", "web")
    assert (shown["state"], shown["override"], shown["reason"]) == ("closed", None, "override_expired")
    meshctl(agent, "breaker", "close", "web", "--reason", "y")
    agent.start()
    history = [(event["kind"], event["reason"]) for event in agent.breaker("web")["history"]]
    assert history == [("override", "override"), ("override_end", "override_expired"), ("override", "override")]


def test_what_is_refused(start_agent, world, tmp_path):
    """As by an agent, and nothing is changed by it."""
    agent, _ = dead(start_agent, world)
    path = pathlib.Path(agent.control + ".state")
    before = path.read_bytes()
    refused = lambda *words, **options: meshctl(agent, *words, code=1, **options)[1]
    assert refused("breaker", "open", "wbe", "--reason", "x")["suggestion"] == "web"
    assert "only observed" in refused("breaker", "open", "plain", "--reason", "x")["error"]
    assert "500 bytes" in refused("breaker", "open", "web", "--reason", "x" * 501)["error"]
    assert "a week" in refused("breaker", "open", "web", "--reason", "x", "--for", "169h")["error"]
    assert "wbe" in refused("breaker", "show", "wbe")["error"]
    assert path.read_bytes() == before
    # One that observes takes it, and rejects nothing.
    assert meshctl(agent, "breaker", "open", "web", "--reason", "x")[0]["state"] == "open"
    observed = table(agent, "breaker", "open", "third", "--reason", "x")
    assert "mode observe" in observed[1] and connect_errno(world, "lo4", 9003) == 0


def test_others_may_not(start_agent, world):
    agent, _ = dead(start_agent, world)
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
    _, said = meshctl(agent, "breaker", "open", "web", "--reason", "x", code=3, prefix=nobody)
    assert "ermission denied" in said["error"] and "root" in said["error"]
    assert connect_errno(world, "lo4", 9001) == 0


def test_of_another_user(start_agent, world):
    """Where files, locks and sockets are somebody else's, each command says whose, and what to do."""
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
    base = pathlib.Path(f"/run/mesh-test-{os.getpid()}-others")
    base.mkdir(mode=0o711)
    try:
        agent = start_agent({**config(service()), **LEASE}, start=False)
        place = base / "control"
        place.mkdir(mode=0o755)
        agent.control = str(place / "control.sock")
        agent.start()
        agent.kill()
        commands = (["status"], ["breaker", "list"], ["breaker", "open", "web", "--reason", "x"])
        for there in (True, False):
            for words in commands:
                _, said = meshctl(agent, *words, code=3, prefix=nobody)
                assert ("permission denied" if there else "no socket") in said["error"] and "as root" in said["error"]
                assert there or "hidden from this user" in said["error"]
            _, said = meshctl(agent, "cleanup", code=1, prefix=nobody)
            assert said["error"] == f"cannot lock {agent.control}.lock: permission denied; " + (
                "run meshctl as root, for example with sudo"
            )
            if there:
                os.unlink(agent.control)
        # Root does not trust what another user could change under its hands.
        os.chown(place, 65534, 65534)
        whose = f"cannot use the directory {place}: it belongs to nobody, who could put another socket there; "
        whose += "if you trust what is in it, make it root's with mode 0700"
        for words in commands:
            _, said = meshctl(agent, *words, code=3)
            assert said["error"] == "no agent runs, and what it left cannot be used: " + whose
        _, said = meshctl(agent, "cleanup", code=1)
        assert said["error"] == whose
        os.chown(place, 0, 0)
        assert meshctl(agent, "breaker", "open", "web", "--reason", "x")[0]["state"] == "open"
        agent.start()
        assert agent.breaker("web")["override"]["reason"] == "x"
        agent.stop()
    finally:
        shutil.rmtree(base)


def test_an_agent_that_hangs_or_starts(start_agent, world):
    agent = start_agent(config(service()))
    agent.pause()
    _, said = meshctl(agent, "breaker", "open", "web", "--reason", "x", code=3)
    assert "does not answer" in said["error"]
    os.unlink(agent.control)
    _, said = meshctl(agent, "breaker", "open", "web", "--reason", "x", code=3)
    assert f"pid {agent.process.pid}" in said["error"] and "does not listen" in said["error"]
    agent.resume()


def test_nothing_is_left(start_agent, world):
    agent, _ = dead(start_agent, world)
    agent.meshctl("cleanup")
    for words in (["status"], ["breaker", "list"], ["breaker", "open", "web", "--reason", "x"]):
        _, said = meshctl(agent, *words, code=3)
        assert said["error"].startswith("no agent: there is no socket at")


def test_a_trip_that_was_not_kept(start_agent, world):
    """The agent is killed as soon as it has told the kernel, mostly before it was kept; then somebody forces the
    breaker. Each transition is counted once, and told once."""
    agent = start_agent({**config(service(consecutiveFailures=1, **LASTING)), **LEASE})
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    poll(lambda: breaker_state(agent, 1) == 1, 5, 0, "the kernel is told")
    agent.kill()
    meshctl(agent, "breaker", "close", "web", "--reason", "it is up")
    agent.start()
    page = agent.metrics()
    for names, count in ((("closed", "open", "consecutive_failures"), 1), (("open", "closed", "override"), 1)):
        labels = dict(zip(("from", "to", "reason"), names))
        assert page.value("mesh_breaker_transitions_total", service="web", **labels) == count
    history = [(event["kind"], event["reason"]) for event in agent.breaker("web")["history"]]
    assert sorted(history) == [("override", "override"), ("transition", "consecutive_failures")]
    agent.automatic("web")
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED


def test_without_the_state(start_agent, world):
    """What rejects is still shown; nothing is forced, for nobody would know who did it."""
    agent, _ = dead(start_agent, world)
    state = pathlib.Path(agent.control + ".state")
    kept = state.read_bytes()
    damaged = bytearray(kept)
    damaged[80] ^= 1
    for content in (bytes(damaged), None):
        state.unlink()
        if content:
            state.write_bytes(content)
        listed, said = meshctl(agent, "breaker", "list")
        assert sorted(row["state"] for row in listed["breakers"]) == ["closed", "closed", "open"]
        assert all(row["service"].startswith("unknown-") for row in listed["breakers"])
        assert "not known" in said["warning"]
        _, said = meshctl(agent, "breaker", "open", "web", "--reason", "x", code=1)
        assert "meshctl cleanup" in said["error"] and str(state) in said["error"]
        assert connect_errno(world, "lo4", 9001) == 0
    state.write_bytes(kept)
    # A commit that was cut off goes; the rest holds.
    with open(state, "ab") as file:
        file.write(kept[56:200])
    meshctl(agent, "breaker", "open", "web", "--reason", "after all")
    agent.start()
    assert agent.breaker("web")["override"]["reason"] == "after all"


def test_another_layout(start_agent, world):
    agent, _ = dead(start_agent, world, environment={"MESH_AGENT_LAYOUT": "99"})
    for words in (["status"], ["breaker", "list"], ["breaker", "open", "web", "--reason", "x"]):
        _, said = meshctl(agent, *words, code=1)
        assert "layout 99" in said["error"]
    assert connect_errno(world, "lo4", 9001) == 0


def test_elsewhere(start_agent, world, tmp_path):
    """Pins and a control socket at other places, and an agent that ended with --keep."""
    pins = f"/sys/fs/bpf/mesh-elsewhere-{os.getpid()}"
    agent = start_agent({**config(service()), **LEASE}, arguments=["--keep", "--pins", pins])
    world.listen("lo4", 9001)
    agent.signal(signal.SIGTERM)
    agent.ended(0)
    try:
        _, said = meshctl(agent, "breaker", "open", "web", "--reason", "x", code=3)
        assert said["error"].startswith("no agent")
        meshctl(agent, "breaker", "open", "web", "--reason", "x", "--pins", pins)
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
        # Without its directory there is no state.
        shutil.rmtree(pathlib.Path(agent.control).parent)
        listed, said = meshctl(agent, "breaker", "list", "--pins", pins)
        assert [row["state"] for row in listed["breakers"]] == ["open"] and "not known" in said["warning"]
    finally:
        pathlib.Path(agent.control).parent.mkdir(mode=0o700, exist_ok=True)
        agent.meshctl("cleanup", "--pins", pins)
