"""Figures of a study of recognition, as SVG text: the same bytes for the same figures."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from unspoken.identity.metrics import Floats, det_points, eer
from unspoken.lab.drawing import COLOURS, GROUND, INK, LEADER, MARKERS, Box, drawing, free_place, style, svg
from unspoken.lab.recognition.scores import Scores
from unspoken.lab.recognition.tables import CHANCE, Kind, error_rate, kind_of, mark
from unspoken.lab.tables import Family

# Okabe and Ito's palette without yellow, which is lost on white, and with grey; dashes say the same again.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#767676")
DASHES: tuple[Any, ...] = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
SIGNS = ("o", "s", "^", "D", "v", "P", "X", "*")
FAMILY: dict[Kind, Family] = {"told": "content", "handed": "text", "null": "control"}
TICKS = (0.0001, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
PERCENT = (0, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 50)
BINS = 60
NAME_HEIGHT = 12.0
# Of agents' dots, in turn, and of their names.
DEPTHS, NAME_DEPTH = (0.42, 0.55, 0.32), 0.28
# Pixels between a name and its dots beyond which a line joins them.
FAR = 22


def det(found: Mapping[str, Scores], name: str = "det") -> str:
    """Draw the DET curves of several conditions in one plot, with the line on which both errors are the same.

    Curves of scores that separate perfectly lie infinitely far out; the legend says so in their place.

    Args:
        found: Scores by condition.
        name: What the figure's ids begin with.
    """
    curves = {each: scores.trials() for each, scores in found.items()}
    points = {each: det_points(trials.scores, trials.target) for each, trials in curves.items()}
    with style():
        figure, axes = drawing(860, 540)
        figure.subplots_adjust(left=0.08, right=0.64, top=0.97, bottom=0.1)
        low = _normal_axes(axes, np.concatenate([part for each in points.values() for part in (each.miss,
                           each.false_alarm)] or [np.zeros(0)]))  # fmt: skip
        axes.plot([low, 1], [low, 1], color="#B0B0B0", linewidth=1, zorder=1)
        axes.text(low + 0.06, low + 0.1, "both errors the same", fontsize=8, color="#555555", rotation=45,
                  rotation_mode="anchor")  # fmt: skip
        for at, (each, trials) in enumerate(curves.items()):
            rate, colour = eer(trials.scores, trials.target), PALETTE[at % len(PALETTE)]
            drawn = points[each].miss.size > 0
            label = f"{each}: EER {error_rate(rate)} %" if drawn else f"{each}: {_without(rate, trials.targets)}"
            line = {"color": colour, "linestyle": _dash(at) if drawn else "none", "linewidth": 1.7, "zorder": 3}
            axes.plot(points[each].false_alarm, points[each].miss, label=label, gid=f"curve-{at}", **line)
            if drawn and 0 < rate < 1:
                both = NormalDist().inv_cdf(rate)
                axes.plot([both], [both], "o", color=colour, markersize=5.5, markeredgecolor="white", zorder=4)
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), handlelength=3.2, labelspacing=0.7, borderaxespad=0)
        return svg(figure, name)


def eer_bars(metrics: Mapping[str, Any]) -> str:
    """Draw the equal error rate of every condition and control with its interval, family by family."""
    conditions, nulls = metrics.get("conditions", {}), metrics.get("nulls", {})
    groups: dict[str, list[tuple[str, Mapping[str, Any], Kind]]] = {}
    titles: dict[Kind, str] = {"told": "how the agent was told, what it did", "handed": "what was done to its cache"}
    for kind, title in titles.items():
        groups[title] = [(name, of, kind) for name, of in conditions.items() if kind_of(name) == kind]
    groups["controls: nothing to see"] = [(name, of, "null") for name, of in nulls.items()]
    return _families(groups, "eer")


def against_baselines(metrics: Mapping[str, Any]) -> str:
    """Draw this signature beside other ways to look at the same trials, condition by condition."""
    others: Mapping[str, Mapping[str, Any]] = metrics.get("baselines", {})
    groups: dict[str, list[tuple[str, Mapping[str, Any], Kind]]] = {}
    for name, ours in metrics.get("conditions", {}).items():
        found = [(other, of[name]) for other, of in others.items() if name in of]
        if found:
            groups[name] = [("this signature", ours, "told"), *((other, of, "null") for other, of in found)]
    return _families(groups, "baselines")


def by_layer(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Draw the equal error rate of single layers.

    Args:
        found: For each condition, rates by part of the cache: `values`, `keys`.
    """
    with style():
        figure, axes = drawing(860, 380, layout="constrained")
        colours = {part: PALETTE[at] for at, part in enumerate(dict.fromkeys(part for of in found.values()
                   for part in of))}  # fmt: skip
        for at, (condition, of) in enumerate(found.items()):
            line: dict[str, Any] = {"linestyle": DASHES[at % len(DASHES)], "marker": SIGNS[at % len(SIGNS)]}
            for part, rates in of.items():
                line |= {"color": colours[part], "label": f"{part}, {condition}", "gid": f"line-{len(axes.lines)}"}
                axes.plot(range(len(rates)), 100 * np.asarray(rates), markersize=4, **line)
        _chance_across(axes)
        axes.set_xlabel("layer")
        _rates_up(axes, 55.0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, handlelength=3.0)
        return svg(figure, "layers")


def by_enrolment(found: Mapping[str, Mapping[str, float]]) -> str:
    """Draw the equal error rate by the number of texts an agent was enrolled with, one line for each condition.

    Args:
        found: For each number of texts, rates by condition.
    """
    counts = sorted(found, key=int)
    names = list(dict.fromkeys(name for count in counts for name in found[count]))
    with style():
        figure, axes = drawing(860, 380, layout="constrained")
        for at, name in enumerate(names):
            known = [count for count in counts if name in found[count]]
            line = {"color": PALETTE[at % len(PALETTE)], "linestyle": _dash(at), "marker": SIGNS[at % len(SIGNS)]}
            rates = [100 * found[count][name] for count in known]
            axes.plot([int(count) for count in known], rates, label=name, markersize=5, gid=f"line-{at}", **line)
        axes.set_xticks([int(count) for count in counts])
        axes.set_xlabel("texts an agent was enrolled with")
        _rates_up(axes, 1.1 * max([0.9, *(100 * rate for of in found.values() for rate in of.values())]))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.2)
        return svg(figure, "enrolment")


def map_of_agents(found: Mapping[str, Any]) -> str:
    """Draw signatures on a plane, coloured by agent, with each agent's name beside the middle of its own.

    Args:
        found: `points` as pairs, `agent` as an index into `names` and `condition` as a name for each point.
    """
    points, agent = np.asarray(found["points"], dtype=np.float64).reshape(-1, 2), np.asarray(found["agent"])
    conditions = list(dict.fromkeys(found["condition"]))
    kind = np.array([conditions.index(each) for each in found["condition"]], dtype=np.int64)
    with style():
        figure, axes = drawing(860, 700)
        figure.subplots_adjust(left=0.015, right=0.985, top=0.945, bottom=0.015)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        axes.margins(0.07)
        for whose in range(len(found["names"])):
            for at in range(len(conditions)):
                x, y = points[(agent == whose) & (kind == at)].T
                look = {"color": _hue(whose, DEPTHS[whose % 3]), "markeredgewidth": 0, "alpha": 0.75}
                axes.plot(x, y, SIGNS[at % len(SIGNS)], markersize=4.2, **look)
        handles = [_sign(at, each) for at, each in enumerate(conditions)]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=8, handletextpad=0.1)
        _names(figure, axes, found["names"], points, agent)
        return svg(figure, "map")


def score_histogram(scores: Scores) -> str:
    """Draw how often trials of the same agent and of other agents get which score."""
    trials = scores.trials()
    kinds = {"other agents": (~trials.target, "#767676"), "the same agent": (trials.target, PALETTE[0])}
    # A few far away would leave the rest few bins.
    ends = np.array([np.quantile(trials.scores[chosen], [0.002, 0.998]) for chosen, _ in kinds.values()])
    edges = np.linspace(ends.min(), max(ends.max(), ends.min() + 1e-6), BINS + 1)
    within = np.clip(trials.scores, edges[0], edges[-1])
    with style():
        figure, axes = drawing(860, 320, layout="constrained")
        for title, (chosen, colour) in kinds.items():
            counts, _edges = np.histogram(within[chosen], edges)
            axes.stairs(100 * counts / chosen.sum(), edges, color=colour, fill=True, alpha=0.35)
            axes.stairs(100 * counts / chosen.sum(), edges, color=colour, linewidth=1.4,
                        label=f"{title}, {int(chosen.sum()):,} trials")  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlabel("log-likelihood ratio: right of 0, the cache is more likely the agent's")
        axes.set_ylabel("of these trials, %")
        axes.grid(axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2)
        return svg(figure, "histogram")


def _normal_axes(axes: Any, reached: Floats) -> float:
    """Make both axes normal deviates with ticks in per cent; return where they begin."""
    deviate = NormalDist().inv_cdf
    least = float(reached.min()) if reached.size else deviate(TICKS[1])
    first = max((tick for tick in TICKS[:3] if deviate(tick) <= least), default=TICKS[0])
    ticks = [tick for tick in TICKS if tick >= first]
    places, labels = [deviate(tick) for tick in ticks], [f"{100 * tick:g}" for tick in ticks]
    axes.set_xticks(places, labels)
    axes.set_yticks(places, labels)
    axes.set_xlim(places[0] - 0.04, places[-1] + 0.04)
    axes.set_ylim(places[0] - 0.04, places[-1] + 0.04)
    axes.grid()
    axes.set_xlabel("false alarms: another's cache taken for the agent's, %")
    axes.set_ylabel("misses: the agent's own cache not recognised, %")
    return places[0]


def _without(rate: float, targets: int) -> str:
    """Say why a condition has no curve."""
    return f"no error in {targets:,}" if rate == 0 else f"EER {error_rate(rate)} %, no curve"


def _families(groups: Mapping[str, Sequence[tuple[str, Mapping[str, Any], Kind]]], name: str) -> str:
    groups = {title: rows for title, rows in groups.items() if rows}
    count = sum(len(rows) + 1.35 for rows in groups.values())
    with style():
        figure, axes = drawing(860, int(90 + 21 * count), layout="constrained")
        axes.set_xscale("function", functions=(_root, _square))
        labels: dict[float, str] = {}
        y = 0.0
        for title, rows in groups.items():
            heading = {"ha": "right", "va": "center", "fontweight": "bold", "fontsize": 8.5}
            axes.text(-0.005, y, title, transform=axes.get_yaxis_transform(), **heading)
            for at, (row, of, kind) in enumerate(rows, start=1):
                labels[y + at] = row
                _rate(axes, of, kind, y + at, f"rate-{len(labels)}")
            y += len(rows) + 1.35
        axes.set_yticks(list(labels), list(labels.values()))
        axes.set_ylim(y - 0.6, -0.8)
        highest = max([55.0, *(100 * (of.get("high") or of["eer"]) for rows in groups.values() for _, of, _ in rows)])
        axes.set_xlim(0, highest)
        axes.set_xticks(PERCENT, [f"{each:g}" for each in PERCENT])
        axes.grid(axis="x")
        axes.axvline(100 * CHANCE, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.text(100 * CHANCE, 1.0, "chance", transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                  fontsize=8.5, color="#555555")  # fmt: skip
        axes.set_xlabel("equal error rate, % (line: 95 % interval; the axis is stretched towards 0)")
        return svg(figure, name)


def _rate(axes: Any, of: Mapping[str, Any], kind: Kind, y: float, gid: str) -> None:
    """Draw one rate with its interval, and write it at the right; its mark has an id of its own."""
    family = FAMILY[kind]
    colour, low, high = COLOURS[family], of.get("low"), of.get("high")
    if low is not None and high is not None:
        axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2, alpha=0.55, zorder=2, clip_on=False)
    axes.plot([100 * of["eer"]], [y], MARKERS[family], color=colour, markersize=6.5, markeredgecolor="white", zorder=3,
              clip_on=False, gid=gid)  # fmt: skip
    text = f"{error_rate(of['eer'])} %{mark(of)}"
    axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)


def _root(values: Floats) -> Floats:
    """Return square roots, mirrored below 0: margins of an axis reach there."""
    found: Floats = np.sign(values) * np.sqrt(np.abs(values))
    return found


def _square(values: Floats) -> Floats:
    """Return what `_root` gives back."""
    found: Floats = values * np.abs(values)
    return found


def _dash(at: int) -> Any:
    """Return the dashes of a line: together with its colour, none of the first 32 lines is like another."""
    return DASHES[(at + at // len(PALETTE)) % len(DASHES)]


def _chance_across(axes: Any) -> None:
    axes.axhline(100 * CHANCE, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.text(0.995, 100 * CHANCE + 0.7, "chance", transform=axes.get_yaxis_transform(), ha="right", fontsize=8.5,
              color="#555555")  # fmt: skip


def _rates_up(axes: Any, most: float) -> None:
    axes.set_ylim(-0.02 * most, most)
    axes.set_ylabel("equal error rate, %")
    axes.grid(axis="y")


def _hue(at: int, depth: float) -> tuple[float, float, float]:
    """Return a colour for each of many agents, hues a golden section apart: depth 0 is black, 1 white."""
    return colorsys.hls_to_rgb(at * (math.sqrt(5) - 1) / 2 % 1, depth, 0.62)


def _sign(at: int, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=SIGNS[at % len(SIGNS)], color="#555555", markersize=5, label=label)


def _names(figure: Any, axes: Any, names: Sequence[str], points: Floats, agent: Any) -> None:
    """Write names beside the middle of their dots, where they cover neither a name nor a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Limits are otherwise found while drawing, and places would be measured before.
    axes.autoscale_view()
    canvas: Any = FigureCanvasAgg(figure)
    measuring = canvas.get_renderer()
    frame = Box(*map(float, axes.get_window_extent(measuring).extents))
    middles = dict(_middles(axes, points, agent, len(names)))
    taken = [Box(x - 3, y - 3, x + 3, y + 3) for x, y in axes.transData.transform(points).tolist()]
    for at in sorted(middles, key=lambda each: middles[each][::-1]):
        where = {"xycoords": "figure pixels", "ha": "center", "va": "center", "bbox": GROUND, "zorder": 6}
        text = axes.annotate(names[at], (0, 0), fontsize=8.5, color=_hue(at, NAME_DEPTH), **where)
        x, y = middles[at]
        width = float(text.get_window_extent(measuring).width) + 4
        box = free_place(x, y, width, NAME_HEIGHT, frame, taken)
        text.set_position(((box.left + box.right) / 2, (box.bottom + box.top) / 2))
        taken.append(box)
        edge = min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)
        if math.dist(edge, (x, y)) > FAR:
            axes.annotate("", (x, y), edge, "figure pixels", "figure pixels", LEADER, zorder=5)


def _middles(axes: Any, points: Floats, agent: Any, count: int) -> Iterator[tuple[int, tuple[float, float]]]:
    """Yield where the middle of each agent's dots is drawn; the median, which a stray dot does not move."""
    for at in range(count):
        mine = points[agent == at]
        if len(mine):
            x, y = axes.transData.transform(np.median(mine, axis=0)).tolist()
            yield at, (float(x), float(y))
