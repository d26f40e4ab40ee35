"""Enforcement proves itself: what somebody else detaches, replaces or removes is noticed, repaired, counted and
told once; and what cannot be repaired is told to whoever asks whether the agent is ready."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import struct
import time

import pytest

from meshtest.agent import CAPABILITIES
from meshtest.host import poll, run
from meshtest.policies import config, service
from meshtest.traffic import GET, connect_errno, exchange, until_closed

HOOKS = {
    "mesh_sockops": "sock_ops",
    "mesh_ingress": "cgroup_skb ingress",
    "mesh_egress": "cgroup_skb egress",
    "mesh_release": "sock_release",
    "mesh_connect4": "connect4",
    "mesh_connect6": "connect6",
}
TOLD = "something of what enforces was missing, and was repaired"
CANNOT = "something of what enforces is missing, and cannot be repaired"
OVER = "what was missing of what enforces is missing no longer"


@pytest.fixture
def inner(host):
    """A cgroup of the test's own, which is gone after it."""
    made = host.scratch.child("inner")
    yield made
    if os.path.exists(made.directory):
        made.remove()


def ready(agent):
    """Asks whether the agent is ready, which has it look if it has not for a second: (status, sentence)."""
    status, _, body = agent.get("/readyz")
    return status, body.decode()


def figure(agent, name, part):
    return agent.metrics().value("mesh_agent_enforcement_" + name, part=part)


def repaired(agent, part, count):
    """Waits until so many faults were repaired, and checks that so many were found, and none is left."""
    poll(lambda: ready(agent) and figure(agent, "repairs_total", part) >= count, 15, 0.05, "it is repaired")
    assert figure(agent, "repairs_total", part) == figure(agent, "faults_total", part) == count
    assert agent.metrics().value("mesh_agent_enforcement_broken") == 0
    assert ready(agent) == (200, "ready\n")


def checked(agent):
    """Waits until the agent has looked once more, from beginning to end."""
    checks = lambda: agent.metrics().value("mesh_agent_enforcement_checks_total")
    before = checks()
    poll(lambda: ready(agent) and checks() >= before + 2, 15, 0.05, "the agent looks")


def told(agent, message=TOLD):
    return [
        {key: line[key] for key in ("part", "what", "where", "fault")}
        for line in agent.logs()
        if line["message"] == message
    ]


def expect_told(agent, wanted, message=TOLD):
    """The log is written by a thread of its own."""
    agent.expect(lambda: told(agent, message), wanted)


def detach(pin):
    run("bpftool", "link", "detach", "pinned", pin)


def link_pins(agent, start):
    directory = agent.pins() + "/links"
    return [f"{directory}/{name}" for name in sorted(os.listdir(directory)) if name.startswith(start)]


def rejects(agent, world):
    """A connect is refused, and a request is reset at both ends."""
    client, server = world.pair("veth4", 9001)
    exchange(client, server)
    agent.override("web", "open")
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    assert connect_errno(world, "lo6", 9001) == errno.ECONNREFUSED
    client.sendall(GET)
    assert until_closed(client) == errno.ECONNRESET
    assert until_closed(server) == errno.ECONNRESET
    agent.automatic("web")


def attached(agent, count=6):
    """All programs are at the cgroup, each once."""
    assert len([line for line in agent.attachments() if line.startswith("/")]) == count, agent.attachments()
    assert all(hook["attached"] for hook in agent.status()["hooks"])


def test_nothing_is_found_where_nothing_is_wrong(start_agent, world):
    """Interfaces that come and go are no fault, nor is a reload."""
    agent = start_agent(config(service()))
    for _ in range(3):
        world.near.batch(*[f"link add one{n} type veth peer name two{n}" for n in range(5)])
        ready(agent)
        world.near.batch(*[f"link del one{n}" for n in range(5)])
        ready(agent)
    agent.reload(config(service(), service("second", 9002)))
    checked(agent)
    assert agent.metrics().value("mesh_agent_enforcement_faults_total") == 0
    assert agent.status()["enforcement"]["broken"] == []
    expect_told(agent, [])


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "not-pinned"])
def test_links_to_the_cgroup_that_somebody_detached(start_agent, world, pinned):
    agent = start_agent(config(service()))
    rejects(agent, world)
    for number, (program, hook) in enumerate(HOOKS.items(), 1):
        pin = link_pins(agent, program)[0]
        detach(pin)
        if not pinned:
            os.unlink(pin)
        assert len([line for line in agent.attachments() if line.startswith("/")]) == 5
        repaired(agent, "cgroup", number)
        fault = {
            "part": "cgroup",
            "what": hook,
            "where": f"cgroup {agent.cgroup.path}",
            "fault": "somebody detached it",
        }
        agent.expect(lambda: (told(agent)[-1:], len(told(agent))), ([fault], number))
        attached(agent)
        assert link_pins(agent, program) == [pin]
    rejects(agent, world)
    checked(agent)
    assert figure(agent, "repairs_total", "cgroup") == 6


def test_nobody_needs_to_ask(start_agent, world):
    """The agent looks by itself, every few seconds."""
    agent = start_agent(config(service()))
    detach(link_pins(agent, "mesh_connect4")[0])
    poll(lambda: figure(agent, "repairs_total", "cgroup") == 1, 20, 0.1, "it is repaired")
    rejects(agent, world)


def test_a_program_in_place_of_the_agents(start_agent, world, foreign):
    """Somebody has the agent's own link run another program."""
    agent = start_agent(config(service()))
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]

    def bpf(command, attributes):
        result = syscall(number, command, attributes, len(attributes))
        assert result >= 0, os.strerror(ctypes.get_errno())
        return result

    def opened(path):
        name = ctypes.create_string_buffer(str(path).encode())
        return bpf(7, struct.pack("=QII", ctypes.addressof(name), 0, 0))  # BPF_OBJ_GET

    link, program = opened(link_pins(agent, "mesh_connect4")[0]), opened(foreign.program("foreign_conn4"))
    bpf(29, struct.pack("=IIII", link, program, 0, 0))  # BPF_LINK_UPDATE
    os.close(link)
    os.close(program)
    world.listen("lo4", 9001)
    agent.override("web", "open")
    assert connect_errno(world, "lo4", 9001) == 0
    repaired(agent, "cgroup", 1)
    agent.expect(lambda: [line["fault"] for line in told(agent)], ["somebody put another program in its place"])
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED


def test_links_to_an_interface_that_somebody_detached(start_agent, world):
    agent = start_agent(config(service()))
    for number, program in enumerate(("mesh_tc_egress", "mesh_tc_ingress"), 1):
        for pin in link_pins(agent, program):
            if not pin.endswith("-1"):  # lo has the number 1
                detach(pin)
        repaired(agent, "interface", number)
        fault = {"part": "interface", "what": "tcx", "where": "interface veth0", "fault": "somebody detached it"}
        agent.expect(lambda: told(agent)[-1:], [fault])
        rejects(agent, world)
    checked(agent)
    assert figure(agent, "repairs_total", "interface") == 2


REMOVALS = {
    "qdisc": (["qdisc", "del", "dev", "veth0", "clsact"], "egress and ingress filter"),
    "egress": (["filter", "del", "dev", "veth0", "egress", "prio", "2"], "egress filter"),
    "ingress": (["filter", "del", "dev", "veth0", "ingress", "prio", "2"], "ingress filter"),
}


@pytest.mark.parametrize("pins", [True, False], ids=["pins", "no-pins"])
@pytest.mark.parametrize("what", list(REMOVALS))
def test_filters_that_somebody_removed(start_agent, world, what, pins):
    words, fault = REMOVALS[what]
    shown = lambda: world.near.run("tc", "qdisc", "show").stdout
    before = shown()
    agent = start_agent(
        config(service()),
        environment={"MESH_AGENT_FORCE_CLSACT": "1"},
        # Nothing can be pinned in a directory of a usual file system.
        arguments=[] if pins else ["--pins", "/run/mesh-test-no-pins"],
    )
    assert agent.status()["pins"]["error"] is None or not pins
    rejects(agent, world)
    world.near.run("tc", *words)
    repaired(agent, "interface", 1)
    line = {"part": "interface", "what": "clsact", "where": "interface veth0", "fault": f"somebody removed the {fault}"}
    expect_told(agent, [line])
    rejects(agent, world)
    checked(agent)
    assert figure(agent, "repairs_total", "interface") == 1
    agent.stop()
    assert shown() == before


def test_a_filter_that_cannot_be_put_back(start_agent, world):
    """Somebody has another qdisc in the place of the agent's."""
    agent = start_agent(config(service()), environment={"MESH_AGENT_FORCE_CLSACT": "1"})
    world.near.run("tc", "qdisc", "del", "dev", "veth0", "clsact")
    world.near.run("tc", "qdisc", "add", "dev", "veth0", "ingress")
    status, sentence = poll(lambda: ready(agent)[0] == 503 and ready(agent), 15, 0.05, "it is not ready")
    assert sentence.startswith("not ready: clsact at interface veth0: somebody removed the egress and ingress filter; ")
    assert "another program put an ingress qdisc there, which has no egress side" in sentence
    assert figure(agent, "broken", "interface") == 1
    assert "veth0" not in [entry["name"] for entry in agent.status()["interfaces"]]
    checked(agent)
    agent.expect(lambda: len(told(agent, CANNOT)), 1)
    assert figure(agent, "faults_total", "interface") == 1
    screen = agent.meshctl("status", output="table")
    assert "! clsact at interface veth0: somebody removed" in screen, screen
    world.near.run("tc", "qdisc", "del", "dev", "veth0", "ingress")
    repaired(agent, "interface", 1)
    rejects(agent, world)


def pins_below(agent):
    """Every pin of the agent's, by its path."""
    return {os.path.join(place, name) for place, _, names in os.walk(agent.pins()) for name in names}


@pytest.mark.parametrize(
    "what", ["maps/breakers", "links/mesh_egress-*", "maps/programs-*/mesh_connect4-*", "maps", "links", ""]
)
def test_pins_that_somebody_removed(start_agent, world, what):
    agent = start_agent(config(service()))
    agent.override("web", "open")
    place, before = agent.pins(), pins_below(agent)
    assert len(before) == 13 + 10 + 6 + 3, before
    run("sh", "-c", f"rm -r {place}/{what}" if what else f"rm -r {place}")
    poll(lambda: ready(agent) and figure(agent, "repairs_total", "pin") == 1, 15, 0.05, "pinned again")
    assert pins_below(agent) == before
    agent.expect(lambda: [line["what"] for line in told(agent)], ["pins"])
    assert agent.metrics().value("mesh_agent_pinned") == 1
    checked(agent)
    assert figure(agent, "faults_total", "pin") == 1
    # What is there now is locked, as what was there before.
    directory = os.open(place, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(directory)
    # They are good for the next one.
    world.listen("lo4", 9001)
    agent.kill()
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.start()
    assert agent.status()["pins"] == {"directory": place, "error": None, "takeover": True}
    assert agent.breaker("web")["override"]["state"] == "open"
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    assert agent.attempts("web", "connect")["rejected"] == 2
    attached(agent)


@contextlib.contextmanager
def mounted(directory):
    """A bpf file system, gone at the end if it is still there."""
    directory.mkdir(exist_ok=True)
    run("mount", "-t", "bpf", "bpf", directory)
    try:
        yield
    finally:
        run("umount", "-l", directory, check=False)


def test_a_bpf_file_system_that_somebody_unmounted(start_agent, world, tmp_path):
    place = tmp_path / "bpf"
    agent = start_agent(
        config(service()), start=False, capabilities=None, arguments=["--pins", f"{place}/agent", "--keep"]
    )
    with mounted(place):
        agent.start()
        agent.override("web", "open")
        before = sorted(os.listdir(place / "agent" / "maps"))
        run("umount", "-l", place)
        poll(lambda: ready(agent) and figure(agent, "broken", "pin") == 1, 15, 0.05, "it is noticed")
        # What is enforced is, and only ends with the agent.
        assert ready(agent) == (200, "ready\n")
        assert agent.metrics().value("mesh_agent_pinned") == 0
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
        error = f"cannot pin in {place}/agent: the bpf file system is not mounted there any more; mount it again"
        assert agent.status()["pins"]["error"] == error
        assert "Not everything is pinned: " + error in agent.meshctl("status", output="table").replace("\n", " ")
        checked(agent)
        agent.expect(lambda: len(told(agent, CANNOT)), 1)
        assert not os.listdir(place)
        with mounted(place):
            poll(lambda: ready(agent) and figure(agent, "repairs_total", "pin") == 1, 15, 0.05, "pinned again")
            assert agent.metrics().value("mesh_agent_pinned") == 1
            assert sorted(os.listdir(place / "agent" / "maps")) == before
            assert figure(agent, "broken", "pin") == 0 and figure(agent, "faults_total", "pin") == 1
            agent.kill()
            world.listen("lo4", 9001)
            assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
            agent.arguments.remove("--keep")
            agent.start()
            assert agent.status()["pins"]["takeover"] is True
            assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
            agent.stop()


CONNECT = """
import socket, sys
print(socket.socket().connect_ex(("127.0.0.1", int(sys.argv[1]))))
"""


@pytest.mark.parametrize("capabilities", [CAPABILITIES, None], ids=["confined", "root"])
def test_a_cgroup_that_somebody_removed_and_made_anew(inner, start_agent, world, capabilities):
    agent = start_agent(config(service()), cgroup=inner, capabilities=capabilities)
    assert proven(agent) == 1
    world.listen("lo4", 9001)
    connect = lambda: int(world.near.run("python3", "-c", CONNECT, 9001, cgroup=inner).stdout)
    agent.override("web", "open")
    assert connect() == errno.ECONNREFUSED
    old = inner.id
    poll(lambda: not inner.pids() and not os.rmdir(inner.directory), what="the cgroup is removed")
    status, sentence = poll(lambda: ready(agent)[0] == 503 and ready(agent), 15, 0.05, "it is not ready")
    assert sentence == (
        f"not ready: all hooks at cgroup {inner.path}: the cgroup was removed; "
        f"cannot look at the cgroup {inner.directory}: no such file or directory\n"
    )
    assert [hook["attached"] for hook in agent.status()["hooks"]] == [False] * 6
    screen = agent.meshctl("status", output="table")
    assert "hooks        0 of 6 attached" in screen, screen
    assert figure(agent, "broken", "cgroup") == 1
    checked(agent)
    agent.expect(lambda: len(told(agent, CANNOT)), 1)
    os.mkdir(inner.directory)
    assert inner.id != old
    repaired(agent, "cgroup", 1)
    attached(agent)
    assert connect() == errno.ECONNREFUSED
    assert {pin.rsplit("-", 1)[1] for pin in link_pins(agent, "mesh_connect")} == {str(inner.id)}
    # Quick enough that nobody saw it gone.
    poll(lambda: not inner.pids() and not os.rmdir(inner.directory), what="the cgroup is removed")
    os.mkdir(inner.directory)
    repaired(agent, "cgroup", 2)
    agent.expect(lambda: told(agent)[-1]["fault"], "the cgroup was removed and made anew")
    attached(agent)
    assert connect() == errno.ECONNREFUSED
    # Where the agent may not write to cgroup files, it comes into a new one no more than anybody else.
    reason = f"cannot make a socket in the cgroup {inner.directory}: read-only file system; "
    reason += "restart the agent, which can do so at its start"
    wanted = (1, None) if capabilities is None else (0, reason)
    assert (proven(agent), agent.status()["enforcement"]["unproven_reason"]) == wanted


# The canary: a connect of the agent's own, which has to be refused.

CANARY = "127.77.65.78"
CANARY_SERVICE = 22767


def refused(agent):
    """How many of the canary's connects the kernel side has rejected."""
    key = [str(byte) for byte in CANARY_SERVICE.to_bytes(4, "little")]
    found = run("bpftool", "-j", "map", "lookup", "pinned", agent.pins() + "/maps/attempts", "key", *key).stdout
    value = bytes(int(byte, 16) for byte in json.loads(found)["value"])
    return struct.unpack_from("<4Q", value)[1]


def proven(agent):
    return agent.metrics().value("mesh_agent_enforcement_proven")


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_the_canary_is_refused_and_shows_nowhere(inner, start_agent, world, place):
    """Whether the agent is in the cgroup that it enforces on or not, whatever the configuration says, and though
    somebody listens there."""
    world.listen_at(world.near, "0.0.0.0", 1)
    settings = {**config({**service(), "endpoints": ["127.0.0.0/8:1"]}), "exempt": ["127.0.0.0/8", "::/0"]}
    agent = start_agent(settings, home=inner if place == "inside" else None)
    assert proven(agent) == 1
    for _ in range(2):
        checks = lambda: agent.metrics().value("mesh_agent_enforcement_checks_total")
        before = checks(), refused(agent)
        poll(lambda: ready(agent) and checks() > before[0], 15, 0.05, "the agent looks")
        # One connect of each family.
        assert (refused(agent) - before[1]) == 2 * (checks() - before[0])
    assert proven(agent) == 1
    status = agent.status()
    assert status["enforcement"]["proven"] is True and status["enforcement"]["unproven_reason"] is None
    assert "refused connects proven" in agent.meshctl("status", output="table")
    assert status["breakers"]["overridden"] == 0 and status["breakers"]["open"] == 0
    page = agent.page()[1]
    assert CANARY not in page and str(CANARY_SERVICE) not in page and 'service=""' not in page
    assert agent.attempts("web", "connect") == {} and agent.failed("web") == {}
    assert {row["name"] for row in agent.ask("/v1/services")["services"]} <= {"web", "127.0.0.1:9464", "*:9464"}
    # It expires by itself, and is nobody's way to be refused for long.
    pinned = agent.pins() + "/maps/breakers"
    key = [str(byte) for byte in CANARY_SERVICE.to_bytes(4, "little")]
    found = json.loads(run("bpftool", "-j", "map", "lookup", "pinned", pinned, "key", *key).stdout)["value"]
    until = struct.unpack_from("<Q", bytes(int(byte, 16) for byte in found), 24)[0]
    assert 0 < until - time.monotonic_ns() <= 15_000_000_000


def test_a_program_that_takes_back_what_the_agents_decide(start_agent, world, host, foreign):
    """It was attached after the agent's, and so is the last to decide: the agent puts its own behind it."""
    agent = start_agent(config(service()))
    world.listen("lo4", 9001)
    agent.override("web", "open")
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    for number, kind in enumerate(("connect4", "connect6"), 1):
        foreign.attach(host.scratch, kind, "foreign_undo" + kind[-1])
        if kind == "connect4":
            assert connect_errno(world, "lo4", 9001) == 0
        repaired(agent, "canary", number)
        line = {
            "part": "canary",
            "what": "canary",
            "where": f"{kind} of cgroup {host.scratch.path}",
            "fault": "a connect that it refused went on all the same (operation now in progress): "
            "another program takes back what it decides",
        }
        agent.expect(lambda: told(agent)[-1:], [line])
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    assert connect_errno(world, "lo6", 9001) == errno.ECONNREFUSED
    assert proven(agent) == 1
    attached(agent)
    assert {pin.rsplit("/", 1)[1].rsplit("-", 1)[0] for pin in link_pins(agent, "mesh_connect")} == {
        "mesh_connect4",
        "mesh_connect6",
    }


def test_a_program_above_that_takes_back_what_the_agents_decide(inner, start_agent, world, host, foreign):
    """It is at a cgroup above, so that it is the last to decide whatever the agent does."""
    agent = start_agent(config(service()), cgroup=inner)
    assert proven(agent) == 1
    foreign.attach(host.scratch, "connect4", "foreign_undo4")
    status, sentence = poll(lambda: ready(agent)[0] == 503 and ready(agent), 15, 0.05, "it is not ready")
    assert sentence == (
        f"not ready: canary at connect4 of cgroup {inner.path}: a connect that it refused went on all the same "
        "(operation now in progress): another program takes back what it decides; cannot refuse connects: attaching "
        "anew did not help; see what else is attached to this cgroup and those above it: bpftool cgroup tree\n"
    )
    # Programs stay the same where they are attached anew; their links do not.
    id_of = lambda pin: json.loads(run("bpftool", "-j", "link", "show", "pinned", pin).stdout)["id"]
    links = lambda: {pin: id_of(pin) for pin in link_pins(agent, "mesh_")}
    before = links()
    checked(agent)
    # It tried once.
    assert links() == before
    agent.expect(lambda: len(told(agent, CANNOT)), 1)
    assert proven(agent) == 0 and figure(agent, "broken", "canary") == 1
    assert figure(agent, "faults_total", "canary") == 1
    foreign.detach()
    poll(lambda: ready(agent)[0] == 200, 15, 0.05, "it is ready again")
    assert proven(agent) == 1 and figure(agent, "broken", "canary") == 0
    assert figure(agent, "repairs_total", "canary") == 0
    agent.expect(lambda: len(told(agent, OVER)), 1)


def test_an_override_that_somebody_removed(start_agent):
    """The canary's is written with each look."""
    agent = start_agent(config(service()))
    key = [str(byte) for byte in CANARY_SERVICE.to_bytes(4, "little")]
    run("bpftool", "map", "update", "pinned", agent.pins() + "/maps/breakers", "key", *key, "value", *["0"] * 64)
    checked(agent)
    assert proven(agent) == 1 and agent.metrics().value("mesh_agent_enforcement_faults_total") == 0


def test_a_cgroup_that_no_process_runs_in(inner, start_agent):
    """Nobody can try a connect from there. The agent says so, and is ready."""
    with open(inner.directory + "/cgroup.freeze", "w") as file:
        file.write("1")
    agent = start_agent(config(service()), cgroup=inner)
    assert proven(agent) == 0 and ready(agent) == (200, "ready\n")
    reason = agent.status()["enforcement"]["unproven_reason"]
    assert (
        reason
        == f"cannot make a socket in the cgroup {inner.directory}: no process runs in it, for it is frozen, or hardly gets a CPU"
    )
    agent.expect(lambda: sum("is not proven" in line["message"] for line in agent.logs()), 1)
    assert "refused connects not proven: " + reason in agent.meshctl("status", output="table").replace("\n", " ")
    checked(agent)
    assert agent.metrics().value("mesh_agent_enforcement_faults_total") == 0
    agent.expect(lambda: sum("is not proven" in line["message"] for line in agent.logs()), 1)
    assert inner.pids() == []
