"""What a scenario says: rows, targets and plots. It is kept as JSON, and told as Markdown and as SVG."""

import json
import operator

from . import RESULTS, machine, plots
from .figures import median, shown

OPERATORS = {"<=": (operator.le, "≤"), ">=": (operator.ge, "≥")}


class Report:
    """The result of one run of one scenario."""

    def __init__(self, name, title, about):
        self.name, self.title, self.about = name, title, about
        self.rows, self.targets, self.notes, self.plots = [], [], [], []

    def row(self, what, unit, values, **labels):
        """Adds a line of the table: one number, or the figures of interleaved runs, of which the median,
        the least, the greatest and the count are kept. Returns the median."""
        values = list(values) if hasattr(values, "__iter__") else [values]
        middle = median(values)
        self.rows.append(
            {
                "what": what, **labels, "unit": unit,
                "median": middle, "min": min(values), "max": max(values), "n": len(values),
            }
        )  # fmt: skip
        return middle

    def target(self, what, value, op, limit, unit=""):
        """Holds a figure against what the project promises."""
        holds, _ = OPERATORS[op]
        self.targets.append(
            {"what": what, "value": value, "op": op, "limit": limit, "unit": unit, "met": bool(holds(value, limit))}
        )

    def note(self, text):
        """Adds a sentence that a reader of the figures must know."""
        self.notes.append(text)

    def plot(self, name, kind, title, x="", y="", series=None, **options):
        """Describes a plot, drawn as NAME.svg; see `plots.draw` for the kinds."""
        self.plots.append({"name": name, "kind": kind, "title": title, "x": x, "y": y, "series": series, **options})

    def write(self, described, seconds):
        """Writes the JSON, the Markdown and the plots, in place of those of an earlier run."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        for old in RESULTS.glob(f"{self.name}*.svg"):
            if old.stem == self.name or old.stem.startswith(self.name + "-"):
                old.unlink()
        result = {
            "scenario": self.name, "title": self.title, "about": self.about, "machine": described,
            "seconds": round(seconds), "rows": self.rows, "targets": self.targets, "notes": self.notes,
            "plots": self.plots,
        }  # fmt: skip
        (RESULTS / f"{self.name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        (RESULTS / f"{self.name}.md").write_text(markdown(result))
        for plot in self.plots:
            plots.draw(plot, RESULTS / f"{self.file_of(plot)}.svg", machine.line(described))

    def file_of(self, plot):
        return self.name if plot["name"] == self.name else f"{self.name}-{plot['name']}"


def _columns(rows):
    """The labels that any row has, in the order in which they come."""
    known = ["unit", "median", "min", "max", "n"]
    columns = []
    for row in rows:
        columns += [key for key in row if key not in known and key not in columns]
    return columns


def markdown(result):
    """The result of a scenario as a document."""
    lines = [f"# {result['title']}", "", result["about"], "", f"{machine.line(result['machine'])}.", ""]
    if result["targets"]:
        lines += ["| target | must be | is | |", "| --- | --- | --- | --- |"]
        for target in result["targets"]:
            sign = OPERATORS[target["op"]][1]
            lines.append(
                f"| {target['what']} | {sign} {shown(target['limit'], target['unit'])} "
                f"| {shown(target['value'], target['unit'])} | {'met' if target['met'] else '**missed**'} |"
            )
        lines.append("")
    if result["rows"]:
        columns = _columns(result["rows"])
        lines.append("| " + " | ".join(columns) + " | median | min | max | runs |")
        lines.append("| " + " | ".join("---" for _ in range(len(columns) + 4)) + " |")
        for row in result["rows"]:
            cells = [str(row.get(column, "")) for column in columns]
            cells += [shown(row["median"], row["unit"]), shown(row["min"]), shown(row["max"]), str(row["n"])]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"- {note}" for note in result["notes"]]
    if result["notes"]:
        lines.append("")
    for plot in result["plots"]:
        name = result["scenario"] if plot["name"] == result["scenario"] else f"{result['scenario']}-{plot['name']}"
        lines += [f"![{plot['title']}]({name}.svg)", ""]
    return "\n".join(lines)


def index():
    """Writes README.md of the results: every target of every scenario, from what the folder holds."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    lines = [
        "# Results of the bench", "",
        "Written by `make bench`. Medians of interleaved runs; each scenario's page has the least and the "
        "greatest too, and the plots.", "",
        "| scenario | target | must be | is | |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for result in results:
        for target in result["targets"]:
            sign = OPERATORS[target["op"]][1]
            lines.append(
                f"| [{result['scenario']}]({result['scenario']}.md) | {target['what']} "
                f"| {sign} {shown(target['limit'], target['unit'])} | {shown(target['value'], target['unit'])} "
                f"| {'met' if target['met'] else '**missed**'} |"
            )
    lines += ["", "Measured:", ""]
    for described in sorted({machine.line(result["machine"]) for result in results}):
        names = [result["scenario"] for result in results if machine.line(result["machine"]) == described]
        lines.append(f"- {', '.join(names)}: {described}")
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n")


def summary(result):
    """A scenario in a few lines of a terminal."""
    lines = []
    for target in result.targets:
        sign = OPERATORS[target["op"]][1]
        mark = "ok    " if target["met"] else "MISSED"
        lines.append(
            f"  {mark} {target['what']}: {shown(target['value'], target['unit'])} "
            f"(must be {sign} {shown(target['limit'], target['unit'])})"
        )
    return "\n".join(lines)
