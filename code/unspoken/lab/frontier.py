"""The frontier: what an arm reaches against the bytes it moves, for one run or several side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unspoken.channels.names import parse_channel
from unspoken.errors import UsageError
from unspoken.lab.drawing import COLOURS, byte_places, decade, dot, label, legend, sheet, style, svg
from unspoken.lab.relay import is_relay
from unspoken.lab.tables import family, judged_by, ordered, rate

LEAST_SIZES = 3
COLUMNS = 2
PANEL_WIDTH, PANEL_HEIGHT, LEGEND_HEIGHT = 620, 500, 40
LEVELS = {"none": "only the question", "full-text": "reading the whole text"}


def has_frontier(metrics: Mapping[str, Any]) -> bool:
    """Tell whether a run has cache arms of at least three different sizes."""
    sizes = {metrics["arms"][arm].get("bytes") for arm in _once(metrics) if family(arm) == "content"}
    return len(sizes - {None}) >= LEAST_SIZES


def frontier(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw score against bytes moved, on a logarithmic axis, with 95 % intervals; one panel for each run.

    Arms of one channel are joined by a line; level lines show what is reached without anything and with the text.

    Args:
        cells: Metrics of runs by the title of their panel.
    """
    columns = min(COLUMNS, len(cells))
    lines = math.ceil(len(cells) / columns)
    width, height = columns * PANEL_WIDTH + 20, lines * PANEL_HEIGHT + LEGEND_HEIGHT
    with style():
        figure = sheet(width, height)
        grid = figure.subplots(lines, columns, squeeze=False)
        figure.subplots_adjust(
            left=65 / width, right=1 - 15 / width, bottom=50 / height, top=1 - (LEGEND_HEIGHT + 30) / height,
            wspace=0.14, hspace=0.22,
        )  # fmt: skip
        panels = [axes for row in grid for axes in row]
        for axes in panels[len(cells) :]:
            axes.set_axis_off()
        for axes, (title, metrics) in zip(panels, cells.items(), strict=False):
            _panel(figure, axes, title, metrics)
        every = [arm for metrics in cells.values() for arm in metrics["arms"]]
        where = {"bbox_to_anchor": (0.01, 1 - 6 / height), "bbox_transform": figure.transFigure, "loc": "upper left"}
        legend(panels[0], every, **where)
        return svg(figure, "frontier")


def _panel(figure: Any, axes: Any, title: str, metrics: Mapping[str, Any]) -> None:
    found = metrics["arms"]
    arms = [arm for arm in ordered(_once(metrics)) if arm not in LEVELS and found[arm].get("bytes")]
    _, places = byte_places({arm: found[arm]["bytes"] for arm in arms})
    _axis(axes, places)
    axes.set_ylim(*_heights([rate(of) for of in found.values()]))
    axes.set_ylabel(judged_by(metrics))
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axes.grid(axis="y")
    for arm in (each for each in LEVELS if each in found):
        _level(axes, arm, rate(found[arm]))
    for joined in _joined(arms, found):
        xs, ys = [places[arm] for arm in joined], [100 * (rate(found[arm])["mean"] or 0.0) for arm in joined]
        axes.plot(xs, ys, color=COLOURS[family(joined[0])], linewidth=1, alpha=0.35, zorder=1)
    for arm in arms:
        dot(axes, arm, rate(found[arm]), places[arm])
    label(figure, axes, {arm: (places[arm], rate(found[arm])) for arm in arms})


def _once(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the arms that hand over once: the bytes of several hops are no one's message."""
    return tuple(arm for arm in metrics["arms"] if not is_relay(arm))


def _heights(reached: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the ends of an axis in per cent that shows every interval, and room above for labels."""
    highest = 100 * max((of["high"] or of["mean"] or 0.0 for of in reached), default=1.0)
    top = min(100.0, 10 * math.ceil(1.1 * highest / 10))
    return -0.03 * top, 1.03 * top


def _axis(axes: Any, places: Mapping[str, float]) -> None:
    """Make x the logarithm of bytes, from the smallest message to the largest: nothing without bytes stands here."""
    first, last = min(places.values(), default=0.0) - 0.35, max(places.values(), default=1.0) + 0.5
    axes.set_xlim(first, last)
    decades = range(math.ceil(first), math.floor(last) + 1)
    axes.set_xticks(list(decades), [decade(power) for power in decades])
    axes.set_xlabel("bytes moved, logarithmic (equal sizes stand side by side)")


def _level(axes: Any, arm: str, reached: Mapping[str, Any]) -> None:
    if reached["mean"] is None:
        return
    kind = family(arm)
    axes.axhline(100 * reached["mean"], color=COLOURS[kind], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    beside = axes.get_yaxis_transform()
    axes.text(
        0.005, 100 * reached["mean"], f"{arm}: {LEVELS[arm]}", transform=beside, ha="left", va="bottom", fontsize=7.5,
        color=COLOURS[kind],
    )  # fmt: skip


def _joined(arms: Sequence[str], found: Mapping[str, Any]) -> list[list[str]]:
    """Return the arms that are one channel with different amounts, each group from few bytes to many."""
    groups: dict[str, list[str]] = {}
    for arm in arms:
        try:
            name, options = parse_channel(arm)
        except UsageError:
            continue
        if "amount" in options:
            fixed = sorted((key, value) for key, value in options.items() if key != "amount")
            groups.setdefault(f"{name} {fixed}", []).append(arm)
    return [sorted(group, key=lambda arm: found[arm]["bytes"]) for group in groups.values() if len(group) > 1]
