"""The results table: the same rows, words and numbers in the terminal, in the README and in the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import msgspec
from rich.table import Table
from rich.text import Text

from unspoken.lab.arms import is_control
from unspoken.lab.columns import FRONTIER, Column, compact
from unspoken.lab.received import received
from unspoken.lab.relay import hops_of

Number = int | float
Shown = Callable[[Number | None], str]
Family = Literal["text", "content", "control"]
MISSING = "-"
SIGNIFICANT = 0.05
FAMILIES: dict[Family, str] = {
    "text": "text",
    "content": "a cache of the text",
    "control": "controls: nothing, or a wrong cache",
}
STYLES: dict[Family, str] = {"text": "dark_orange3", "content": "bold dodger_blue1", "control": "bright_black"}


class Cell(msgspec.Struct, frozen=True):
    """One entry.

    Attributes:
        text: As it is shown.
        order: The number to sort by; None for words and for what is missing.
    """

    text: str
    order: Number | None = None


class Row(msgspec.Struct, frozen=True):
    """One arm's line."""

    arm: str
    family: Family
    cells: dict[str, Cell]


def terminal(metrics: Mapping[str, Any]) -> Table:
    """Return the arms as a table for the terminal."""
    columns, note = compact(metrics)
    table = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", caption=note, caption_justify="left"
    )
    for column in columns:
        table.add_column(column.title, justify="left" if column.key == "arm" else "right")
    for row in rows(metrics):
        texts = [Text(row.cells[column.key].text, no_wrap=True) for column in columns]
        texts[0].stylize(STYLES[row.family])
        table.add_row(*texts)
    return table


def markdown(metrics: Mapping[str, Any]) -> str:
    """Return the arms as a GitHub table."""
    columns, note = compact(metrics)
    return f"{_table(columns, rows(metrics))}\n{_escaped(note)}\n"


def frontier_markdown(metrics: Mapping[str, Any]) -> str:
    """Return what each arm reaches for its bytes, as a GitHub table."""
    return _table(FRONTIER, rows(metrics))


def rows(metrics: Mapping[str, Any]) -> tuple[Row, ...]:
    """Return a line for each arm: text first, then caches, then controls, each in the experiment's order."""
    arms: Mapping[str, Mapping[str, Any]] = metrics.get("arms", {})
    return tuple(Row(arm, family(arm), _cells(arm, arms[arm], metrics)) for arm in ordered(tuple(arms)))


def _table(columns: Sequence[Column], lines: Sequence[Row]) -> str:
    return github(columns, [row.cells for row in lines], ("arm",))


def github(columns: Sequence[Column], lines: Sequence[Mapping[str, Cell]], words: Sequence[str]) -> str:
    """Return cells as a GitHub table.

    Args:
        columns: The columns.
        lines: For each line, its cells by column.
        words: Keys of columns that hold words, which stand on the left.
    """
    cells = [
        [column.title.replace("\n", " ") for column in columns],
        ["---" if column.key in words else "---:" for column in columns],
        *([_escaped(line[column.key].text) for column in columns] for line in lines),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def ordered(arms: Sequence[str]) -> list[str]:
    """Return arms by family, `none` before everything; otherwise in the given order."""
    families = list(FAMILIES)
    return sorted(arms, key=lambda arm: (arm != "none", families.index(family(arm))))


@cache
def family(arm: str) -> Family:
    """Tell whether an arm carries text, carries the content in a cache, or is a control."""
    _, arm = hops_of(arm)
    if arm == "none" or is_control(arm):
        return "control"
    return "text" if arm == "full-text" or arm.startswith("text") else "content"


def rate(of: Mapping[str, Any]) -> dict[str, Number | None]:
    """Return what an arm reached with its interval: its score, or its accuracy in runs that are older than scores."""
    if "score" in of:
        return dict(of["score"])
    return {"mean": of.get("accuracy"), "low": of.get("low"), "high": of.get("high")}


def judged_by(metrics: Mapping[str, Any]) -> str:
    """Name what a run is judged by, for an axis or a heading."""
    if metrics.get("twins"):
        return "pairs told apart, %"
    return "F1 of the answers, %" if metrics.get("measure") == "f1" else "right answers, %"


def size(count: Number | None) -> str:
    """Return a number of bytes for people to read, in decimal units: 153 B, 1.71 MB."""
    if count is None:
        return MISSING
    scaled, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if scaled < 999.5:
            break
        scaled, unit = scaled / 1000, larger
    digits = 0 if unit == "B" or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{digits}f} {unit}"


def percent(value: Number | None) -> str:
    """Return a share in per cent, without the sign of it."""
    return MISSING if value is None else f"{_unsigned(100 * value):.1f}"


def points(value: Number | None) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    if value is None:
        return MISSING
    return f"{100 * value:+.1f}" if round(100 * value, 1) else "0.0"


def probability(p: Number | None) -> str:
    """Return a p-value."""
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def seconds(value: Number | None) -> str:
    """Return a time in seconds, to three digits."""
    if value is None:
        return MISSING
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def model_name(model: Any) -> str:
    """Return the name of a model as a run records it: a name, or a description that has one."""
    return str(model.get("name", "?") if isinstance(model, Mapping) else model or "?")


def minus(interval: Mapping[str, Any]) -> dict[str, Number | None]:
    """Return the interval of a difference taken the other way round."""
    mean, low, high = (interval.get(key) for key in ("mean", "low", "high"))
    return {
        "mean": None if mean is None else -mean,
        "low": None if high is None else -high,
        "high": None if low is None else -low,
    }


def bracket(interval: Mapping[str, Any], shown: Shown) -> str:
    """Return an interval in brackets, after a space; nothing if there is none."""
    low, high = interval.get("low"), interval.get("high")
    return "" if low is None or high is None else f" [{shown(low)}, {shown(high)}]"


def _cells(arm: str, of: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Cell]:
    against = (metrics.get("against_kv") or metrics.get("against_subject") or {}).get(arm, {})
    versus = minus(against)
    gap = metrics.get("pgr", {}).get(arm, {})
    p = against.get("p_holm")
    star = " *" if p is not None and p < SIGNIFICANT else "  " if p is not None else ""
    return {
        "arm": Cell(arm),
        "got": Cell(received(arm)),
        "n": _plain(of.get("n"), 0),
        "accuracy": _with_interval({**of, "mean": of.get("accuracy")}, percent),
        "contained": Cell(percent(of.get("contained")), of.get("contained")),
        "f1": _plain(of.get("f1"), 3),
        "kl": _kl(of.get("kl")),
        "bytes": Cell(size(of.get("bytes")), of.get("bytes")),
        "prefilled": _plain(of.get("tokens_prefilled"), 1),
        "skipped": _plain(of.get("tokens_skipped"), 1),
        "first": Cell(seconds(of.get("seconds_first_token")), of.get("seconds_first_token")),
        "total": Cell(seconds(of.get("seconds_total")), of.get("seconds_total")),
        "pgr": Cell(whole_percent(gap.get("mean")), gap.get("mean")),
        "pgr_interval": _with_interval(gap, whole_percent),
        "vs_kv": Cell(f"{points(versus['mean'])}{star}", versus["mean"]),
        "vs_kv_interval": _with_interval(versus, percent, points),
        "p": Cell(probability(p), p),
        "failures": _plain(of.get("failures"), 0),
        **_worth(arm, of, metrics),
    }


def _worth(arm: str, of: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Cell]:
    """What an arm reaches, and what it moves and gains, measured by kv."""
    gain = metrics.get("gain", {}).get(arm, {})
    moved, whole = of.get("bytes"), metrics.get("arms", {}).get("kv", {}).get("bytes")
    share = moved / whole if moved is not None and whole else None
    shown = "<0.1" if share and share < 0.0005 else percent(share)
    return {
        "score": _with_interval(rate(of), percent),
        "bytes_share": Cell(shown, share),
        "gain_interval": _with_interval(gain, percent, points),
        "gain_share": _with_interval(gain.get("share_of_kv_gain", {}), whole_percent),
    }


def _with_interval(interval: Mapping[str, Any], shown: Shown, middle: Shown | None = None) -> Cell:
    mean = interval.get("mean")
    return Cell((middle or shown)(mean) + bracket(interval, shown), mean)


def whole_percent(value: Number | None) -> str:
    """Return a share in whole per cent, without the sign of it."""
    return MISSING if value is None else f"{_unsigned(100 * value, 0):.0f}"


def _kl(value: Number | None) -> Cell:
    if value is not None and 0 < value < 0.001:
        return Cell("<0.001", value)
    return _plain(value, 3)


def _plain(value: Number | None, digits: int) -> Cell:
    return Cell(MISSING if value is None else f"{value:.{digits}f}", value)


def _unsigned(value: Number, digits: int = 1) -> Number:
    """Return a value whose zero has no minus sign once it is rounded for display."""
    return value if round(value, digits) else math.copysign(value, 1.0)


def _escaped(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("*", "\\*")
