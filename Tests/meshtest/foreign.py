"""Other people's BPF programs, compiled and loaded by bpftool and tc, with counters to read: what the
agent must leave as it was, and the faults that a test puts into the network."""

import glob
import json
import os
import pathlib

from .host import need, run

SOURCE = pathlib.Path(__file__).with_name("foreign.bpf.c")
PASSED, DROPPED, DATA, ACKS, INGRESS, EGRESS, CONNECTS = range(7)


class Foreign:
    """The programs of foreign.bpf.c, pinned below a directory of the test's own."""

    def __init__(self, directory):
        directory = pathlib.Path(directory)
        self._mount = directory / "bpf"
        self._mount.mkdir()
        run("mount", "-t", "bpf", "bpf", self._mount)
        try:
            include = [f"-I{path}" for path in glob.glob(f"/usr/include/{os.uname().machine}-linux-gnu")]
            compiled = directory / "foreign.o"
            run(need("clang"), "-target", "bpf", "-O2", "-g", *include, "-c", SOURCE, "-o", compiled)
            self.path = self._mount / "foreign"
            run(need("bpftool"), "prog", "loadall", compiled, self.path, "pinmaps", self._mount / "maps")
        except BaseException:
            self.close()
            raise
        self._filters, self._cgroups = [], []

    def program(self, name):
        """Where a program is pinned; bpftool names the pin after the function or, before libbpf 1.0, the section."""
        path = self.path / name
        assert path.exists(), f"no program {name} in {os.listdir(self.path)}"
        return path

    def filter(self, netns, device, hook, name, priority=1):
        """Attaches a program as a clsact filter."""
        netns.run("tc", "qdisc", "add", "dev", device, "clsact", check=False)
        netns.run(
            "tc", "filter", "add", "dev", device, hook, "prio", priority, "bpf", "da", "pinned", self.program(name)
        )
        self._filters.append((netns, device, hook, priority))

    def unfilter(self):
        for netns, device, hook, priority in self._filters:
            netns.run("tc", "filter", "del", "dev", device, hook, "prio", priority, check=False)
        self._filters.clear()

    def attach(self, cgroup, kind, name):
        """Attaches a program to a cgroup as programs that tolerate others do."""
        run("bpftool", "cgroup", "attach", cgroup.directory, kind, "pinned", self.program(name), "multi")
        self._cgroups.append((cgroup, kind, name))

    def detach(self):
        for cgroup, kind, name in self._cgroups:
            run("bpftool", "cgroup", "detach", cgroup.directory, kind, "pinned", self.program(name), check=False)
        self._cgroups.clear()

    def seen(self, index):
        """How often a program saw something."""
        entries = json.loads(run("bpftool", "-j", "map", "dump", "pinned", self._mount / "maps" / "seen").stdout)
        return int.from_bytes(bytes(int(byte, 16) for byte in entries[index]["value"]), "little")

    def close(self):
        if getattr(self, "_filters", None):
            self.unfilter()
        if getattr(self, "_cgroups", None):
            self.detach()
        run("umount", self._mount)


def filters(netns, device):
    """The clsact filters of a device, as tc shows them."""
    return {
        hook: netns.run("tc", "filter", "show", "dev", device, hook, check=False).stdout
        for hook in ("ingress", "egress")
    }


def attached(cgroup):
    """The programs of a cgroup by their IDs."""
    shown = run("bpftool", "-j", "cgroup", "show", cgroup.directory).stdout
    return {(entry["id"], entry["attach_type"]) for entry in json.loads(shown.strip() or "[]")}
