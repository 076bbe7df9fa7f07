"""The results table: the same rows, words and numbers in the terminal, in the README and in the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import msgspec
from rich.table import Table
from rich.text import Text

from unspoken.lab.arms import CONTROLS
from unspoken.lab.fused_arms import is_control
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


class Column(msgspec.Struct, frozen=True):
    """A column of the table.

    Attributes:
        key: Of its cells in a row.
        title: Its heading.
        hint: What it means, in one line.
    """

    key: str
    title: str
    hint: str


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


COLUMNS = (
    Column("arm", "arm", "one condition of the experiment"),
    Column("got", "what the receiver got", "besides the question"),
    Column("n", "questions", "asked in this arm"),
    Column("accuracy", "right, %", "the right option was the most probable one [95 % interval]"),
    Column("contained", "answer said, %", "the right answer stands in the words the receiver wrote"),
    Column("f1", "F1", "overlap of the words written with the right answer, 0 to 1"),
    Column("kl", "KL, nats", "how far the odds of the first word are from those after reading the whole text; 0: none"),
    Column("bytes", "bytes moved", "from sender to receiver, mean per question"),
    Column("prefilled", "tokens read", "by the receiver, the question included, mean"),
    Column("skipped", "tokens not read", "because their cache came instead, mean"),
    Column("first", "first word, s", "seconds until the receiver's first token, all stages before it included"),
    Column("total", "total, s", "seconds for all stages"),
    Column("pgr_interval", "PGR, %", "share of the way from none to full-text [95 % interval]"),
    Column("vs_kv_interval", "difference to kv, points", "accuracy of this arm minus that of kv [95 % interval]"),
    Column("p", "Holm p", "that the arm and kv differ only by chance, corrected for the number of comparisons"),
    Column("failures", "failures", "questions with no answer; they count as wrong"),
)
GAINS = (
    Column("gain_interval", "content gain, points", "score minus that with another text's cache [95 % interval]"),
    Column("gain_share", "of kv's gain, %", "its content gain as a share of kv's [95 % interval]"),
)
COMPACT = (
    Column("arm", "arm", ""),
    Column("accuracy", "right,\n%", ""),
    Column("contained", "said,\n%", ""),
    Column("bytes", "bytes\nmoved", ""),
    Column("first", "first\ntoken, s", ""),
    Column("total", "total,\ns", ""),
    Column("pgr", "PGR,\n%", ""),
    Column("vs_kv", "vs kv,\npoints", ""),
)
FRONTIER = (
    Column("arm", "arm", ""),
    Column("bytes", "bytes moved", ""),
    Column("bytes_share", "of kv's, %", ""),
    Column("score", "score, % [95 % interval]", ""),
    Column("gain_share", "of kv's gain, % [95 % interval]", ""),
    Column("kl", "KL, nats", ""),
    Column("total", "total, s", ""),
)
SWEEP = (*FRONTIER[:-2], Column("pgr_interval", "PGR, % [95 % interval]", ""), *FRONTIER[-2:])
NOTE = "right: the option chosen [95 % interval]; said: the answer stands in the words written; *: Holm p < 0.05"
TWIN_NOTE = "right: the two states of mind told apart [95 % interval], chance 50 %, ties by a coin; *: Holm p < 0.05"
OPEN_NOTE = "right: the answer stands in the words written [95 % interval]; F1: of these words; *: Holm p < 0.05"
OPEN = {"contained": Column("f1", "F1", "")}


def compact(metrics: Mapping[str, Any]) -> tuple[tuple[Column, ...], str]:
    """Return the columns of the short table and its note; with open answers, said is right and F1 takes its place."""
    if metrics.get("measure", "options") == "options":
        return named(COMPACT, metrics), TWIN_NOTE if metrics.get("twins") else NOTE
    return tuple(OPEN.get(column.key, column) for column in named(COMPACT, metrics)), OPEN_NOTE


def named(columns: Sequence[Column], metrics: Mapping[str, Any]) -> tuple[Column, ...]:
    """Return columns whose headings name what a run's arms are measured against: kv, or the first fused arm."""
    if "subject" not in metrics:
        return tuple(columns)
    replace = msgspec.structs.replace
    return tuple(
        replace(each, title=each.title.replace("kv", "fused"), hint=each.hint.replace("kv", metrics["subject"]))
        for each in columns
    )


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
    if arm == "none" or arm in CONTROLS.names() or is_control(arm):
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
        "pgr": Cell(_whole_percent(gap.get("mean")), gap.get("mean")),
        "pgr_interval": _with_interval(gap, _whole_percent),
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
    return {
        "score": _with_interval(rate(of), percent),
        "bytes_share": Cell(percent(share), share),
        "gain_interval": _with_interval(gain, percent, points),
        "gain_share": _with_interval(gain.get("share_of_kv_gain", {}), _whole_percent),
    }


def _with_interval(interval: Mapping[str, Any], shown: Shown, middle: Shown | None = None) -> Cell:
    mean = interval.get("mean")
    return Cell((middle or shown)(mean) + bracket(interval, shown), mean)


def _whole_percent(value: Number | None) -> str:
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
