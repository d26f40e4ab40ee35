"""Tells results as Markdown: a page for each scenario, an index, and the tables inside README.md and docs/,
which are written from the committed results, so that no document says what was not measured.

python3 -m bench.tables [--check]: writes the tables into the documents, or says which are out of date."""

import json
import re
import sys

from . import RESULTS, ROOT, machine
from .figures import shown

SIGNS = {"<=": "≤", ">=": "≥"}
DOCUMENTS = ["README.md", "docs/performance.md"]
# <!-- bench: hooks latency -->: everything up to <!-- end of bench --> is a table of their targets.
BLOCK = re.compile(r"(<!-- bench: ([a-z ]+) -->\n).*?(<!-- end of bench -->)", re.DOTALL)


def _table(headings, rows):
    lines = ["| " + " | ".join(headings) + " |", "| " + " | ".join("---" for _ in headings) + " |"]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows] + [""]


def _verdict(target):
    return "met" if target["met"] else "**missed**"


def _target(target):
    limit = f"{SIGNS[target['op']]} {shown(target['limit'], target['unit'])}"
    return [target["what"], limit, shown(target["value"], target["unit"]), _verdict(target)]


def file_of(result, plot):
    """The name of a plot's file in the folder of the results."""
    name = result["scenario"]
    return f"{name}.svg" if plot["name"] == name else f"{name}-{plot['name']}.svg"


def page(result):
    """The result of a scenario as a document."""
    lines = [f"# {result['title']}", "", result["about"], "", f"{machine.line(result['machine'])}.", ""]
    if result["targets"]:
        lines += _table(["target", "must be", "is", ""], [_target(target) for target in result["targets"]])
    if result["rows"]:
        figures = ["unit", "median", "min", "max", "n"]
        labels = list(dict.fromkeys(key for row in result["rows"] for key in row if key not in figures))
        rows = []
        for row in result["rows"]:
            cells = [str(row.get(label, "")) for label in labels]
            cells += [shown(row["median"], row["unit"]), shown(row["min"]), shown(row["max"]), str(row["n"])]
            rows.append(cells)
        lines += _table([*labels, "median", "min", "max", "runs"], rows)
    if result["notes"]:
        lines += [*(f"- {note}" for note in result["notes"]), ""]
    for plot in result["plots"]:
        lines += [f"![{plot['title']}]({file_of(result, plot)})", ""]
    return "\n".join(lines)


def load():
    """Every result that the folder holds, by scenario."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return {result["scenario"]: result for result in results}


def _measured(results):
    """When and where the results are from, a line for each run."""
    runs = {}
    for result in results:
        runs.setdefault(machine.line(result["machine"]), []).append(result["scenario"])
    if len(runs) == 1:
        return [f"Measured {line}." for line in runs]
    return [f"- {', '.join(names)}: measured {line}" for line, names in sorted(runs.items())]


def summary(results, folder=""):
    """The targets of some results as one table, with when and where they were measured."""
    rows = []
    for result in results:
        link = f"[{result['scenario']}]({folder}{result['scenario']}.md)"
        rows += [[link, *_target(target)] for target in result["targets"]]
    return _table(["scenario", "target", "must be", "is", ""], rows) + _measured(results)


def write_index():
    """Writes README.md of the results: every target of every scenario that the folder holds."""
    lines = [
        "# Results of the bench", "",
        "Written by `make bench`: medians of interleaved runs. Each scenario's page has the least and the greatest "
        "too, and the plots.", "",
        *summary(load().values()),
    ]  # fmt: skip
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n")


def filled(path, results):
    """A document's text with its tables as the results have it."""
    folder = "bench/results/" if path.parent == ROOT else "../bench/results/"

    def table(block):
        names = block[2].split()
        absent = [name for name in names if name not in results]
        if absent:
            raise SystemExit(f"error: {path.name} wants results that are not there: {', '.join(absent)}: make bench")
        lines = summary([results[name] for name in names], folder)
        return block[1] + "\n" + "\n".join(lines) + "\n\n" + block[3]

    return BLOCK.sub(table, path.read_text())


def main(check):
    results = load()
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        text = filled(path, results)
        if text != path.read_text():
            stale.append(name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"not what bench/results says: {', '.join(stale)}; run: python3 -m bench.tables", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
