"""What a scenario says: rows, targets and plots. It is kept as JSON, and told as Markdown and as SVG."""

import json
import operator

from . import RESULTS, machine
from .figures import median, percentile
from .tables import file_of, page

OPERATORS = {"<=": operator.le, ">=": operator.ge}


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

    def percentiles(self, seconds, **labels):
        """Adds the lines of the median, p99 and the greatest of times, in ms."""
        for q, label in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")):
            self.row(label, "ms", percentile(seconds, q) * 1e3, **labels, trials=len(seconds))

    def target(self, what, value, op, limit, unit=""):
        """Holds a figure against what the project promises."""
        self.targets.append(
            {
                "what": what,
                "value": value,
                "op": op,
                "limit": limit,
                "unit": unit,
                "met": bool(OPERATORS[op](value, limit)),
            }
        )

    def note(self, text):
        """Adds a sentence that a reader of the figures must know."""
        self.notes.append(text)

    def plot(self, name, kind, title, x="", y="", series=None, **options):
        """Describes a plot, drawn as NAME.svg; see `plots.draw` for the kinds."""
        self.plots.append({"name": name, "kind": kind, "title": title, "x": x, "y": y, "series": series, **options})

    def write(self, described, seconds):
        """Writes the JSON, the Markdown and the plots, in place of those of an earlier run."""
        # Here, because matplotlib is not wherever there are reports.
        from . import plots

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
        (RESULTS / f"{self.name}.md").write_text(page(result))
        for plot in self.plots:
            plots.draw(plot, RESULTS / file_of(result, plot), machine.line(described))
