"""What the kernel holds: the eBPF maps of a process and their memory, slabs, and eBPF programs of the bench."""

import contextlib
import glob
import json
import os

from meshtest.host import need, run

from . import BUILD, ROOT
from .stage import NATIVE


def held_maps(pid):
    """The eBPF maps that a process has open, by name, as bpftool tells of them: id, bytes_memlock ..."""
    held = set()
    for entry in os.listdir(f"/proc/{pid}/fdinfo"):
        # A connection to it may have been closed since it was listed.
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/fdinfo/{entry}") as lines:
            held |= {int(line.split()[1]) for line in lines if line.startswith("map_id:")}
    shown = json.loads(run("bpftool", "-j", "map", "show").stdout)
    return {found["name"]: found for found in shown if found["id"] in held}


def map_memory(pid):
    """The kernel memory of those maps in bytes. Socket storage is not among it: it goes with sockets."""
    return sum(found["bytes_memlock"] for found in held_maps(pid).values())


def slab_bytes():
    """The memory of all objects in use in the kernel's caches (slabinfo(5)); what is free in their slabs is not
    counted, because it may be that of anybody before."""
    total = 0
    with open("/proc/slabinfo") as lines:
        for line in lines:
            if not line.startswith(("#", "slabinfo")):
                _, objects, _, size = line.split()[:4]
                total += int(objects) * int(size)
    return total


def available_bytes():
    """What the kernel says that programs may still have (proc(5), MemAvailable)."""
    with open("/proc/meminfo") as lines:
        fields = dict(line.split(":") for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def compiled_bpf(name):
    """The path of bench/native/NAME.bpf.c, compiled."""
    BUILD.mkdir(parents=True, exist_ok=True)
    built = BUILD / f"{name}.bpf.o"
    include = [f"-I{path}" for path in glob.glob(f"/usr/include/{os.uname().machine}-linux-gnu")]
    run(
        need("clang"), "-target", "bpf", "-ffreestanding", "-O2", "-g", *include,
        "-I", ROOT / "Sources/CMeshABI/include", "-c", NATIVE / f"{name}.bpf.c", "-o", built,
    )  # fmt: skip
    return str(built)
