"""Which columns a table of results has, by what the run is judged by, and what each of them means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


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


COLUMNS = (
    Column("arm", "arm", "one condition of the experiment"),
    Column("got", "what the receiver got", "besides the question"),
    Column("n", "questions", "asked in this arm"),
    Column("accuracy", "right, %", "{right} [95 % interval]"),
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
    Column("p", "Holm p", "that the arm and kv are right equally often, corrected for the number of comparisons"),
    Column("failures", "failures", "questions with no answer; they count as wrong"),
)
RIGHT = {
    "options": "the right option was the most probable one",
    "contained": "the right answer stands in the words the receiver wrote",
    "f1": "the right answer stands in the words the receiver wrote",
    "twins": "of two states of mind, each answer is more probable in its own; ties by a coin",
}
BY_WORDS = {
    "f1": Column("score", "F1, %", "overlap of the words written with the right answer [95 % interval]"),
    "vs_kv_interval": Column(
        "vs_kv_interval", "F1 difference to kv, points", "F1 of this arm minus that of kv [95 % interval]"
    ),
}
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
WORDS_NOTE = f"{OPEN_NOTE}, for right or wrong"
OPEN = {"contained": Column("f1", "F1", "")}
OPEN_BY_WORDS = OPEN | {"vs_kv": Column("vs_kv", "F1 vs kv,\npoints", "")}


def compact(metrics: Mapping[str, Any]) -> tuple[tuple[Column, ...], str]:
    """Return the columns of the short table and its note; with open answers, said is right and F1 takes its place."""
    measure = metrics.get("measure", "options")
    if measure == "options":
        return named(COMPACT, metrics), TWIN_NOTE if metrics.get("twins") else NOTE
    other, note = (OPEN_BY_WORDS, WORDS_NOTE) if measure == "f1" else (OPEN, OPEN_NOTE)
    return named([other.get(column.key, column) for column in COMPACT], metrics), note


def full(metrics: Mapping[str, Any]) -> tuple[Column, ...]:
    """Return all columns that a run's own page has: those of its measure, and content gains if there are any."""
    measure = metrics.get("measure", "options")
    right = RIGHT["twins" if metrics.get("twins") else measure]
    columns = [
        msgspec.structs.replace(each, hint=each.hint.format(right=right))
        for each in COLUMNS + (GAINS if metrics.get("gain") else ())
        if measure == "options" or each.key != "contained"
    ]
    if measure == "f1":
        columns = [BY_WORDS.get(each.key, each) for each in columns]
    return named(columns, metrics)


def named(columns: Sequence[Column], metrics: Mapping[str, Any]) -> tuple[Column, ...]:
    """Return columns whose headings name what a run's arms are measured against: kv, or the first fused arm."""
    if "subject" not in metrics:
        return tuple(columns)
    replace = msgspec.structs.replace
    return tuple(
        replace(each, title=each.title.replace("kv", "fused"), hint=each.hint.replace("kv", metrics["subject"]))
        for each in columns
    )
