"""meshctl as an SRE uses it: every command against a live agent, its exit codes, and who did what."""

import errno
import json
import os
import subprocess
import threading

import pytest

from meshtest.agent import binary
from meshtest.host import poll, run
from meshtest.policies import config, service
from meshtest.traffic import connect_errno, exchange


@pytest.fixture
def agent(start_agent):
    return start_agent(config(service("payments", 9001), service("web shop", 9002)))


def meshctl(*words, **options):
    return subprocess.run([binary("meshctl", "MESHCTL"), *words], capture_output=True, text=True, timeout=30, **options)


def test_status(agent, world):
    exchange(*world.pair("lo4", 9001))
    status = agent.meshctl("status")
    assert status == {**agent.status(), **{key: status[key] for key in ("uptime_seconds", "lease", "samples")}}
    assert status["pid"] > 0 and status["cgroup"] == agent.cgroup.path and status["config"]["error"] is None
    assert status["services"]["configured"] == 2 and status["breakers"]["enforce"] == 2
    assert status["lease"]["valid"] and status["lease"]["age_seconds"] < 10
    assert all(hook["attached"] for hook in status["hooks"]) and len(status["hooks"]) >= 5
    assert all(lost["count"] == 0 for lost in status["samples"]["lost"])
    table = agent.meshctl("status", output="table")
    assert "lease" in table.lower() and "\x1b" not in table


def test_services(agent, world):
    client, server = world.pair("lo4", 9001)
    for status in (200, 200, 200, 500):
        exchange(client, server, status)
    rows = [
        row for row in agent.meshctl("services")["services"] if row["name"] == "payments" and row["role"] == "client"
    ]
    assert len(rows) == 1
    row = rows[0]
    assert (row["requests_total"], row["errors_total"], row["kind"]) == (4, 1, "configured")
    assert row["error_ratio"] == pytest.approx(0.25) and row["breaker"]["state"] == "closed"
    lines = agent.meshctl("services", output="table").splitlines()
    assert any("payments" in line for line in lines) and len({len(line.rstrip()) > 0 for line in lines}) == 1


def test_override_and_audit(agent, world):
    done = agent.meshctl("breaker", "open", "payments", "--reason", "INC-7: db is down", "--for", "10m")
    assert done["override"]["state"] == "open" and done["override"]["reason"] == "INC-7: db is down"
    assert done["override"]["actor"].startswith("root (pid ")
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    shown = agent.meshctl("breaker", "show", "payments")
    event = [e for e in shown["history"] if e["kind"] == "override"][-1]
    assert event["text"] == "INC-7: db is down" and event["actor"].startswith("root (pid ") and event["expires_at"]
    assert "INC-7" in agent.meshctl("breaker", "show", "payments", output="table")
    assert "payments" in agent.meshctl("breaker", "list", output="table")
    agent.meshctl("breaker", "auto", "payments")
    assert agent.breaker("payments")["override"] is None
    kinds = [(e["kind"], e["reason"]) for e in agent.breaker("payments")["history"]]
    assert ("override_end", "override") in kinds
    log = agent.log_path.read_text()
    assert "INC-7: db is down" in log and "root" in log
    transitions = agent.metrics().by("mesh_breaker_transitions_total", "reason", service="payments")
    assert set(transitions) <= {"override"}


def test_a_service_name_with_a_space(agent):
    assert agent.meshctl("breaker", "close", "web shop", "--reason", "x")["override"]["state"] == "close"
    assert agent.meshctl("breaker", "show", "web shop")["service"] == "web shop"


@pytest.mark.parametrize(
    "words, code",
    [
        ([], 2),
        (["nonsense"], 2),
        (["breaker", "open", "payments"], 2),
        (["breaker", "open", "--reason", "x"], 2),
        (["breaker", "open", "payments", "--reason", "x", "--for", "soon"], 2),
        (["breaker", "open", "payments", "--reason", "x", "--for", "-1m"], 2),
        (["trace", "bind", "--pid", "many"], 2),
        (["trace", "bind", "--pid", "1", "--trace", "xyz"], 2),
        (["flows", "--trace", "12"], 2),
        (["-o", "xml", "status"], 2),
        (["breaker", "open", "payment", "--reason", "x"], 1),
        (["breaker", "show", "nothing"], 1),
        (["trace", "bind", "--pid", "4194304"], 1),
        (["status"], 0),
        (["help"], 0),
        (["--help"], 0),
    ],
)
def test_exit_codes(agent, words, code):
    done = meshctl("--control", agent.control, *words)
    assert done.returncode == code, (done.stdout, done.stderr)
    if code:
        assert done.stderr and not done.stdout
    else:
        assert done.stdout and not done.stderr


def test_no_agent_is_exit_3(agent, tmp_path):
    done = meshctl("--control", str(tmp_path / "nothing.sock"), "status")
    assert done.returncode == 3 and "nothing.sock" in done.stderr and done.stderr.count("\n") == 1


def test_typos_are_answered_with_the_nearest_name(agent):
    assert "payments" in agent.meshctl("breaker", "open", "paymets", "--reason", "x", code=1)
    assert "breaker" in meshctl("braker").stderr


def test_a_blank_reason_is_refused(agent):
    done = meshctl("--control", agent.control, "breaker", "open", "payments", "--reason", " ")
    assert done.returncode in (1, 2) and "reason" in done.stderr
    status, answer = agent.api("POST", "/v1/breakers/payments/open", {"reason": "", "for_seconds": 60})
    assert status == 400 and answer["error"]
    assert agent.breaker("payments")["override"] is None


def test_json_is_never_mixed_with_prose(agent):
    done = meshctl("--control", agent.control, "-o", "json", "breaker", "show", "nothing")
    assert done.returncode == 1
    assert done.stdout == "" or json.loads(done.stdout)


def test_flows(agent, world):
    client, server = world.pair("veth4", 9001)
    exchange(client, server)
    client.sendall(b"GET /pending HTTP/1.1\r\n\r\n")
    flows = agent.meshctl("flows", "--service", "payments")["connections"]
    flow = next(f for f in flows if f["role"] == "client")
    assert flow["remote"] == "10.77.0.2:9001" and flow["local"] == f"10.77.0.1:{client.getsockname()[1]}"
    assert flow["pending"] and not flow["adopted"] and flow["protocol"] == "http"
    assert flow["trace_id"] in agent.meshctl("flows", "--trace", flow["trace_id"], output="table")
    assert len(agent.meshctl("flows", "--trace", flow["trace_id"])["connections"]) == 2
    assert agent.meshctl("flows", "--service", "web shop")["connections"] == []


def following(agent, *words):
    return subprocess.Popen(
        [binary("meshctl", "MESHCTL"), "--control", agent.control, "-o", "json", *words],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_flows_follow(agent, world):
    process = following(agent, "flows", "--follow", "--service", "payments")
    try:
        seen = []
        reader = threading.Thread(target=lambda: seen.extend(json.loads(line) for line in process.stdout), daemon=True)
        reader.start()
        # Until the agent has taken the follower in, nothing is shown: go on until it has.

        def shown():
            client, server = world.pair("lo4", 9001)
            exchange(client, server, 404)
            client.close()
            server.close()
            return [e for e in seen if e["event"] == "request" and e["role"] == "client"]

        event = poll(shown, 5, 0.05)[0]
        assert event["code"] == "404" and event["service"] == "payments" and event["duration_seconds"] > 0
        assert event["remote"] == "127.0.0.1:9001" and len(event["trace_id"]) == 32
        poll(lambda: {"connect", "accept", "close"} <= {e["event"] for e in seen})
        assert {e["service"] for e in seen} == {"payments"}
    finally:
        process.terminate()
        process.wait(5)


def test_events_follow(agent):
    process = following(agent, "events", "--follow")
    try:
        agent.override("payments", "open", 60, "seen live")
        for line in process.stdout:
            event = json.loads(line)
            if event["kind"] == "override":
                break
        assert event["service"] == "payments" and event["text"] == "seen live"
    finally:
        process.terminate()
        process.wait(5)


def test_trace_bindings_end_with_their_process(agent):
    process = subprocess.Popen(["sleep", "60"])
    agent.meshctl("trace", "bind", "--pid", process.pid)
    assert [b["pid"] for b in agent.ask("/v1/traces")["bindings"]] == [process.pid]
    agent.meshctl("trace", "unbind", "--pid", process.pid)
    assert agent.ask("/v1/traces")["bindings"] == []
    process.kill()
    process.wait()


def test_doctor(agent):
    done = meshctl("--control", agent.control, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("cgroup", "BTF"):
        assert word.lower() in done.stdout.lower()


def test_doctor_without_rights_says_what_is_missing(agent):
    done = run(
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--",
        binary("meshctl", "MESHCTL"), "--control", agent.control, "doctor", check=False,
    )  # fmt: skip
    assert done.returncode in (1, 3) and ("root" in done.stdout + done.stderr)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions(shell):
    done = meshctl("completion", shell)
    if done.returncode == 2:
        done = meshctl("completions", shell)
    assert done.returncode == 0 and "breaker" in done.stdout
    if shell == "bash":
        run("bash", "-n", input=done.stdout)


def test_help_has_examples():
    for words in (
        ["status"],
        ["services"],
        ["breaker"],
        ["breaker", "open"],
        ["flows"],
        ["trace", "bind"],
        ["top"],
        ["events"],
        ["doctor"],
    ):
        done = meshctl(*words, "--help")
        assert done.returncode == 0 and "xample" in done.stdout, words


def test_the_api_refuses_what_it_does_not_understand(agent):
    for method, target, body, status in (
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/v1/breakers/nothing", None, 404),
        ("POST", "/v1/status", {}, 405),
        ("POST", "/v1/breakers/payments/open", {"for_seconds": 60}, 400),
        ("POST", "/v1/breakers/payments/open", {"reason": "x", "for_seconds": -1}, 400),
        ("POST", "/v1/breakers/payments/open", {"reason": 5, "for_seconds": 1}, 400),
        ("POST", "/v1/breakers/payments/open", [], 400),
        ("PUT", "/v1/traces/1", {"trace_id": "zz"}, 400),
    ):
        found, answer = agent.api(method, target, body)
        assert found == status and answer["error"], (method, target, found, answer)
    assert agent.breaker("payments")["override"] is None


def test_other_users_may_not(agent):
    done = run(
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--",
        binary("meshctl", "MESHCTL"), "--control", agent.control, "status", check=False,
    )  # fmt: skip
    assert done.returncode == 3 and "permi" in done.stderr.lower()


def test_top_on_a_terminal(agent, world):
    exchange(*world.pair("lo4", 9001))
    import pty

    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        program = binary("meshctl", "MESHCTL")
        os.execv(program, [program, "--control", agent.control, "top"])
    seen = b""
    while b"payments" not in seen:
        seen += os.read(fd, 65536)
    os.write(fd, b"\x03")
    poll(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, 5)
    os.close(fd)
