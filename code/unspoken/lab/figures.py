"""Figures as SVG text: drawn without global state, the same bytes for the same figures."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from unspoken.lab.tables import FAMILIES, Family, Number, family, model_name, ordered, percent, seconds, size

# Okabe and Ito's palette, told apart with any kind of colour vision; shapes say the same again.
COLOURS: dict[Family, str] = {"text": "#D55E00", "content": "#0072B2", "control": "#767676"}
MARKERS: dict[Family, str] = {"text": "s", "content": "o", "control": "D"}
STAGES = {
    "capture": ("sender reads", "#56B4E9"),
    "transform": ("message is made", "#0072B2"),
    "move": ("bytes travel", "#CC79A7"),
    "inject": ("receiver takes it in", "#009E73"),
    "first_token": ("question read, first word", "#E69F00"),
    "answer": ("rest of the answer", "#9A9A9A"),
}
ALWAYS_SHOWN = ("capture", "transform", "inject", "first_token", "answer")
INK, FAINT = "#222222", "#E4E4E4"
STYLE: Any = {
    "svg.hashsalt": "unspoken",
    "svg.fonttype": "path",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": "#8A8A8A",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}
GROUND = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.6}
LEADER = {"arrowstyle": "-", "color": "#B0B0B0", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
PIXELS_PER_INCH = 96
ZERO_GAP = 0.9
DODGE = 0.1


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Tell whether two rectangles overlap."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.top <= other.bottom or other.top <= self.bottom)

    def within(self, other: Box) -> bool:
        """Tell whether this rectangle lies inside another."""
        wide = other.left <= self.left and self.right <= other.right
        return wide and other.bottom <= self.bottom and self.top <= other.top


def accuracy(metrics: Mapping[str, Any]) -> str:
    """Draw accuracy by arm with 95 % intervals, the chance line and the skyline's band."""
    return _accuracy(metrics, "accuracy", 860, max(300, 100 + 27 * len(metrics["arms"])))


def readme(metrics: Mapping[str, Any]) -> str:
    """Draw the README's figure: accuracy by arm, compact."""
    return _accuracy(metrics, "readme", 800, max(360, 108 + 21 * len(metrics["arms"])), alone=True)


def bytes_against_accuracy(metrics: Mapping[str, Any]) -> str:
    """Draw bytes moved, on a logarithmic axis, against accuracy with 95 % intervals."""
    arms = [arm for arm in ordered(tuple(metrics["arms"])) if metrics["arms"][arm].get("bytes") is not None]
    with _style():
        figure, axes = _drawing(860, 470)
        figure.subplots_adjust(left=0.075, right=0.985, top=0.93, bottom=0.13)
        zero, places = _byte_places({arm: metrics["arms"][arm]["bytes"] for arm in arms})
        _byte_axis(axes, zero, places)
        for arm in arms:
            _dot(axes, arm, metrics["arms"][arm], places[arm])
        axes.set_ylim(-3, 103)
        axes.set_ylabel("right answers, %")
        axes.grid(axis="y")
        _legend(axes, arms, loc="lower left", bbox_to_anchor=(0, 0.995))
        _label(figure, axes, {arm: (places[arm], metrics["arms"][arm]) for arm in arms})
        return _svg(figure, "bytes")


def seconds_by_stage(metrics: Mapping[str, Any]) -> str | None:
    """Draw seconds by stage as stacked bars; None if no item was timed."""
    found = {arm: of.get("seconds") or {} for arm, of in metrics["arms"].items()}
    timed = [arm for arm in ordered(tuple(found)) if any(found[arm].get(stage) is not None for stage in STAGES)]
    if not timed:
        return None
    shown = [each for each in STAGES if each in ALWAYS_SHOWN or any(found[arm].get(each) for arm in timed)]
    with _style():
        figure, axes = _drawing(860, max(240, 110 + 25 * len(timed)), layout="constrained")
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
        return _svg(figure, "seconds")


def _accuracy(metrics: Mapping[str, Any], name: str, width: int, height: int, alone: bool = False) -> str:
    arms = ordered(tuple(metrics["arms"]))
    with _style():
        figure, axes = _drawing(width, height, layout="constrained")
        if alone:
            figure.suptitle("Right answers by what the receiver was given", x=0.008, ha="left", fontweight="bold")
        skyline = metrics["arms"].get("full-text")
        chance = (metrics.get("task") or {}).get("chance")
        if skyline is not None and skyline.get("low") is not None:
            _skyline(axes, skyline, chance)
        if chance is not None:
            axes.axvline(100 * chance, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            _above(axes, 100 * chance, f"chance {percent(chance)} %", "right" if chance > 0.1 else "left")
        for at, arm in enumerate(arms):
            of = metrics["arms"][arm]
            _dot(axes, arm, of, at, across=True)
            axes.text(1.015, at, f"{percent(of['accuracy'])} %", transform=axes.get_yaxis_transform(), va="center")
        _arms_down(axes, arms)
        axes.set_xlim(-1, 101)
        axes.set_xlabel(f"right answers, % (line: 95 % interval){_source(metrics) if alone else ''}")
        _legend(axes, arms, loc="upper center", bbox_to_anchor=(0.5, -60 / height))
        return _svg(figure, name)


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


def _dot(axes: Any, arm: str, of: Mapping[str, Any], at: Number, across: bool = False) -> None:
    """Draw one arm's accuracy with its interval, along x or along y."""
    kind = family(arm)
    mean, low, high = (None if of.get(key) is None else 100 * of[key] for key in ("accuracy", "low", "high"))
    if mean is None:
        return
    if low is not None and high is not None:
        ends, fixed = [low, high], [at, at]
        axes.plot(*((ends, fixed) if across else (fixed, ends)), color=COLOURS[kind], linewidth=2, alpha=0.55, zorder=2)
    place = ([mean], [at]) if across else ([at], [mean])
    size_of = 7.5 if MARKERS[kind] == "o" else 6.2
    axes.plot(*place, MARKERS[kind], color=COLOURS[kind], markersize=size_of, markeredgecolor="white", zorder=3)


def _legend(axes: Any, arms: Sequence[str], **where: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=MARKERS[kind], color=COLOURS[kind], label=label)
        for kind, label in FAMILIES.items()
        if kind in {family(arm) for arm in arms}
    ]
    axes.legend(handles=handles, ncols=len(handles), handletextpad=0.1, columnspacing=1.6, borderaxespad=0.2, **where)


def _byte_places(sizes: Mapping[str, Number]) -> tuple[float, dict[str, float]]:
    """Return where zero bytes stand left of the logarithmic axis, and each arm's x; equal sizes stand side by side."""
    logs = {arm: math.log10(count) for arm, count in sizes.items() if count > 0}
    zero = math.floor(min(logs.values(), default=1.0)) - ZERO_GAP
    at = {arm: logs.get(arm, zero) for arm in sizes}
    places = {}
    for arm, x in at.items():
        near = [other for other in at if abs(at[other] - x) < DODGE / 2]
        places[arm] = x + DODGE * (near.index(arm) - (len(near) - 1) / 2)
    return zero, places


def _byte_axis(axes: Any, zero: float, places: Mapping[str, float]) -> None:
    first, last = math.ceil(zero), max(math.ceil(max(places.values(), default=1.0)), math.ceil(zero) + 1)
    axes.set_xlim(zero - 0.75, last + 0.6)
    axes.set_xticks([zero, *range(first, last + 1)], ["0 B", *map(_decade, range(first, last + 1))])
    axes.axvline(zero + ZERO_GAP / 2 + 0.1, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes.set_xlabel("bytes moved from sender to receiver, logarithmic (equal sizes stand side by side)")


def _decade(power: int) -> str:
    return size(10.0**power).replace(".00", "").replace(".0", "")


def _label(figure: Any, axes: Any, dots: Mapping[str, tuple[float, Mapping[str, Any]]]) -> None:
    """Write each arm's name beside its dot, where it covers neither a dot, nor an interval, nor a name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    measuring = canvas.get_renderer()
    frame = Box(*map(float, axes.get_window_extent(measuring).extents))
    dots = {arm: (x, of) for arm, (x, of) in dots.items() if of.get("accuracy") is not None}
    centres = {arm: axes.transData.transform((x, 100 * of["accuracy"])) for arm, (x, of) in dots.items()}
    taken = [_ground(axes, x, of) for x, of in dots.values()]
    for arm in sorted(dots, key=lambda each: (centres[each][1], centres[each][0])):
        text = axes.annotate(arm, (0, 0), xycoords="figure pixels", fontsize=8.5, ha="center", va="center", bbox=GROUND)
        extent = text.get_window_extent(measuring)
        x, y = map(float, centres[arm])
        box = _free(x, y, float(extent.width) + 4, float(extent.height) + 2, frame, taken)
        middle = (box.left + box.right) / 2, (box.bottom + box.top) / 2
        text.set_position(middle)
        taken.append(box)
        edge = min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)
        if math.dist(edge, (x, y)) > 12:
            axes.annotate("", (x, y), edge, "figure pixels", "figure pixels", LEADER, zorder=1)


def _ground(axes: Any, x: float, of: Mapping[str, Any]) -> Box:
    """Return what a dot and its interval cover."""
    low, high = (of["accuracy"] if of.get(key) is None else of[key] for key in ("low", "high"))
    ends = axes.transData.transform([(x, 100 * each) for each in (low, of["accuracy"], high)])
    (across, bottom), (_, middle), (_, top) = ends.tolist()
    return Box(across - 5, min(bottom, middle - 5), across + 5, max(top, middle + 5))


def _free(x: float, y: float, width: float, height: float, frame: Box, taken: Sequence[Box]) -> Box:
    """Return the nearest free place for a label around a dot; right of it, if there is none."""
    for distance in range(8, 240, 6):
        for step in range(16):
            angle = math.pi * (step // 2 + step % 2) / 8 * (1 if step % 2 else -1)
            across, up = math.cos(angle), math.sin(angle)
            left = x + across * distance + width / 2 * (across - 1)
            bottom = y + up * distance + height / 2 * (up - 1)
            box = Box(left, bottom, left + width, bottom + height)
            if box.within(frame) and not any(box.meets(each) for each in taken):
                return box
    return Box(x + 8, y - height / 2, x + 8 + width, y + height / 2)


@contextmanager
def _style() -> Iterator[None]:
    """Draw with this module's settings, whatever the user's are, and leave those as they were."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _drawing(width: int, height: int, layout: Any = None) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # 72 dots to the inch, as SVG has it: places measured before saving are then the places drawn.
    inches = (width / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
    figure = Figure(figsize=inches, dpi=72, layout=layout, facecolor="white")
    return figure, figure.add_subplot()


def _svg(figure: Any, name: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    # Several figures share one page: their ids must not clash.
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])
