"""The founding claim as a figure: how much more accurate and how much faster a cache is than text, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unspoken.lab.drawing import COLOURS, FAINT, INK, MARKS, sheet, style, svg
from unspoken.lab.founding import ASKED, tells
from unspoken.lab.metrics import CLAIMED_GAIN, CLAIMED_SPEED

TITLE = "against (hollow: the sender knew the question; *: pilot; †: no content gain shown, counts for neither side)"
LEFT, ROW, HEAD = 0.27, 34, 118


def claims_figure(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw accuracy and time of the cache against each text arm, a line for each cell, with 95 % intervals.

    Args:
        cells: For each cell's name what its `metrics.json` holds.
    """
    shown = {key: of for key, of in cells.items() if of.get("claims")}
    arms = list(dict.fromkeys(arm for of in shown.values() for arm in of["claims"]))
    with style():
        figure = sheet(900, HEAD + ROW * len(shown))
        left, right = figure.subplots(1, 2, sharey=True)
        height = HEAD + ROW * len(shown)
        figure.subplots_adjust(left=LEFT, right=0.985, top=1 - 62 / height, bottom=48 / height, wspace=0.05)
        for row, of in enumerate(shown.values()):
            for axes, measure, scale in ((left, "accuracy_difference", 100.0), (right, "time_ratio", 1.0)):
                _row(axes, row, {arm: each[measure] for arm, each in of["claims"].items()}, arms, scale)
        _axes(left, "accuracy with the cache minus that with text, points", 100 * CLAIMED_GAIN)
        right.set_xscale("log", base=2)
        right.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _axes(right, "time with text / time with the cache", CLAIMED_SPEED)
        left.set_yticks(range(len(shown)), [_named(key, of) for key, of in shown.items()], fontsize=8)
        left.set_ylim(len(shown) - 0.5, -0.5)
        _legend(figure, arms)
        return svg(figure, "claims")


def _named(key: str, of: Mapping[str, Any]) -> str:
    """Return a cell's name in two lines: the task, and what it ran on."""
    task, _, on = key.partition("/")
    silent = "" if tells(of) else " †"
    return f"{task}{' *' if of['pilot'] else ''}{silent}\n{on.replace('/', ', ')}"


def _row(axes: Any, row: int, found: Mapping[str, Mapping[str, Any]], arms: Sequence[str], scale: float) -> None:
    axes.axhline(row + 0.5, color=FAINT, linewidth=0.8, zorder=0)
    for arm, of in found.items():
        if of.get("mean") is None:
            continue
        y = row + 0.66 * ((arms.index(arm) + 0.5) / len(arms) - 0.5)
        if of.get("low") is not None and of.get("high") is not None:
            ends = [scale * of["low"], scale * of["high"]]
            axes.plot(ends, [y, y], color=COLOURS["text"], linewidth=1.4, alpha=0.5, zorder=2)
        axes.plot([scale * of["mean"]], [y], zorder=3, **_mark(arm, arms))


def _mark(arm: str, arms: Sequence[str]) -> dict[str, Any]:
    # Messages written for the question are hollow.
    filled = "white" if arm.startswith(ASKED) else COLOURS["text"]
    return {
        "marker": MARKS[arms.index(arm) % len(MARKS)],
        "color": COLOURS["text"],
        "markerfacecolor": filled,
        "markersize": 5,
        "linestyle": "",
    }


def _axes(axes: Any, title: str, claimed: float) -> None:
    axes.axvline(claimed, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    beside = axes.get_xaxis_transform()
    axes.text(claimed, 1.0, f" claim: {claimed:g}", transform=beside, va="bottom", fontsize=8.5, color="#555555")
    axes.set_xlabel(title)
    axes.grid(axis="x")


def _legend(figure: Any, arms: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=arm, **_mark(arm, arms)) for arm in arms]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.0, 1.0), ncols=len(arms), handletextpad=0.1,
        columnspacing=1.4, title=TITLE, alignment="left",
    )  # fmt: skip
