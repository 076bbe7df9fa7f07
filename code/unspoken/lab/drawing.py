"""What all figures share: style, canvas, dots, axes and labels, without global state."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from unspoken.lab.tables import FAMILIES, Family, Number, family, size

# Okabe and Ito's palette, told apart with any kind of colour vision; shapes say the same again.
COLOURS: dict[Family, str] = {"text": "#D55E00", "content": "#0072B2", "control": "#767676"}
MARKERS: dict[Family, str] = {"text": "s", "content": "o", "control": "D"}
# Where several lines or arms share a colour, these tell them apart.
MARKS = ("s", "^", "D", "v", "P", "X", "o", "<", ">", "*")
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
# In decades of bytes: how far arms of one size stand apart, at most and on an axis of few; and what counts as one size.
DODGE, LEAST_DODGE, SAME = 0.1, 0.02, 0.01
# How many arms side by side would take the whole axis.
ABREAST = 40


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


def dot(axes: Any, arm: str, of: Mapping[str, Any], at: Number, across: bool = False) -> None:
    """Draw one arm's mean with its interval, along x or along y."""
    kind = family(arm)
    mean, low, high = (None if of.get(key) is None else 100 * of[key] for key in ("mean", "low", "high"))
    if mean is None:
        return
    if low is not None and high is not None:
        ends, fixed = [low, high], [at, at]
        axes.plot(*((ends, fixed) if across else (fixed, ends)), color=COLOURS[kind], linewidth=2, alpha=0.55, zorder=2)
    place = ([mean], [at]) if across else ([at], [mean])
    marker_size = 7.5 if MARKERS[kind] == "o" else 6.2
    axes.plot(*place, MARKERS[kind], color=COLOURS[kind], markersize=marker_size, markeredgecolor="white", zorder=3)


def legend(axes: Any, arms: Sequence[str], **where: Any) -> None:
    """Tell what the marks of the arms' families are."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=MARKERS[kind], color=COLOURS[kind], label=label)
        for kind, label in FAMILIES.items()
        if kind in {family(arm) for arm in arms}
    ]
    axes.legend(handles=handles, ncols=len(handles), handletextpad=0.1, columnspacing=1.6, borderaxespad=0.2, **where)


def byte_places(sizes: Mapping[str, Number]) -> tuple[float, dict[str, float]]:
    """Return where zero bytes stand left of the logarithmic axis, and each arm's x; equal sizes stand side by side.

    Of two arms, the one that moves more never stands further left.
    """
    logs = {arm: math.log10(count) for arm, count in sizes.items() if count > 0}
    zero = math.floor(min(logs.values(), default=1.0)) - ZERO_GAP
    groups: list[list[tuple[float, str]]] = []
    for x, arm in sorted(((logs.get(arm, zero), arm) for arm in sizes), key=lambda each: each[0]):
        if groups and x - groups[-1][0][0] < SAME:
            groups[-1].append((x, arm))
        else:
            groups.append([(x, arm)])
    centres = [sum(x for x, _ in group) / len(group) for group in groups]
    dodge = min(DODGE, max(LEAST_DODGE, (max(centres, default=0.0) - min(centres, default=0.0)) / ABREAST))
    places = {}
    for at, group in enumerate(groups):
        # At most half of the way to the next size: groups never meet.
        room = min((abs(other - centres[at]) for other in centres if other != centres[at]), default=math.inf)
        step = min(dodge, room / len(group))
        for number, (_, arm) in enumerate(group):
            places[arm] = centres[at] + step * (number - (len(group) - 1) / 2)
    return zero, places


def byte_axis(axes: Any, zero: float, places: Mapping[str, float]) -> None:
    """Make x the logarithm of bytes, with zero bytes to the left of a gap."""
    first, last = math.ceil(zero), max(math.ceil(max(places.values(), default=1.0)), math.ceil(zero) + 1)
    axes.set_xlim(zero - 0.75, last + 0.6)
    axes.set_xticks([zero, *range(first, last + 1)], ["0 B", *map(decade, range(first, last + 1))])
    axes.axvline(zero + ZERO_GAP / 2 + 0.1, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes.set_xlabel("bytes moved from sender to receiver, logarithmic (equal sizes stand side by side)")


def decade(power: int) -> str:
    """Return a power of ten bytes for people to read: 100 kB."""
    return size(10.0**power).replace(".00", "").replace(".0", "")


def label(figure: Any, axes: Any, dots: Mapping[str, tuple[float, Mapping[str, Any]]]) -> None:
    """Write each arm's name beside its dot, where it covers neither a dot, nor an interval, nor a name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    measuring = canvas.get_renderer()
    frame = Box(*map(float, axes.get_window_extent(measuring).extents))
    dots = {arm: (x, of) for arm, (x, of) in dots.items() if of.get("mean") is not None}
    centres = {arm: axes.transData.transform((x, 100 * of["mean"])) for arm, (x, of) in dots.items()}
    taken = [_ground(axes, x, of) for x, of in dots.values()]
    for arm in sorted(dots, key=lambda each: (centres[each][1], centres[each][0])):
        text = axes.annotate(arm, (0, 0), xycoords="figure pixels", fontsize=8.5, ha="center", va="center", bbox=GROUND)
        extent = text.get_window_extent(measuring)
        x, y = map(float, centres[arm])
        box = free_place(x, y, float(extent.width) + 4, float(extent.height) + 2, frame, taken)
        middle = (box.left + box.right) / 2, (box.bottom + box.top) / 2
        text.set_position(middle)
        taken.append(box)
        edge = min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)
        if math.dist(edge, (x, y)) > 12:
            axes.annotate("", (x, y), edge, "figure pixels", "figure pixels", LEADER, zorder=1)


def _ground(axes: Any, x: float, of: Mapping[str, Any]) -> Box:
    """Return what a dot and its interval cover."""
    low, high = (of["mean"] if of.get(key) is None else of[key] for key in ("low", "high"))
    ends = axes.transData.transform([(x, 100 * each) for each in (low, of["mean"], high)])
    (across, bottom), (_, middle), (_, top) = ends.tolist()
    return Box(across - 5, min(bottom, middle - 5), across + 5, max(top, middle + 5))


def free_place(x: float, y: float, width: float, height: float, frame: Box, taken: Sequence[Box]) -> Box:
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
def style() -> Iterator[None]:
    """Draw with this module's settings, whatever the user's are, and leave those as they were."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def sheet(width: int, height: int, layout: Any = None) -> Any:
    """Return an empty figure of so many pixels."""
    from matplotlib.figure import Figure

    # 72 dots to the inch, as SVG has it: places measured before saving are then the places drawn.
    inches = (width / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
    return Figure(figsize=inches, dpi=72, layout=layout, facecolor="white")


def drawing(width: int, height: int, layout: Any = None) -> tuple[Any, Any]:
    """Return an empty figure of so many pixels, and its one pair of axes."""
    figure = sheet(width, height, layout)
    return figure, figure.add_subplot()


def svg(figure: Any, name: str) -> str:
    """Return a figure as SVG text, with ids that begin with a name of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    # Several figures share one page: their ids must not clash.
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])
