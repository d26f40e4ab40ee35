#!/usr/bin/python3
"""Checks that every relative link in the Markdown files leads to a file, and every #anchor to a heading."""

import pathlib
import re
import subprocess
import sys


def anchors(text):
    """The anchors that GitHub makes of a document's headings."""
    titles = re.findall(r"^#+ +(.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name) if name else path
        if not linked.exists():
            yield f"{path}: {target}: no such file"
        elif anchor and anchor not in anchors(linked.read_text()):
            yield f"{path}: {target}: no such heading"


def main():
    files = subprocess.run(["git", "ls-files", "*.md"], capture_output=True, text=True, check=True)
    problems = [line for name in files.stdout.split() for line in broken(pathlib.Path(name))]
    print("\n".join(problems))
    return 1 if problems else 0


sys.exit(main())
