"""What a result was measured on. A figure without its machine and its date says nothing."""

import datetime
import os
import platform

from meshtest.agent import binary
from meshtest.host import run

from . import ROOT


def describe():
    """The machine, the programs and the moment of a run."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _processor(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "system": _system(),
        "agent": run(binary("mesh-agent", "MESH_AGENT"), "--version").stdout.strip(),
        "commit": _commit(),
    }


def line(machine):
    """The same as one line of a document."""
    return (
        f"{machine['date']} on {machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gb']} GB, "
        f"Linux {machine['kernel']}, {machine['system']}; commit {machine['commit']}"
    )


def _processor():
    with open("/proc/cpuinfo") as lines:
        for text in lines:
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.machine()


def _system():
    with open("/etc/os-release") as lines:
        fields = dict(text.rstrip().split("=", 1) for text in lines if "=" in text)
    return fields.get("PRETTY_NAME", "Linux").strip('"')


def _commit():
    done = run("git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*", check=False)
    return done.stdout.strip() or "unknown"


def stolen_seconds():
    """How long the CPUs of this guest have waited for the hypervisor so far (proc(5), steal)."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
