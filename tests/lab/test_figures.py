"""Figures: the same bytes every time, whatever the user's settings, and nothing drawn over."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import matplotlib
import pytest

from unspoken.lab import figures

DRAWN = {
    "accuracy": figures.accuracy,
    "bytes": figures.bytes_against_accuracy,
    "seconds": figures.seconds_by_stage,
}


@pytest.mark.parametrize("name", DRAWN)
def test_same_figures_give_same_bytes(name: str, usual: Any) -> None:
    metrics = usual.metrics
    first = DRAWN[name](metrics)
    assert first is not None
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert DRAWN[name](metrics) == first
        assert dict(matplotlib.rcParams) == before
    assert "<dc:date>" not in first
    assert ET.fromstring(first).tag.endswith("svg")  # noqa: S314
    assert all(f'id="{name}-' in line for line in first.splitlines() if ' id="' in line)


def test_readme_figure_is_compact(usual: Any) -> None:
    root = ET.fromstring(figures.readme(usual.metrics))  # noqa: S314
    assert (root.attrib["width"], root.attrib["height"]) == ("600pt", "270pt")


def test_untimed_run_has_no_figure_of_seconds(build: Callable[..., Any]) -> None:
    assert figures.seconds_by_stage(build({"kv": "10"}, timed=0).metrics) is None


def test_nothing_moved_and_no_interval_can_be_drawn() -> None:
    metrics = {"arms": {"none": {"accuracy": 0.5, "low": None, "high": None, "bytes": 0.0}}}
    assert figures.accuracy(metrics).startswith("<svg")
    assert figures.bytes_against_accuracy(metrics).startswith("<svg")


def test_names_with_signs_are_drawn_as_they_are() -> None:
    metrics = {"arms": {"odd$<b>$": {"accuracy": 1.0, "low": 1.0, "high": 1.0, "bytes": 5.0}}}
    assert "<b>" not in figures.accuracy(metrics)


def test_labels_keep_clear_of_everything() -> None:
    frame = figures.Box(0.0, 0.0, 400.0, 300.0)
    dots = [(200.0, 100.0 + 4 * at) for at in range(12)]
    taken = [figures.Box(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    for x, y in dots:
        box = figures._free(x, y, 60.0, 12.0, frame, taken)
        assert box.within(frame)
        assert not any(box.meets(each) for each in taken)
        taken.append(box)
