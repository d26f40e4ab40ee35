"""The few statistics of the bench. All of them are of interleaved runs, never of one alone."""

import math
import statistics


def median(values):
    return statistics.median(values)


def percentile(values, q):
    """The value that a share `q` (0 to 1) of the values do not exceed (nearest rank: no interpolation)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def ratios(pairs):
    """What each pair (measured, direct) of one round gives: measured / direct."""
    return [measured / direct for measured, direct in pairs]


def differences(pairs):
    """What each pair (measured, direct) of one round gives: measured - direct."""
    return [measured - direct for measured, direct in pairs]


def thinned(values, limit=400):
    """At most `limit` of the sorted values, evenly spread and with both ends, for a plot."""
    ordered = sorted(values)
    if len(ordered) <= limit:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (limit - 1))] for index in range(limit)]


def shown(value, unit=""):
    """A figure for people: four significant digits, thousands apart, with its unit."""
    if value is None:
        return "-"
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return f"{text} {unit}".rstrip()
