"""A virtual machine for one kernel: QEMU by software emulation, an initramfs of a few files, and the host's
own root as its root, read-only. What comes out: the console's text, and files in a directory of results."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import time

from debian import CACHE, ROOT

HERE = pathlib.Path(__file__).parent
# What the initramfs needs of the host: to load modules and to mount.
TOOLS = {"/bin/sh": "bin/sh", "/bin/mount": "bin/mount", "/sbin/modprobe": "sbin/modprobe"}
TOOLS["/sbin/switch_root"] = "sbin/switch_root"
FIRST_MODULES = ["virtio_pci", "9pnet_virtio", "9p"]
# mitigations cost time and prove nothing here. A kernel that stumbles ends, and so does its machine.
COMMAND_LINE = "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off random.trust_cpu=on"
# Both processors in one thread, in turns. With a thread each, an instruction that the kernel patches (a static
# key, say) may be run stale by the other: 6.12 died so of a stray breakpoint in __dev_queue_xmit.
ACCELERATOR = "tcg,thread=single"
TAIL = 40


class Died(Exception):
    """A machine that did not come to its end; the message has the console's last lines."""


class Initramfs:
    """A cpio archive in the format of the kernel's Documentation/driver-api/early-userspace."""

    def __init__(self):
        self._pieces, self._seen, self._inode = [], {""}, 0

    def _entry(self, name, mode, data=b""):
        self._inode += 1
        encoded = name.encode() + b"\0"
        numbers = [self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0]
        head = b"070701" + b"".join(b"%08x" % number for number in numbers) + encoded
        self._pieces += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]

    def directory(self, name):
        if name not in self._seen:
            self._seen.add(name)
            self.directory(os.path.dirname(name))
            self._entry(name, 0o040755)

    def file(self, name, source):
        if name not in self._seen:
            self._seen.add(name)
            self.directory(os.path.dirname(name))
            self._entry(name, 0o100755, pathlib.Path(source).read_bytes())

    def program(self, source, name):
        """A program of the host's, with the libraries it is linked to."""
        self.file(name, source)
        linked = subprocess.run(["ldd", source], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", linked):
            self.file(library.lstrip("/"), library)

    def write(self, path):
        self._entry("TRAILER!!!", 0)
        path.write_bytes(b"".join(self._pieces))


def _initramfs(kernel, path):
    made = Initramfs()
    for directory in ("dev", "proc", "sys", "host"):
        made.directory(directory)
    made.file("init", HERE / "init")
    for source, name in TOOLS.items():
        made.program(source, name)
    modules = f"lib/modules/{kernel.release}"
    for name in os.listdir(kernel.directory / modules):
        if name.startswith("modules."):
            made.file(f"{modules}/{name}", kernel.directory / modules / name)
    listed = subprocess.run(
        ["/sbin/modprobe", "-d", kernel.directory, "-S", kernel.release, "-a", "--show-depends", *FIRST_MODULES],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for module in re.findall(r"^insmod (\S+)", listed, re.MULTILINE):
        made.file(os.path.relpath(module, kernel.directory), module)
    made.write(path)


def boot(kernel, wanted, timeout, watch):
    """Boots a kernel and runs guest.py in it. Returns the directory of results.
    `wanted` is {"arguments": pytest's, "environment": what is added to it}; `watch` gets the text that pytest
    writes, as it comes; `timeout` is in seconds."""
    results = CACHE / "results" / kernel.name
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    console, log = results / "console.log", results / "guest.log"
    log.touch()
    _initramfs(kernel, results / "initramfs")
    (results / "wanted.json").write_text(json.dumps(wanted))
    line = [COMMAND_LINE, f"MESH_GUEST={HERE / 'guest.py'}", f"MESH_MODULES={kernel.directory}"]
    share = "local,security_model=none,multidevs=remap"
    command = ["qemu-system-x86_64", "-accel", ACCELERATOR, "-cpu", "max", "-smp", "2", "-m", "2048"]
    command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", f"file:{console}"]
    command += ["-kernel", kernel.image, "-initrd", results / "initramfs", "-append", " ".join(line)]
    command += ["-virtfs", f"{share},path=/,mount_tag=host,readonly=on"]
    command += ["-virtfs", f"{share},path={results},mount_tag=results"]
    began = time.monotonic()
    machine = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        with open(log) as lines:
            while True:
                ended = machine.poll() is not None
                watch(lines.read())
                if ended:
                    break
                if time.monotonic() - began > timeout:
                    raise Died(f"{kernel.name}: not at its end after {timeout} s.\n{_tail(console, log)}")
                time.sleep(0.2)
    finally:
        machine.kill()
        machine.wait()
        (results / "initramfs").unlink()
    if not (results / "outcome.json").exists():
        said = machine.stderr.read().decode(errors="replace").strip()
        raise Died(f"{kernel.name}: the machine ended without a result. {said}\n{_tail(console, log)}")
    return results


def _tail(console, log):
    """The last lines of both logs."""
    text = []
    for path in (log, console):
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        text += [f"--- the last lines of {path.relative_to(ROOT)}:", *lines[-TAIL:]]
    return "\n".join(text)
