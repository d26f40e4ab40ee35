"""A kernel that is too old for the agent: it says so, says which one is needed, and touches nothing."""

import json
import os
import subprocess

from meshtest.agent import binary
from meshtest.host import cgroup_mount, run, scaled


def attached():
    """Every program that the kernel holds, and where cgroups have some."""
    programs = json.loads(run("bpftool", "-j", "prog", "show").stdout)
    tree = json.loads(run("bpftool", "-j", "cgroup", "tree", cgroup_mount()).stdout.strip() or "[]")
    return programs, tree


def test_the_agent_refuses_a_kernel_that_is_too_old():
    release = os.uname().release
    assert tuple(int(part) for part in release.split(".")[:2]) < (6, 1)
    before = attached()
    done = subprocess.run(
        [binary("mesh-agent", "MESH_AGENT"), "run"], capture_output=True, text=True, timeout=scaled(30)
    )
    assert done.returncode == 1, done
    said = done.stdout + done.stderr
    assert f"kernel: {release}; use kernel 6.1 or newer" in said, said
    assert "\n" not in said.strip(), said
    assert attached() == before
    assert not os.path.exists("/run/mesh-agent/control.sock")
