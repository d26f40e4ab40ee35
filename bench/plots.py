"""Draws the plots of a result. A scenario only says what is to be seen; how it looks is decided here."""

import logging

import matplotlib

from .figures import shown

matplotlib.use("svg")
logging.getLogger("matplotlib").setLevel(logging.ERROR)

import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito's palette, told apart by all eyes (https://jfly.uni-koeln.de/color/).
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#000000"]
# A program has one colour in every plot.
KNOWN = {"MeshAgent": "#0072B2", "Envoy": "#D55E00", "HAProxy": "#009E73", "direct": "#8C8C8C"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mesh-agent",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 14,
}


def draw(plot, path, footer):
    """Draws one plot. Kinds, with what `series` holds:
    "pairs"  {label: [value of each run]}: a dot a run, a line at the median
    "lines"  {label: [[x, y], ...]}
    "cdf"    {label: [value, ...]}: the share of values up to x
    "bars"   {label: {category: value}}
    Options: logx, logy, limit=[value, text] (a dashed line at a target), height (inches)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, plot.get("height", 4.4)))
        figure.set_facecolor("white")
        DRAWERS[plot["kind"]](axes, plot)
        axes.set_title(plot["title"])
        axes.set_xlabel(plot["x"])
        axes.set_ylabel(plot["y"])
        if plot.get("logx"):
            axes.set_xscale("log")
        if plot.get("logy"):
            axes.set_yscale("log")
        if "ylim" in plot:
            axes.set_ylim(*plot["ylim"])
        if "limit" in plot:
            _limit(axes, plot)
        figure.text(0.01, 0.005, footer, fontsize=7, color="#777777")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "make bench"})
        plt.close(figure)


def _colour(label, index):
    for name, colour in KNOWN.items():
        if label == name:
            return colour
    return COLOURS[index % len(COLOURS)]


def _limit(axes, plot):
    """The target. It lies across the axis of the values."""
    value, text = plot["limit"]
    if plot["kind"] == "cdf":
        axes.axvline(value, color="#B00020", linestyle="--", linewidth=1)
        axes.annotate(text, (value, 0.02), xytext=(4, 0), textcoords="offset points", color="#B00020", fontsize=9)
    else:
        axes.axhline(value, color="#B00020", linestyle="--", linewidth=1)
        axes.annotate(
            text, (1, value), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            ha="right", color="#B00020", fontsize=9,
        )  # fmt: skip


def _pairs(axes, plot):
    for index, (label, values) in enumerate(plot["series"].items()):
        colour = _colour(label, index)
        spread = [index + (run % 5 - 2) * 0.05 for run in range(len(values))]
        axes.plot(spread, values, "o", markersize=5, alpha=0.65, color=colour, markeredgewidth=0)
        middle = sorted(values)[len(values) // 2]
        axes.plot([index - 0.28, index + 0.28], [middle, middle], color=colour, linewidth=2.5)
    axes.set_xticks(range(len(plot["series"])), list(plot["series"]))
    axes.grid(axis="x", visible=False)


def _lines(axes, plot):
    for index, (label, points) in enumerate(plot["series"].items()):
        axes.plot(
            [point[0] for point in points], [point[1] for point in points], "-o", markersize=4,
            linewidth=1.8, label=label, color=_colour(label, index),
        )  # fmt: skip
    axes.legend()


def _cdf(axes, plot):
    for index, (label, values) in enumerate(plot["series"].items()):
        ordered = sorted(values)
        shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
        axes.plot(ordered, shares, drawstyle="steps-post", linewidth=1.8, label=label, color=_colour(label, index))
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower right")


def _bars(axes, plot):
    labels = list(plot["series"])
    categories = []
    for values in plot["series"].values():
        categories += [category for category in values if category not in categories]
    width = 0.8 / len(labels)
    for index, label in enumerate(labels):
        values = plot["series"][label]
        places = [number - 0.4 + width * (index + 0.5) for number, name in enumerate(categories) if name in values]
        heights = [values[name] for name in categories if name in values]
        drawn = axes.bar(places, heights, width * 0.92, label=label, color=_colour(label, index))
        axes.bar_label(drawn, [shown(height) for height in heights], fontsize=8, padding=2, color="#444444")
    axes.set_xticks(range(len(categories)), categories)
    axes.grid(axis="x", visible=False)
    if len(labels) > 1:
        axes.legend()


DRAWERS = {"pairs": _pairs, "lines": _lines, "cdf": _cdf, "bars": _bars}
