#!/usr/bin/python3
"""Checks the offsets and sizes in docs/abi.md against the header: the compiler compares them."""

import re
import subprocess
import sys

HEADER = "mesh_abi.h"


def main():
    source = ["#include <stddef.h>", f'#include "{HEADER}"']
    described = {}
    struct = None
    for line in open("docs/abi.md"):
        if line.startswith("#"):
            named = re.match(r"### `struct (\w+)`", line)
            struct = named and named[1]
            if struct:
                described[struct] = 0
        elif struct and (row := re.match(r"\| (\d+) \| (\d+) \| `(\w+)`", line)):
            offset, size, field = row.groups()
            described[struct] += int(size)
            source.append(
                f"_Static_assert(offsetof(struct {struct}, {field}) == {offset} && "
                f'sizeof(((struct {struct} *)0)->{field}) == {size}, "{struct}.{field}");'
            )
    in_header = set(re.findall(r"^struct (\w+) \{", open(f"Sources/CMeshABI/include/{HEADER}").read(), re.M))
    if described.keys() != in_header:
        print(f"only in one of docs/abi.md and {HEADER}: {', '.join(described.keys() ^ in_header)}")
        return 1
    # No field is left out: together they are the whole struct.
    for struct, size in described.items():
        source.append(f'_Static_assert(sizeof(struct {struct}) == {size}, "{struct}, all fields");')
    command = ["clang", "-fsyntax-only", "-ISources/CMeshABI/include", "-xc", "-"]
    done = subprocess.run(command, input="\n".join(source), text=True, capture_output=True)
    print(done.stderr, end="")
    return done.returncode


sys.exit(main())
