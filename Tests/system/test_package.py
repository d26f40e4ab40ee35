"""The Debian package and its unit, in a machine with a real systemd: installed, started, reloaded, upgraded,
removed and purged as an administrator would."""

import json
import os
import pathlib

import pytest

from meshtest.agent import ROOT, binary
from meshtest.host import need, poll, run
from meshtest.machine import Machine

pytestmark = pytest.mark.limit(300)
UNIT = "mesh-agent.service"
CAPABILITIES = ["CAP_NET_ADMIN", "CAP_SYS_NICE", "CAP_PERFMON", "CAP_BPF"]
# A client and a server in one process: one request, one response.
TALK = """
import socket
listener = socket.create_server(("127.0.0.1", 8080))
client = socket.create_connection(("127.0.0.1", 8080))
server = listener.accept()[0]
client.send(b"GET / HTTP/1.1\\r\\n\\r\\n")
server.recv(100)
server.send(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
client.recv(100)
# A cgroup that is gone has no name any more.
import signal
signal.pause()
"""
SCRAPE = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9464/metrics").read().decode())
"""


def build(version, directory):
    """The package of what is built, packed in the fastest way."""
    built = {"BUILT": os.path.dirname(binary("mesh-agent", "MESH_AGENT"))}
    fast = {"DPKG_DEB_COMPRESSOR_TYPE": "gzip", "DPKG_DEB_COMPRESSOR_LEVEL": "1"}
    made = run(ROOT / "packaging/build-deb", version, directory, env={**os.environ, **built, **fast})
    return pathlib.Path(made.stdout.strip())


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The package, and a newer one."""
    directory = tmp_path_factory.mktemp("packages")
    return [build(version, directory) for version in ("1.0", "2.0")]


@pytest.fixture
def machine(host, tmp_path):
    made = Machine(tmp_path, host.scratch.child("machine"))
    yield made
    made.close()


def test_nothing_is_wrong_with_the_package(packages):
    done = run(need("lintian"), "--fail-on", "error", packages[0], check=False)
    assert done.returncode == 0, done.stdout
    listed = run("dpkg-deb", "--contents", packages[0]).stdout
    for path in ("usr/sbin/mesh-agent", "usr/bin/meshctl", "lib/systemd/system/mesh-agent.service",
                 "usr/share/man/man8/mesh-agent.8.gz", "usr/share/man/man1/meshctl.1.gz",
                 "usr/share/bash-completion/completions/meshctl"):  # fmt: skip
        assert f" ./{path}\n" in listed
    assert all(" root/root " in line for line in listed.splitlines())
    assert "libc6" in run("dpkg-deb", "--field", packages[0], "Depends").stdout


def test_the_same_sources_make_the_same_package(packages, tmp_path):
    assert build("1.0", tmp_path).read_bytes() == packages[0].read_bytes()


def test_the_unit_is_no_more_exposed_than_it_must_be():
    """Of 100; the default of systemd is 96. docs/security.md says what the rest is."""
    run("systemd-analyze", "security", "--offline=true", "--threshold=25", ROOT / "packaging" / UNIT)


def test_the_life_of_a_package(machine, packages):
    def main_pid():
        return int(machine.service(UNIT, "MainPID"))

    def is_running():
        assert machine.service(UNIT, "ActiveState") == "active", machine.run("journalctl", "--unit", UNIT)
        status = json.loads(machine.run("meshctl", "-o", "json", "status"))
        assert status["pid"] == main_pid()
        return status

    def restarted(before):
        return poll(lambda: machine.service(UNIT, "SubState") == "running" and main_pid() not in (0, before), 30, 0.05)

    def install(package):
        machine.put(package, "/tmp/package.deb")
        machine.run("dpkg", "--install", "/tmp/package.deb")

    before = set(machine.written("-iname", "*mesh*"))
    assert not before
    first, second = packages
    install(first)

    # It runs, enabled, with what the unit leaves it and no more.
    assert machine.run("systemctl", "is-enabled", UNIT) == "enabled\n"
    assert machine.run("systemd-analyze", "verify", "--man=no", f"/lib/systemd/system/{UNIT}") == ""
    status = is_running()
    assert status["privileges"] == {
        "capabilities": CAPABILITIES, "no_new_privileges": True, "calls_filtered": True, "calls_refused": 0,
    }  # fmt: skip
    assert all(hook["attached"] for hook in status["hooks"]) and status["interfaces"]
    assert status["config"]["path"] == "/etc/mesh-agent/config.json"
    mounts = machine.run("cat", f"/proc/{main_pid()}/mountinfo").splitlines()
    options = {line.split()[4]: line.split()[5].split(",") for line in mounts}
    for place in ("/", "/sys", "/sys/fs/cgroup", "/proc/sys", "/run/mesh-agent", "/sys/fs/bpf"):
        writable = place in ("/run/mesh-agent", "/sys/fs/bpf")
        assert ("rw" if writable else "ro") in options[place], place

    # It sees a service of this machine, by its unit.
    machine.run("systemd-run", "--quiet", "--unit=shop", "python3", "-c", TALK)

    def counted(service, role):
        page = machine.run("python3", "-c", SCRAPE)
        labels = f'service="{service}",workload="shop.service",role="{role}",protocol="http",code="204"'
        return f"mesh_request_duration_seconds_count{{{labels}}} 1" in page.splitlines()

    poll(lambda: counted("127.0.0.1:8080", "client") and counted("*:8080", "server"), 10)
    machine.run("systemctl", "stop", "shop")

    # A good configuration is taken, a bad one is named and changes nothing.
    config = {"listen": "127.0.0.1:9464", "services": [{"name": "shop", "endpoints": ["127.0.0.1:8080"]}]}
    write = ["python3", "-c", "import sys; open('/etc/mesh-agent/config.json', 'w').write(sys.argv[1])"]
    machine.run(*write, json.dumps(config))
    machine.run("systemctl", "reload", UNIT)
    poll(lambda: is_running()["services"]["configured"] == 1)
    machine.run(*write, '{"lisen": 1}')
    assert machine.try_run("systemctl", "reload", UNIT).returncode != 0
    assert "config.json:1: lisen" in machine.run("journalctl", "--unit", UNIT)
    assert is_running()["services"]["configured"] == 1
    machine.run(*write, json.dumps(config))

    # Killed, or stuck for longer than the watchdog allows, it is started again.
    pid = main_pid()
    machine.run("kill", "-KILL", str(pid))
    restarted(pid)
    machine.run("mkdir", "-p", f"/run/systemd/system/{UNIT}.d")
    machine.run("sh", "-c", f"printf '[Service]\\nWatchdogSec=4\\n' > /run/systemd/system/{UNIT}.d/test.conf")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", UNIT)
    pid = main_pid()
    machine.run("kill", "-STOP", str(pid))
    restarted(pid)
    machine.run("rm", "-r", f"/run/systemd/system/{UNIT}.d")

    # An upgrade takes over, and keeps what the administrator wrote. The clean-up waits for a stop for good.
    pid = main_pid()
    install(second)
    assert main_pid() != pid
    assert is_running()["services"]["configured"] == 1
    assert machine.service("mesh-agent-cleanup.service", "ActiveState") == "active"
    assert machine.run("journalctl", "--unit", "mesh-agent-cleanup.service").count("Stop") == 0
    assert machine.run("dpkg-query", "--show", "--showformat=${Version}", "mesh-agent") == "2.0"

    # Whoever disabled it finds it disabled after the next upgrade.
    machine.run("systemctl", "disable", "--quiet", UNIT)
    install(second)
    assert machine.try_run("systemctl", "is-enabled", UNIT).stdout == "disabled\n"

    # Stopped, it leaves nothing in the kernel; removed, only its configuration; purged, nothing.
    pid = main_pid()
    machine.run("dpkg", "--remove", "mesh-agent")
    assert machine.try_run("kill", "-0", str(pid)).returncode != 0
    assert " mesh_" not in run("bpftool", "cgroup", "tree", machine.cgroup.directory).stdout
    assert "mesh" not in machine.run("tc", "filter", "show", "dev", "lo", "egress")
    assert [path for path in machine.written("-name", "*mesh*") if not path.startswith("/var/")] == ["/etc/mesh-agent"]
    machine.run("dpkg", "--purge", "mesh-agent")
    assert machine.written("-iname", "*mesh*") == []
    assert (
        machine.run("find", "/run", "/sys/fs/bpf", "-path", "/run/written", "-prune", "-o", "-name", "*mesh*", "-print")
        == ""
    )
    assert machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "mesh*") == ""


def test_a_wrong_configuration_is_not_tried_again(machine, packages):
    machine.put(packages[0], "/tmp/package.deb")
    machine.run("dpkg", "--install", "/tmp/package.deb")
    machine.run("sh", "-c", "echo '{' > /etc/mesh-agent/config.json")
    assert machine.try_run("systemctl", "restart", UNIT).returncode != 0
    assert machine.service(UNIT, "ActiveState") == "failed"
    assert machine.service(UNIT, "ExecMainStatus") == "2" and machine.service(UNIT, "NRestarts") == "0"
    assert machine.run("journalctl", "--unit", UNIT).count("config.json:") == 1
