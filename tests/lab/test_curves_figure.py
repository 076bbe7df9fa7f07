"""The curves' figure: lines by hops and by length, from the cells that have them and from no others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from unspoken.lab.curves_figure import curves_figure, has_curves, hop_lines, length_cells, receiver_seconds
from unspoken.lab.relay import hops_of


@pytest.fixture
def hops(build: Callable[..., Any]) -> dict[str, Any]:
    """Return a cell in which columns are handed on twice and thrice, and four bits once."""
    rows = {"none": "0000", "kv": "1111", "kv+int4": "1110", "relay@3:kv": "1100", "relay@2:kv": "1110"}
    return dict(build(rows | {"kv-deranged": "0000"}).metrics)


def of_length(build: Callable[..., Any], fillers: int, columns: float) -> dict[str, Any]:
    """Return a cell of a text with so many fillers, of which `kv` brings so many columns."""
    rows = {"none": "0000", "full-text": "1111", "text@8": "1100", "kv": "1111", "kv-deranged": "0000"}
    cell = copy.deepcopy(dict(build(rows, totals={"text@8": 3.0}).metrics))
    cell["task"] = {**cell["task"], "name": f"private-facts:fillers={fillers}"}
    cell["arms"]["kv"]["tokens_skipped"] = columns
    return cell


@pytest.mark.parametrize(("arm", "told"), [("kv", (1, "kv")), ("relay@3:text@32", (3, "text@32"))])
def test_an_arms_hops_are_those_of_its_name(arm: str, told: tuple[int, str]) -> None:
    assert hops_of(arm) == told


def test_what_is_handed_on_has_a_line_that_begins_with_one_hop(hops: dict[str, Any]) -> None:
    lines = hop_lines({"facts": hops})
    # Four bits were never handed on, so that there is no line to draw.
    assert list(lines) == ["kv"]
    assert [(at, of["mean"]) for at, of in lines["kv"]] == [(1, 1.0), (2, 0.75), (3, 0.5)]


def test_lengths_are_ordered_by_the_columns_brought(build: Callable[..., Any], hops: dict[str, Any]) -> None:
    cells = {"long": of_length(build, 20, 400.0), "hops": hops, "short": of_length(build, 2, 60.0)}
    assert [columns for columns, _ in length_cells(cells)] == [60.0, 400.0]


def test_the_receivers_part_leaves_out_the_senders_reading_and_the_answer() -> None:
    seconds = {"capture": 4.0, "transform": 0.5, "move": 0.25, "inject": 0.25, "first_token": 1.0, "answer": 2.0}
    assert receiver_seconds({"seconds": seconds | {"total": 8.0}}) == 2.0
    assert receiver_seconds({"seconds": dict.fromkeys([*seconds, "total"])}) is None


def test_cells_without_reading_or_that_failed_leave_gaps_and_no_error(build: Callable[..., Any]) -> None:
    cells = {
        "short": of_length(build, 2, 60.0),
        "long": of_length(build, 20, 400.0),
        "failed": of_length(build, 40, 1.0),
    }
    del cells["short"]["arms"]["full-text"]
    cells["failed"]["arms"]["kv"]["tokens_skipped"] = None
    assert [columns for columns, _ in length_cells(cells)] == [60.0, 400.0]
    assert has_curves(cells)
    assert "<svg" in curves_figure(cells)
    for cell in cells.values():
        cell["claims"] = {}
        cell["arms"].pop("full-text", None)
    assert "times as long" not in curves_figure(cells)


def test_a_sweep_without_hops_or_lengths_has_no_curves(build: Callable[..., Any], hops: dict[str, Any]) -> None:
    plain = build({"none": "0000", "kv": "1111", "kv-deranged": "0000"}).metrics
    assert not has_curves({"plain": plain})
    assert not has_curves({"one length": of_length(build, 2, 60.0)})
    assert has_curves({"plain": plain, "hops": hops})


def test_each_kind_of_curve_is_a_panel_and_the_same_cells_give_the_same_bytes(
    build: Callable[..., Any], hops: dict[str, Any]
) -> None:
    lengths = {"short": of_length(build, 2, 60.0), "long": of_length(build, 20, 400.0)}

    def panels(drawn: str) -> int:
        return drawn.count('id="curves-axes_')

    assert panels(curves_figure({"hops": hops})) == 1
    assert panels(curves_figure(lengths)) == 2
    drawn = curves_figure({"hops": hops} | lengths)
    assert panels(drawn) == 3
    assert drawn == curves_figure({"hops": hops} | lengths)
    longer = lengths | {"long": of_length(build, 20, 800.0)}
    assert drawn != curves_figure({"hops": hops} | longer)


def test_models_have_panels_of_their_own(build: Callable[..., Any], hops: dict[str, Any]) -> None:
    other = copy.deepcopy(hops) | {"model": {"name": "other"}}
    alone = curves_figure({"a/tiny/fake": hops})
    both = curves_figure({"a/tiny/fake": hops, "a/other/fake": other})
    width = lambda drawn: float(drawn.partition('width="')[2].partition("pt")[0])  # noqa: E731
    assert width(both) == 2 * width(alone)
