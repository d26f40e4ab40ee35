"""What runs inside the virtual machine, as its first process: mounts what is missing, runs pytest with the
arguments that the host left among the results, writes how that ended, and ends the machine."""

import ctypes
import json
import os
import pathlib
import subprocess
import traceback

TESTS = pathlib.Path(__file__).resolve().parents[1]
RESULTS = pathlib.Path("/run/results")
MOUNTS = [
    # Over the host's, which are there as directories; nothing of them is reached through 9p.
    ("tmpfs", "/run", "mode=755"),
    ("tmpfs", "/tmp", ""),
    ("devpts", "/dev/pts", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("bpf", "/sys/fs/bpf", ""),
    ("9p", str(RESULTS), "trans=virtio,version=9p2000.L,msize=512000"),
]
RB_AUTOBOOT = 0x1234567  # include/uapi/linux/reboot.h: QEMU's -no-reboot makes it the end
_libc = ctypes.CDLL(None, use_errno=True)


def prepare():
    # Held open, for where the tests are may be below a directory that a mount hides: /tmp, say.
    here = os.open(TESTS.parent, os.O_PATH | os.O_DIRECTORY)
    for kind, target, options in MOUNTS:
        os.makedirs(target, exist_ok=True)
        source = "results" if kind == "9p" else kind
        if _libc.mount(source.encode(), target.encode(), kind.encode(), 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), f"mount {kind} at {target}")
    if not TESTS.exists():
        os.makedirs(TESTS.parent)
        if _libc.mount(f"/proc/self/fd/{here}".encode(), str(TESTS.parent).encode(), None, 4096, None) != 0:
            raise OSError(ctypes.get_errno(), f"bind {TESTS.parent}")
    os.close(here)
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    # What the kernel asks for by itself (veth, sch_ingress, cls_bpf) is where this kernel was unpacked.
    modprobe = pathlib.Path("/run/modprobe")
    modprobe.write_text(f'#!/bin/sh\nexec /sbin/modprobe -d {os.environ["MESH_MODULES"]} "$@"\n')
    modprobe.chmod(0o755)
    pathlib.Path("/proc/sys/kernel/modprobe").write_text(str(modprobe))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def run_tests():
    """Runs pytest with its output to the host, and returns its exit code."""
    wanted = json.loads((RESULTS / "wanted.json").read_text())
    log = os.open(RESULTS / "guest.log", os.O_WRONLY | os.O_APPEND)
    # To be found in the console: what the kernel says from here on, the tests made it say.
    pathlib.Path("/dev/kmsg").write_text("<4>mesh: the tests begin")
    command = ["/usr/bin/python3", "-B", "-m", "pytest", "-c", TESTS / "pytest.ini", "-p", "no:cacheprovider"]
    command += ["-vv", "--color=no", f"--junitxml={RESULTS / 'tests.xml'}", *wanted["arguments"]]
    return subprocess.run(
        command, cwd=TESTS.parent, env={**os.environ, **wanted["environment"]}, stdout=log, stderr=log
    ).returncode


if __name__ == "__main__":
    outcome = {}
    try:
        prepare()
        outcome = {"exit": run_tests(), "release": os.uname().release}
    except BaseException:
        # To the console: there may be no other way out.
        traceback.print_exc()
    if outcome:
        (RESULTS / "outcome.json").write_text(json.dumps(outcome))
    os.sync()
    _libc.reboot(RB_AUTOBOOT)
