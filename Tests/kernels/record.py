#!/usr/bin/python3
"""The record of what the kernels' verifiers process for each program: verifier.json, and its table in
docs/kernels.md, which is written from it.

    Tests/kernels/record.py [--check]: writes the table, or says that it is out of date."""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORD = ROOT / "Tests/kernels/verifier.json"
DOCUMENT = ROOT / "docs/kernels.md"
BLOCK = re.compile(r"(<!-- verifier -->\n).*?(<!-- end of verifier -->)", re.DOTALL)


def read():
    return json.loads(RECORD.read_text())


def compared(counts):
    """New counts beside those of the record, for people: {kernel: (version, {program: count})}."""
    known = read()["processed"]
    lines = []
    for kernel, (version, programs) in counts.items():
        before = known.get(kernel, {"programs": {}})["programs"]
        changed = [
            f"{program} {count:,} (recorded: {before.get(program, 0):,})"
            for program, count in sorted(programs.items())
            if before.get(program) != count
        ]
        if changed:
            lines.append(f"{kernel:8} the verifier of Linux {version} processed {', '.join(changed)}\n")
    return "".join(lines)


def write(counts):
    """Takes new counts into the record and the document."""
    made = read()
    for kernel, (version, programs) in counts.items():
        made["processed"][kernel] = {"linux": version, "programs": dict(sorted(programs.items()))}
    RECORD.write_text(json.dumps(made, indent=2) + "\n")
    DOCUMENT.write_text(rendered())


def rendered():
    """The document with the record's table."""
    known = read()
    columns = [entry["linux"] for entry in known["processed"].values()]
    lines = ["| program | " + " | ".join(columns) + " | budget |", "| --- |" + " ---: |" * (len(columns) + 1)]
    for program, budget in known["budgets"].items():
        cells = [f"{entry['programs'][program]:,}" for entry in known["processed"].values()]
        lines.append(f"| `{program}` | " + " | ".join(cells) + f" | {budget:,} |")
    table = "\n".join(lines) + "\n"
    return BLOCK.sub(lambda found: found[1] + table + found[2], DOCUMENT.read_text())


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if DOCUMENT.read_text() != rendered():
            sys.exit(
                f"{DOCUMENT.relative_to(ROOT)}: its table is not that of verifier.json: run Tests/kernels/record.py"
            )
    else:
        DOCUMENT.write_text(rendered())
