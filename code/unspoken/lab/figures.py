"""Figures as SVG text: drawn without global state, the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unspoken.lab.drawing import COLOURS, INK, byte_axis, byte_places, dot, drawing, label, legend, style, svg
from unspoken.lab.tables import judged_by, model_name, ordered, percent, rate, seconds

STAGES = {
    "capture": ("sender reads", "#56B4E9"),
    "transform": ("message is made", "#0072B2"),
    "move": ("bytes travel", "#CC79A7"),
    "inject": ("receiver takes it in", "#009E73"),
    "first_token": ("question read, first word", "#E69F00"),
    "answer": ("rest of the answer", "#9A9A9A"),
}
ALWAYS_SHOWN = ("capture", "transform", "inject", "first_token", "answer")


def accuracy(metrics: Mapping[str, Any]) -> str:
    """Draw accuracy by arm with 95 % intervals, the chance line and the skyline's band."""
    return _accuracy(metrics, "accuracy", 860, max(300, 100 + 27 * len(metrics["arms"])))


def readme(metrics: Mapping[str, Any]) -> str:
    """Draw the README's figure: accuracy by arm, compact."""
    return _accuracy(metrics, "readme", 800, max(360, 108 + 21 * len(metrics["arms"])), alone=True)


def bytes_against_accuracy(metrics: Mapping[str, Any]) -> str:
    """Draw bytes moved, on a logarithmic axis, against accuracy with 95 % intervals."""
    arms = [arm for arm in ordered(tuple(metrics["arms"])) if metrics["arms"][arm].get("bytes") is not None]
    with style():
        figure, axes = drawing(860, 470)
        figure.subplots_adjust(left=0.075, right=0.985, top=0.93, bottom=0.13)
        zero, places = byte_places({arm: metrics["arms"][arm]["bytes"] for arm in arms})
        byte_axis(axes, zero, places)
        for arm in arms:
            dot(axes, arm, rate(metrics["arms"][arm]), places[arm])
        axes.set_ylim(-3, 103)
        axes.set_ylabel(judged_by(metrics))
        axes.grid(axis="y")
        legend(axes, arms, loc="lower left", bbox_to_anchor=(0, 0.995))
        label(figure, axes, {arm: (places[arm], rate(metrics["arms"][arm])) for arm in arms})
        return svg(figure, "bytes")


def seconds_by_stage(metrics: Mapping[str, Any]) -> str | None:
    """Draw seconds by stage as stacked bars; None if no item was timed."""
    found = {arm: of.get("seconds") or {} for arm, of in metrics["arms"].items()}
    timed = [arm for arm in ordered(tuple(found)) if any(found[arm].get(stage) is not None for stage in STAGES)]
    if not timed:
        return None
    shown = [each for each in STAGES if each in ALWAYS_SHOWN or any(found[arm].get(each) for arm in timed)]
    with style():
        figure, axes = drawing(860, max(240, 110 + 25 * len(timed)), layout="constrained")
        ends = [0.0] * len(timed)
        for stage in shown:
            title, colour = STAGES[stage]
            widths = [found[arm].get(stage) or 0.0 for arm in timed]
            axes.barh(range(len(timed)), widths, left=ends, height=0.62, color=colour, label=title)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
        for at, end in enumerate(ends):
            axes.annotate(seconds(end), (end, at), (5, 0), textcoords="offset points", va="center", fontsize=8.5)
        _arms_down(axes, timed)
        axes.set_xlim(0, 1.09 * max(max(ends), 1e-9))
        axes.set_xlabel("seconds, mean of the items run alone")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, columnspacing=1.4, handlelength=1.0)
        return svg(figure, "seconds")


def _accuracy(metrics: Mapping[str, Any], name: str, width: int, height: int, alone: bool = False) -> str:
    arms = ordered(tuple(metrics["arms"]))
    with style():
        figure, axes = drawing(width, height, layout="constrained")
        if alone:
            figure.suptitle("Right answers by what the receiver was given", x=0.008, ha="left", fontweight="bold")
        skyline = rate(metrics["arms"]["full-text"]) if "full-text" in metrics["arms"] else None
        chance = (metrics.get("task") or {}).get("chance")
        if skyline is not None and skyline.get("low") is not None:
            _skyline(axes, skyline, chance)
        if chance is not None:
            axes.axvline(100 * chance, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            _above(axes, 100 * chance, f"chance {percent(chance)} %", "right" if chance > 0.1 else "left")
        for at, arm in enumerate(arms):
            of = rate(metrics["arms"][arm])
            dot(axes, arm, of, at, across=True)
            axes.text(1.015, at, f"{percent(of['mean'])} %", transform=axes.get_yaxis_transform(), va="center")
        _arms_down(axes, arms)
        axes.set_xlim(-1, 101)
        axes.set_xlabel(f"{judged_by(metrics)} (line: 95 % interval){_source(metrics) if alone else ''}")
        legend(axes, arms, loc="upper center", bbox_to_anchor=(0.5, -60 / height))
        return svg(figure, name)


def _source(metrics: Mapping[str, Any]) -> str:
    """Say where the figures are from, for a figure that stands by itself."""
    questions = f"{metrics.get('items', '?')} questions{' (pilot)' if metrics.get('pilot') else ''}"
    named = [(metrics.get("task") or {}).get("name"), questions, model_name(metrics.get("model"))]
    return "; " + ", ".join(each for each in named if each)


def _skyline(axes: Any, skyline: Mapping[str, Any], chance: float | None) -> None:
    low, high = 100 * skyline["low"], 100 * skyline["high"]
    axes.axvspan(low, max(high, low + 0.4), color=COLOURS["text"], alpha=0.11, linewidth=0, zorder=0)
    # To the right of the chance line's own label, wherever the band is.
    start = low if chance is None else max(low, 100 * chance + 1)
    _above(axes, min(start, 70.0), "reading the whole text", "left")


def _above(axes: Any, x: float, text: str, align: str) -> None:
    beside = axes.get_xaxis_transform()
    axes.text(x, 1.012, text, transform=beside, ha=align, va="bottom", fontsize=8.5, color="#555555")


def _arms_down(axes: Any, arms: Sequence[str]) -> None:
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.grid(axis="x")
