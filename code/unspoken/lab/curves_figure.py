"""Curves: what hops and the length of the text do to each arm, for a sweep that varies them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from unspoken.lab.drawing import COLOURS, FAINT, INK, MARKS, sheet, style, svg
from unspoken.lab.relay import hops_of
from unspoken.lab.tables import family, model_name, rate

WIDTH, HEIGHT = 400, 360
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 2, 1, 2)))
LENGTH, SUBJECT, READING = "fillers=", "kv", "full-text"
READING_TIME = "reading, the receiver's part"

Line = list[tuple[float, Mapping[str, Any]]]


class Panel(NamedTuple):
    """One pair of axes: its title, lines by name, and what lays out the axes for the places on x."""

    title: str
    lines: Mapping[str, Line]
    lay_out: Callable[[Any, Sequence[float]], None]


def hop_lines(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Line]:
    """Return for each channel that is handed on over several hops its score by the number of hops.

    Args:
        cells: For each cell's name what its `metrics.json` holds; all of one model and engine.
    """
    lines: dict[str, Line] = {}
    for of in cells.values():
        handed_on = {hops_of(arm)[1] for arm in of["arms"] if hops_of(arm)[0] > 1}
        for arm, each in of["arms"].items():
            hops, channel = hops_of(arm)
            if channel in handed_on:
                lines.setdefault(channel, []).append((float(hops), rate(each)))
    return {channel: sorted(line, key=lambda at: at[0]) for channel, line in lines.items()}


def length_cells(cells: Mapping[str, Mapping[str, Any]]) -> list[tuple[float, Mapping[str, Any]]]:
    """Return the cells whose task sets the text's length, by the columns that `kv` brings along."""
    found = [(of["arms"][SUBJECT]["tokens_skipped"], of) for of in cells.values() if _sets_length(of)]
    return sorted(found, key=lambda each: each[0])


def receiver_seconds(arm: Mapping[str, Any]) -> float | None:
    """Return the receiver's mean seconds to its first token, once the sender is ready; None if none were timed."""
    seconds = arm["seconds"]
    if seconds["total"] is None:
        return None
    return float(seconds["total"] - seconds["answer"] - seconds["capture"])


def has_curves(cells: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether a sweep varies hops or the length of the text."""
    return bool(_panels(cells))


def curves_figure(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw score by hops, score by length and time by length, as far as a sweep has them, with 95 % intervals.

    Args:
        cells: For each cell's name what its `metrics.json` holds.
    """
    panels = _panels(cells)
    with style():
        figure = sheet(WIDTH * len(panels), HEIGHT, layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(axes, panel)
        return svg(figure, "curves")


def _sets_length(of: Mapping[str, Any]) -> bool:
    # Where it failed on every question, a text that is too long say, it brought no columns along.
    return LENGTH in of["task"]["name"] and of["arms"].get(SUBJECT, {}).get("tokens_skipped") is not None


def _panels(cells: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    """Return panels of each model and engine, which a line must not join with those of another."""
    on: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, of in cells.items():
        on.setdefault(f"{model_name(of['model'])}, {of['engine']}", {})[key] = of
    found = [(where, panel) for where, mine in on.items() for panel in _panels_of(mine)]
    if len({where for where, _ in found}) == 1:
        return [panel for _, panel in found]
    return [panel._replace(title=f"{where}: {panel.title}") for where, panel in found]


def _panels_of(cells: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    hops, lengths = hop_lines(cells), length_cells(cells)
    score = "score, % [95 % interval]"
    panels = []
    if hops:
        panels.append(Panel(score, _percent(hops), _by_hops))
    if len(lengths) > 1:
        panels.append(Panel(score, _percent(_scores(lengths)), _by_length))
        if times := _times(lengths):
            panels.append(Panel("times as long as kv takes", times, _times_by_length))
    return panels


def _percent(lines: Mapping[str, Line]) -> dict[str, Line]:
    def scaled(of: Mapping[str, Any]) -> dict[str, Any]:
        return {end: None if of.get(end) is None else 100 * of[end] for end in ("mean", "low", "high")}

    return {name: [(x, scaled(of)) for x, of in line] for name, line in lines.items()}


def _scores(lengths: Sequence[tuple[float, Mapping[str, Any]]]) -> dict[str, Line]:
    arms = dict.fromkeys(arm for _, of in lengths for arm in of["arms"])
    return {arm: [(x, rate(of["arms"][arm])) for x, of in lengths if arm in of["arms"]] for arm in arms}


def _times(lengths: Sequence[tuple[float, Mapping[str, Any]]]) -> dict[str, Line]:
    """Return how many times as long as `kv` text takes end to end, and reading for the receiver alone."""
    lines: dict[str, Line] = {}
    for x, of in lengths:
        for arm, claim in of["claims"].items():
            lines.setdefault(f"{arm}, end to end", []).append((x, claim["time_ratio"]))
        reading, taking_in = (
            receiver_seconds(of["arms"][arm]) if arm in of["arms"] else None for arm in (READING, SUBJECT)
        )
        if reading is not None and taking_in:
            lines.setdefault(READING_TIME, []).append((x, {"mean": reading / taking_in}))
    return lines


def _draw(axes: Any, panel: Panel) -> None:
    for at, (name, line) in enumerate(panel.lines.items()):
        known = [(x, of) for x, of in line if of.get("mean") is not None]
        # A colour for each kind of arm; lines of one kind, which may lie on each other, differ in mark and dash.
        colour = INK if name in (READING, READING_TIME) else COLOURS[family(name.partition(",")[0])]
        look = {"color": colour, "marker": MARKS[at % len(MARKS)], "linestyle": DASHES[at % len(DASHES)]}
        axes.plot(
            [x for x, _ in known], [of["mean"] for _, of in known], markersize=5, linewidth=1.3, label=name, **look
        )
        for x, of in known:
            if of.get("low") is not None and of.get("high") is not None:
                axes.plot([x, x], [of["low"], of["high"]], color=colour, linewidth=1.6, alpha=0.3, zorder=1)
    panel.lay_out(axes, sorted({x for line in panel.lines.values() for x, _ in line}))
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.grid(axis="y", color=FAINT)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, ncols=2)


def _by_hops(axes: Any, places: Sequence[float]) -> None:
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_xlabel("hops")
    axes.set_ylim(0, 100)


def _by_length(axes: Any, places: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,.0f}" for place in places])
    axes.minorticks_off()
    axes.set_xlabel("columns of the text, logarithmic")
    axes.set_ylim(0, 100)


def _times_by_length(axes: Any, places: Sequence[float]) -> None:
    _by_length(axes, places)
    axes.set_ylim(auto=True)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axhline(1, color=INK, linewidth=0.8)
