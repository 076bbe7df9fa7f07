"""Figures: the same bytes every time, whatever the user's settings, and nothing drawn over."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.lab import drawing, figures
from unspoken.lab.frontier import frontier, has_frontier

DRAWN = {
    "accuracy": figures.accuracy,
    "bytes": figures.bytes_against_accuracy,
    "seconds": figures.seconds_by_stage,
    "frontier": lambda metrics: frontier({"one": metrics, "two": metrics, "three": metrics}),
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


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=14))
def test_who_moves_more_bytes_never_stands_further_left(counts: list[int]) -> None:
    sizes = {f"arm-{at}": count for at, count in enumerate(counts)}
    zero, places = drawing.byte_places(sizes)
    for one, other in itertools.permutations(sizes, 2):
        if sizes[one] < sizes[other]:
            assert places[one] < places[other]
    assert all(places[arm] > zero + drawing.ZERO_GAP / 2 for arm, count in sizes.items() if count)
    if len(set(counts)) == len(counts) == 1:
        assert places["arm-0"] == pytest.approx(math.log10(counts[0]) if counts[0] else zero)


def test_equal_sizes_stand_side_by_side() -> None:
    for other, apart in ((10, drawing.DODGE), (90_000, drawing.LEAST_DODGE)):
        _, places = drawing.byte_places({"kv": 100_000, "kv-zero": 100_000, "text": other})
        assert places["kv-zero"] - places["kv"] == pytest.approx(apart)
        assert places["text"] == pytest.approx(math.log10(other))


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
    frame = drawing.Box(0.0, 0.0, 400.0, 300.0)
    dots = [(200.0, 100.0 + 4 * at) for at in range(12)]
    taken = [drawing.Box(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    for x, y in dots:
        box = drawing.free_place(x, y, 60.0, 12.0, frame, taken)
        assert box.within(frame)
        assert not any(box.meets(each) for each in taken)
        taken.append(box)


def test_a_run_has_a_frontier_if_its_caches_have_three_sizes() -> None:
    sizes = {"none": 0, "text@8": 8, "kv-deranged": 900, "kv": 900, "kv-continue": 900, "kv+int8": 450}
    arms = {arm: {"accuracy": 0.5, "bytes": float(size)} for arm, size in sizes.items()}
    assert not has_frontier({"arms": arms})
    assert not has_frontier({"arms": arms | {"need@0.3": {"bytes": None}}})
    assert has_frontier({"arms": arms | {"need@0.3": {"bytes": 270.0}}})


def test_what_went_over_several_hops_is_no_size_of_a_message() -> None:
    arms = {arm: {"bytes": size, "accuracy": 0.5} for arm, size in (("kv", 900.0), ("kv+int4", 270.0))}
    further = {"relay@2:kv": {"bytes": 1800.0, "accuracy": 0.5}}
    assert not has_frontier({"arms": arms | further})
    assert frontier({"one": {"arms": arms | further}}) == frontier({"one": {"arms": arms}})


def test_a_frontier_without_messages_or_answers_can_be_drawn() -> None:
    assert frontier({"none moved": {"arms": {"none": {"accuracy": 0.5, "bytes": 0.0}}}}).startswith("<svg")
    odd = {
        "kv": {"accuracy": None, "bytes": 7.0},
        "need@0.3": {"accuracy": 1.0, "bytes": 3.0},
        "kv$<b>": {"bytes": 2.0},
    }
    assert "<b>" not in frontier({"<b>": {"arms": odd, "measure": "f1"}})


def test_a_task_judged_by_f1_is_drawn_by_its_score(usual: Any) -> None:
    scored = {
        arm: of | {"score": {"mean": of["accuracy"] / 2, "low": of["low"] / 2, "high": of["high"] / 2}}
        for arm, of in usual.metrics["arms"].items()
    }
    metrics = usual.metrics | {"arms": scored, "measure": "f1"}
    assert figures.accuracy(metrics) != figures.accuracy(usual.metrics)
