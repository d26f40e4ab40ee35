"""Debian's kernels as files: found and checked by apt under a configuration of our own, which leaves the
machine's alone, unpacked below .build/kernels, and kept there. Nothing is installed."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / ".build" / "kernels"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# What is booted: a name, and the suites whose newest kernel it is. Experimental has release candidates,
# so it is not among the newest.
KERNELS = {
    "5.10": ["bullseye"],
    "6.1": ["bookworm"],
    "6.12": ["trixie"],
    "newest": ["trixie-backports", "sid"],
}


class NoKernel(Exception):
    """A kernel that could not be had; the message says why."""


def _command(*words, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise NoKernel(f"{' '.join(map(str, words))}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class _Apt:
    """apt for some suites, with nothing of the machine's configuration but its network settings."""

    def __init__(self, name, suites):
        self._home = CACHE / "apt" / name
        for directory in ("state/lists/partial", "cache/archives/partial", "etc"):
            (self._home / directory).mkdir(parents=True, exist_ok=True)
        (self._home / "status").touch()
        (self._home / "kernels.sources").write_text(
            f"Types: deb\nURIs: {MIRROR}\nSuites: {' '.join(suites)}\nComponents: main\n"
            f"Architectures: amd64\nSigned-By: {KEYRING}\n"
        )
        # A mirror that is a snapshot is out of its validity, and says so truly: signatures still count.
        (self._home / "apt.conf").write_text(
            f'Dir::State "{self._home}/state";\nDir::State::status "{self._home}/status";\n'
            f'Dir::Cache "{self._home}/cache";\nDir::Etc::sourcelist "{self._home}/kernels.sources";\n'
            'Dir::Etc::sourceparts "/dev/null";\nDir::Etc::preferencesparts "/dev/null";\n'
            'APT::Architecture "amd64";\nAPT::Architectures "amd64";\nAPT::Sandbox::User "";\n'
            'Acquire::Check-Valid-Until "false";\nAcquire::Languages "none";\nAcquire::Retries "3";\n'
            'Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";\n'
        )
        self._environment = {**os.environ, "APT_CONFIG": str(self._home / "apt.conf")}

    def __call__(self, *words, **options):
        return _command(*words, env=self._environment, **options)

    def close(self):
        """Removes the indices, which are large and soon old."""
        shutil.rmtree(self._home)

    def newest(self, package):
        """The highest version of a package in the suites."""
        found = [line.split("|")[1].strip() for line in self("apt-cache", "madison", package).splitlines()]
        if not found:
            raise NoKernel(f"no suite has a package {package}")

        def order(one, other):
            return -1 if subprocess.run(["dpkg", "--compare-versions", one, "lt", other]).returncode == 0 else 1

        return max(found, key=functools.cmp_to_key(order))

    def fields(self, package, version):
        """A package's entry in the signed index."""
        shown = self("apt-cache", "show", f"{package}={version}")
        return dict(re.findall(r"^([A-Z][\w-]*): (.*)$", shown.split("\n\n")[0], re.MULTILINE))

    def image(self, version):
        """The packages that make up linux-image-amd64 of a version: those which it, and they, depend on in
        that very version. (Newer ones are split into an image and its modules.)"""
        wanted, seen = ["linux-image-amd64"], {}
        while wanted:
            package = wanted.pop()
            if package in seen:
                continue
            seen[package] = self.fields(package, version)
            wanted += re.findall(rf"(linux-[\w.+-]+) \(= {re.escape(version)}\)", seen[package].get("Depends", ""))
        return seen


class Kernel:
    """An unpacked kernel: its image, its modules below `directory`, and its release, such as
    6.1.0-50-amd64."""

    def __init__(self, name, directory, known):
        self.name, self.directory = name, directory
        self.version, self.release = known["version"], known["release"]
        images = [directory / f"boot/vmlinuz-{self.release}", directory / f"lib/modules/{self.release}/vmlinuz"]
        self.image = next(path for path in images if path.exists())

    @property
    def linux(self):
        """The Linux version, such as 6.1.176."""
        return re.match(r"[0-9.]+[0-9]", self.version).group()


def _unpack(name, suites, directory, say):
    apt = _Apt(name, suites)
    say(f"{name}: looking for the newest kernel in {', '.join(suites)} at {MIRROR}")
    apt("apt-get", "-qq", "update")
    version = apt.newest("linux-image-amd64")
    made = directory.with_suffix(".partial")
    shutil.rmtree(made, ignore_errors=True)
    (made / "usr/lib").mkdir(parents=True)
    # Where the packages put modules differs; as on an installed system, both are one place.
    (made / "lib").symlink_to("usr/lib")
    for package, fields in apt.image(version).items():
        say(f"{name}: {package} {version} sha256:{fields['SHA256']}")
        apt("apt-get", "-qq", "download", f"{package}={version}", cwd=CACHE)
        (file,) = CACHE.glob(f"{package}_*.deb")
        # dpkg -x would replace the link by a directory.
        unpacked = made.with_suffix(".package")
        _command("dpkg", "-x", file, unpacked)
        for part in ("boot", "lib/modules", "usr/lib/modules"):
            if (unpacked / part).exists():
                target = made / part
                target.mkdir(parents=True, exist_ok=True)
                _command("cp", "-a", f"{unpacked / part}/.", target)
        shutil.rmtree(unpacked)
        file.unlink()
    (release,) = os.listdir(made / "lib/modules")
    _command("/sbin/depmod", "-b", made, release)
    (made / "kernel.json").write_text(json.dumps({"version": version, "release": release}))
    made.rename(directory)
    apt.close()


def kernel(name, say=print):
    """The kernel of that name, fetched if it is not there. To have a newer one, `make clean` or remove its
    directory."""
    directory = CACHE / name
    if not (directory / "kernel.json").exists():
        shutil.rmtree(directory, ignore_errors=True)
        _unpack(name, KERNELS[name], directory, say)
    return Kernel(name, directory, json.loads((directory / "kernel.json").read_text()))
