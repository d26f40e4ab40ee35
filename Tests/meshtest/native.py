"""The C programs of Tests/native, compiled when their sources are newer, and run with a seed."""

import json
import os
import pathlib

from .host import need, run

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "Tests" / "native"
BUILD = ROOT / ".build" / "native"
SEED = int(os.environ.get("SEED", "1"))


def inputs(short):
    """How many inputs a fuzzer tries: INPUTS, or few enough for every run of the tests."""
    return int(os.environ.get("INPUTS", short))


def native(name, *more):
    """The path of Tests/native/NAME.c, compiled, with other sources of the project."""
    BUILD.mkdir(parents=True, exist_ok=True)
    built, others = BUILD / name, [ROOT / path for path in more]
    newest = max(path.stat().st_mtime for path in [*SOURCES.glob("*.[ch]"), *others])
    if not built.exists() or built.stat().st_mtime < newest:
        made = built.with_suffix(f".{os.getpid()}")
        run(
            need("clang"),
            *("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"),
            *("-I", ROOT / "Sources/CMeshABI/include", "-I", ROOT / "Sources/CMeshSystem/include"),
            *("-o", made, SOURCES / f"{name}.c", *others),
            *("-l:libbpf.a", "-l:libelf.a", "-l:libz.a"),
        )
        made.rename(built)
    return str(built)


def corpus(name):
    return SOURCES / "corpus" / name


def fuzz(netns, cgroup, name, *words, timeout=1500):
    """Runs a fuzzer in a namespace and cgroup to its end: the JSON object that it prints. What it finds
    wrong fails the test, with the seed and the input."""
    return json.loads(netns.run(native(name), *words, cgroup=cgroup, timeout=timeout).stdout)
