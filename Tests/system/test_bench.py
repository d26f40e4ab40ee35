"""The bench's own arithmetic, and its tables: a wrong percentile would be a wrong promise."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from bench import figures, tables  # noqa: E402


@pytest.mark.parametrize(
    "q, wanted", [(0.0, 1), (0.01, 1), (0.011, 2), (0.5, 50), (0.501, 51), (0.99, 99), (0.999, 100), (1.0, 100)]
)
def test_a_percentile_is_the_nearest_rank(q, wanted):
    assert figures.percentile(list(range(100, 0, -1)), q) == wanted


def test_pairs_are_compared_within_their_round():
    pairs = [(90, 100), (50, 100), (210, 200)]
    assert figures.ratios(pairs) == [0.9, 0.5, 1.05]
    assert figures.differences(pairs) == [-10, -50, 10]
    assert figures.median(figures.ratios(pairs)) == 0.9


def test_thinned_values_keep_both_ends():
    assert figures.thinned([3, 1, 2]) == [1, 2, 3]
    thin = figures.thinned(range(1000), 11)
    assert (len(thin), thin[0], thin[5], thin[-1]) == (11, 0, 500, 999)


@pytest.mark.parametrize(
    "value, unit, wanted",
    [
        (0, "", "0"), (12, "ns", "12 ns"), (10_000_000, "", "10,000,000"), (0.95123, "", "0.9512"),
        (1234.5, "ns", "1,234 ns"), (24.71, "MB", "24.71 MB"), (None, "ms", "-"),
    ],
)  # fmt: skip
def test_a_figure_for_people(value, unit, wanted):
    assert figures.shown(value, unit) == wanted


RESULT = {
    "scenario": "hooks",
    "title": "Hooks",
    "about": "About.",
    "machine": {
        "date": "2026-01-02 03:04 UTC", "cpu": "A CPU", "cpus": 2, "memory_gb": 4, "kernel": "6.1",
        "system": "Debian", "agent": "0.1.0", "commit": "abc",
    },
    "seconds": 1,
    "rows": [{"what": "added", "hook": "tc", "unit": "ns", "median": 5, "min": 4, "max": 7.5, "n": 9}],
    "targets": [
        {"what": "together", "value": 900.4, "op": "<=", "limit": 1000, "unit": "ns", "met": True},
        {"what": "share", "value": 0.5, "op": ">=", "limit": 0.9, "unit": "", "met": False},
    ],
    "notes": ["A note."],
    "plots": [{"name": "hooks", "title": "Plot"}, {"name": "more", "title": "More"}],
}  # fmt: skip


def test_a_page_has_targets_rows_notes_and_plots():
    text = tables.page(RESULT)
    assert "| together | ≤ 1,000 ns | 900.4 ns | met |" in text
    assert "| share | ≥ 0.9 | 0.5 | **missed** |" in text
    assert "| what | hook | median | min | max | runs |" in text
    assert "| added | tc | 5 ns | 4 | 7.5 | 9 |" in text
    assert "- A note." in text
    assert "![Plot](hooks.svg)" in text and "![More](hooks-more.svg)" in text


def test_a_document_gets_its_table_and_keeps_the_rest(tmp_path):
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- bench: hooks -->\nold\n<!-- end of bench -->\nafter\n")
    text = tables.filled(document, {"hooks": RESULT})
    assert text.startswith("before\n<!-- bench: hooks -->\n") and text.endswith("<!-- end of bench -->\nafter\n")
    assert "old" not in text
    assert "| [hooks](../bench/results/hooks.md) | together | ≤ 1,000 ns | 900.4 ns | met |" in text
    assert "Measured 2026-01-02 03:04 UTC on 2 CPUs (A CPU), 4 GB, Linux 6.1, Debian; commit abc." in text
    document.write_text(text)
    assert tables.filled(document, {"hooks": RESULT}) == text


def test_a_table_without_its_result_is_an_error(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("<!-- bench: hooks truth -->\n<!-- end of bench -->\n")
    with pytest.raises(SystemExit, match="truth"):
        tables.filled(document, {"hooks": RESULT})
