"""What the agent may do, and what it gives up. Every other test runs it with three capabilities and
read-only file systems as well; here that is checked, and what happens outside of it."""

import os
import re
import signal

import pytest

from meshtest.agent import CAP_SYS_NICE, CAPABILITIES, binary
from meshtest.host import poll, run
from meshtest.native import native
from meshtest.policies import config, service
from meshtest.traffic import exchange

NAMES = {12: "CAP_NET_ADMIN", 38: "CAP_PERFMON", 39: "CAP_BPF"}


def tasks(agent):
    """The text of /proc/PID/task/TID/status of each thread, as tables."""
    found = []
    for task in os.listdir(f"/proc/{agent.process.pid}/task"):
        with open(f"/proc/{agent.process.pid}/task/{task}/status") as lines:
            found.append(dict(re.split(r":\s*", line.rstrip("\n"), maxsplit=1) for line in lines))
    assert len(found) >= 4
    return found


def check_threads(agent, capabilities, seccomp="2"):
    for task in tasks(agent):
        held = {key: int(task[key], 16) for key in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")}
        wanted = {"CapEff": capabilities, "CapPrm": capabilities, "CapBnd": capabilities, "CapInh": 0, "CapAmb": 0}
        assert held == wanted, task["Name"]
        assert (task["NoNewPrivs"], task["Seccomp"]) == ("1", seccomp), task["Name"]


def ends(agent, code=1):
    """Starts an agent that must not come up; returns what it said."""
    before = agent.attachments()
    agent.launch()
    assert agent.process.wait(15) == code, agent.log_path.read_text()
    agent.process = None
    assert agent.attachments() == before
    return agent.log_path.read_text()


def test_the_other_tests_run_it_confined(start_agent):
    agent = start_agent(config(service()))
    check_threads(agent, CAPABILITIES)
    with open(f"/proc/{agent.process.pid}/mountinfo") as lines:
        mounts = {line.split()[4]: line.split()[5].split(",") for line in lines}
    writable = {place for place, options in mounts.items() if "rw" in options}
    assert writable <= {os.path.dirname(agent.control), "/sys/fs/bpf"}, writable
    held = agent.status()["privileges"]
    assert held == {
        "capabilities": list(NAMES.values()),
        "no_new_privileges": True,
        "calls_filtered": True,
        "calls_refused": 0,
    }
    shown = agent.meshctl("status", output="table")
    assert "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF; no new ones; system calls filtered, 0 refused" in shown
    checks = {check["name"]: check for check in agent.meshctl("doctor")["checks"]}
    assert checks["agent's privileges"]["ok"] and "CAP_BPF" in checks["agent's privileges"]["detail"]


def test_root_gives_up_what_it_does_not_need(start_agent, world):
    agent = start_agent(config(service()), capabilities=None)
    check_threads(agent, CAPABILITIES | CAP_SYS_NICE)
    exchange(*world.pair("lo4", 9001))
    agent.expect_codes("web", {"200": 1})


@pytest.mark.parametrize("missing", list(NAMES), ids=NAMES.get)
def test_a_missing_capability_has_its_name(start_agent, missing):
    said = ends(start_agent({}, start=False, capabilities=CAPABILITIES & ~(1 << missing)))
    assert f"missing {NAMES[missing]}; run this as root, or give it these capabilities" in said
    assert said.count("\n") == 1


def test_without_the_filter(start_agent):
    agent = start_agent({}, arguments=["--no-seccomp"])
    check_threads(agent, CAPABILITIES, seccomp="0")
    assert agent.status()["privileges"]["calls_filtered"] is False
    assert any("--no-seccomp" in line["message"] for line in agent.logs())
    assert "system calls not filtered" in agent.meshctl("status", output="table")


def test_a_configuration_that_it_may_not_read(start_agent):
    """Root that may read everything reads it; the agent does not, at its start nor at a reload."""
    agent = start_agent({}, capabilities=None)
    os.chown(agent.config_path, 65534, 65534)
    os.chmod(agent.config_path, 0o600)
    refused = agent.reload()["error"]
    assert refused == (
        f"cannot open {agent.config_path}: permission denied; let user 0 read it: the agent keeps no right to all files"
    )
    agent.stop()
    assert "permission denied; let user 0 read it" in ends(agent, 2)


def test_a_port_below_1024(start_agent):
    said = ends(start_agent({"listen": "127.0.0.1:80"}, start=False))
    assert "cannot listen on 127.0.0.1:80: permission denied; choose a port from 1024 upward" in said


def test_a_control_socket_where_it_may_not_write(start_agent, world):
    agent = start_agent({}, start=False)
    elsewhere = agent.directory / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    words = [agent.program, "run", "--config", agent.config_path, "--control", elsewhere / "control.sock"]
    done = world.near.run(*agent.confinement(), *words, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "read-only file system; choose a place that it may write to" in done.stderr


def test_an_unprivileged_look_says_what_is_missing():
    done = run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", binary("meshctl", "MESHCTL"),
               "-o", "table", "doctor", check=False)  # fmt: skip
    assert done.returncode == 1 and "missing CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF" in done.stdout


# The filter, call by call

ENDS_THE_PROCESS = [
    "execve", "ptrace", "mount", "init_module", "unshare", "setns", "setuid", "clone into a namespace",
    *(["another architecture", "x32"] if os.uname().machine == "x86_64" else []),
]  # fmt: skip
REFUSED = {
    "socket packet": "EPERM", "bpf program": "EPERM", "bpf map": "EPERM", "mmap written code": "EPERM",
    "mprotect code": "EPERM", "kill": "EPERM", "tgkill": "EPERM", "prctl": "EPERM", "ioctl": "EPERM",
    "memfd_create": "ENOSYS", "no such call": "ENOSYS",
}  # fmt: skip
# The error is that of the call itself, which was made.
LET_THROUGH = {
    "is it there": "ok", "thread": "ok", "file": "ok", "user": "ok", "child": "ECONNREFUSED",
    "bpf lookup": "EINVAL", "link update": "EINVAL", "clone3": "ENOSYS",
}  # fmt: skip


def call(name):
    return run(native("calls", "Sources/CMeshSystem/sandbox.c"), name, check=False)


@pytest.mark.parametrize("name", ENDS_THE_PROCESS)
def test_a_dangerous_call_ends_the_process(name):
    assert call(name).returncode == -signal.SIGSYS


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_strange_call_is_refused_and_counted(name):
    assert call(name).stdout == f"{REFUSED[name]} 1\n"


@pytest.mark.parametrize("name", list(LET_THROUGH))
def test_a_call_that_the_agent_makes(name):
    assert call(name).stdout == f"{LET_THROUGH[name]} 0\n"


def test_an_abort_is_one():
    assert call("abort").returncode == -signal.SIGABRT


def test_refused_calls_are_told(start_agent):
    """A signal with the number that the filter sends is not one of its refusals."""
    agent = start_agent({})
    agent.signal(signal.SIGSYS)
    poll(lambda: agent.get("/healthz")[0] == 200)
    assert agent.status()["privileges"]["calls_refused"] == 0
    assert agent.metrics().value("mesh_agent_refused_calls_total") == 0
