"""What a study of recognition says in words and tables: the same in the terminal and on its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from rich.table import Table
from rich.text import Text

from unspoken.lab.columns import Column
from unspoken.lab.received import received
from unspoken.lab.recognition.intervals import ENOUGH_ERRORS
from unspoken.lab.tables import MISSING, Cell, Number, bracket, github
from unspoken.lab.verdict import listed

Kind = Literal["told", "handed", "null"]
Standing = Literal["met", "missed", "open"]
Answer = Literal["yes", "in part", "no", "not shown"]
CHANCE = 0.5
MOST_POINTS = 0.02
FEW = "\N{DAGGER}"
FAMILIES: dict[Kind, str] = {
    "told": "how the agent was told who it is, and what it did",
    "handed": "what was done to its cache",
    "null": "controls: nothing to see",
}
STYLES: dict[Kind, str] = {"told": "bold dodger_blue1", "handed": "dark_orange3", "null": "bright_black"}
TOLD = {
    "card": "its card, as it was enrolled, and new texts",
    "reworded": "the same name, role and trait in other sentences and another order",
    "unshared": "the same agent without one content word of its card: no name, no role, no trait",
    "memory": "no card, but notes of its own, without its name",
    "dialogue": "no card, but an earlier conversation before the text, without its name",
    "brief": "one line: name, trait and role",
    "mimicry": "its card, and the order to imitate another agent; it counts as itself",
    "self-written": "texts that it wrote itself, so that here wording can help",
}
HANDED = {
    "kv+float32": "sent whole in full precision, its keys turned to the receiver's positions",
    "kv+int8": "sent as 8-bit integers",
    "kv+int4": "sent as 4-bit integers",
    "need@0.3": "only the 30 % of its columns that its sender looks at for a question",
    "two-hops": "sent on once more by the receiver",
    "llamacpp": "read in llama.cpp, enrolled in the study's engine",
    "transformers": "read in transformers, enrolled in the study's engine",
    "spliced": "a few columns at a time, from caches of which two agents made a half each",
}
NULLS = {
    "layer-0": "layer 0 alone: it knows the word, and nothing that stood before it",
    "twins": "instances of one agent against one another: the same card, other draws",
    "permuted": "the agents' names shuffled between enrolment and tests",
}
BASELINES = {
    "stylometry": "the words alone, without any cache",
    "layer-0-bag": "the mean of layer 0, a bag of words in the model's own numbers",
    "mean-keys": "the mean of keys, nothing taken away",
    "fourier": "a published fingerprint: frequencies of keys with their positions in them",
    "plain": "this signature without whitening: plain cosines",
}
GOALS = (
    ("card", 0.01, "As they were enrolled, on new texts,"),
    ("reworded", 0.02, "With their card in other words,"),
    ("unshared", 0.10, "Without one content word of their card,"),
    ("memory", 0.10, "With notes of their own instead of a card,"),
    ("dialogue", 0.10, "With an earlier conversation instead of a card,"),
)
KEPT = (
    ("kv+int8", "Sent as 8-bit integers"),
    ("kv+float32", "Moved to other positions"),
    ("llamacpp", "Read in llama.cpp"),
    ("transformers", "Read in transformers"),
)
EER = Column("eer", "EER, %", "share of misses and of false alarms where both are the same [95 % interval]")
NAME = Column("name", "condition", "how an agent was told, or what was done to its cache")
RESULTS = (
    NAME,
    EER,
    Column("meaning", "what it is", "in one line"),
    Column("errors", "errors", "trials of the same agent that are missed at that rate"),
    Column("targets", "same agent", "trials in which the cache is the enrolled agent's"),
    Column("nontargets", "other agents", "trials in which it is another's"),
    Column("min_dcf", "least cost", "of decisions at the best threshold; 1: no better than not looking"),
    Column("cllr", "Cllr, bits", "lost when scores are believed as log-likelihood ratios; 1: they say nothing"),
    Column("min_cllr", "least Cllr", "the same after the best calibration; the difference is what calibration costs"),
    Column("rank_one", "named, %", "caches whose own agent scores highest of all that are enrolled"),
)
SHORT = ("name", "eer", "targets", "min_dcf", "cllr", "rank_one")
NOTE = (
    f"EER: misses and false alarms where both are equal, chance 50 % [95 % interval]; {FEW} fewer than "
    f"{ENOUGH_ERRORS} errors; named: the own agent scores highest"
)


class Finding(msgspec.Struct, frozen=True):
    """One sentence of the verdict.

    Attributes:
        text: The sentence.
        standing: Whether what was asked for is met; `open` where nothing was asked, or it was not measured.
    """

    text: str
    standing: Standing


class Line(msgspec.Struct, frozen=True):
    """One line of a table: what family it belongs to, if to any, and its cells by column."""

    kind: Kind | None
    cells: dict[str, Cell]


class Grid(msgspec.Struct, frozen=True):
    """A table."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]


def sentences(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the verdict on a study, sentence by sentence."""
    return tuple(each.text for each in findings(metrics))


def findings(metrics: Mapping[str, Any]) -> tuple[Finding, ...]:
    """Return the verdict on a study: what was asked for, with its figure, and whether it is met."""
    conditions = metrics.get("conditions", {})
    found = [_gate(metrics)]
    found += [_at_most(conditions[name], limit, opening) for name, limit, opening in GOALS if name in conditions]
    found += [_nulls(metrics.get("nulls", {})), _words_alone(metrics)]
    if "card" in conditions:
        found += [_kept(conditions, name, opening) for name, opening in KEPT if name in conditions]
    found += [_few(metrics), _unmeasured(metrics), _pilot(metrics)]
    return tuple(each for each in found if each)


def answer(metrics: Mapping[str, Any]) -> Answer:
    """Return whether agents are recognised by their caches.

    `yes` needs every goal that was measured, and the controls among them. Without controls at chance, or with a gate
    that was not passed, nothing is shown.
    """
    nulls, gate = metrics.get("nulls", {}), metrics.get("gate")
    failed = isinstance(gate, Mapping) and gate.get("passed") is False
    if failed or "card" not in metrics.get("conditions", {}) or not nulls or not all(map(holds, nulls.values())):
        return "not shown"
    if metrics["conditions"]["card"]["eer"] > GOALS[0][1]:
        return "no"
    return "in part" if any(each.standing == "missed" for each in findings(metrics)) else "yes"


def holds(null: Mapping[str, Any]) -> bool:
    """Tell whether a control is at chance: 0.5 lies within its interval."""
    low, high = (null["eer"] if null.get(key) is None else null[key] for key in ("low", "high"))
    return bool(low <= CHANCE <= high)


def kind_of(condition: str) -> Kind:
    """Tell what a condition changes: how an agent is told, or what is done to its cache."""
    return "told" if condition in TOLD else "handed"


def meaning(name: str) -> str:
    """Say in one line what a condition, a control or a baseline is."""
    known = TOLD | HANDED | NULLS | BASELINES
    return known[name] if name in known else received(name)


def results(metrics: Mapping[str, Any]) -> Grid:
    """Return conditions and controls, each in the study's order."""
    conditions, nulls = metrics.get("conditions", {}), metrics.get("nulls", {})
    told = [_line(kind, name, of) for kind in ("told", "handed") for name, of in conditions.items()
            if kind_of(name) == kind]  # fmt: skip
    return Grid(RESULTS, (*told, *(_line("null", name, of) for name, of in nulls.items())))


def terminal(metrics: Mapping[str, Any]) -> Table:
    """Return conditions and controls as a table for the terminal."""
    grid = results(metrics)
    columns = [column for column in grid.columns if column.key in SHORT]
    table = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", caption=NOTE, caption_justify="left"
    )
    for column in columns:
        table.add_column(column.title, justify="left" if column.key == "name" else "right")
    for line in grid.lines:
        texts = [Text(line.cells[column.key].text, no_wrap=True) for column in columns]
        texts[0].stylize(STYLES[line.kind or "null"])
        table.add_row(*texts)
    return table


def markdown(grid: Grid) -> str:
    """Return a table for GitHub."""
    return github(grid.columns, [line.cells for line in grid.lines], ("name", "meaning"))


def error_rate(value: Number | None) -> str:
    """Return an error rate in per cent, without the sign of it: two digits below 10, where they matter."""
    if value is None:
        return MISSING
    return f"{100 * value:.{1 if value > 0.09995 else 2}f}"


def mark(of: Mapping[str, Any]) -> str:
    """Return the sign of a rate that rests on fewer than 30 errors, after a space; nothing for others."""
    return "" if of.get("enough_errors", True) else f" {FEW}"


def rate_cell(of: Mapping[str, Any]) -> Cell:
    """Return an equal error rate with its interval as a cell."""
    interval = "" if _faultless(of) else bracket(of, error_rate)
    return Cell(f"{error_rate(of['eer'])}{mark(of)}{interval}", of["eer"])


def share(value: Number | None) -> Cell:
    """Return a share in per cent as a cell."""
    return Cell(error_rate(value), value)


def plain(value: Number | None, digits: int) -> Cell:
    """Return a number with so many digits after the point as a cell."""
    return Cell(MISSING if value is None else f"{value:,.{digits}f}", value)


def _gate(metrics: Mapping[str, Any]) -> Finding | None:
    gate = metrics.get("gate")
    if not isinstance(gate, Mapping) or gate.get("passed") is not False:
        return None
    return Finding(
        "The gate was not passed: this engine does not move this model's caches exactly; no figure counts.", "missed"
    )


def _at_most(of: Mapping[str, Any], limit: float, opening: str) -> Finding:
    met = of["eer"] <= limit
    far = of.get("high") if met else of.get("low")
    beyond = far is not None and (far > limit if met else far <= limit)
    but = f", though the interval reaches {'above' if met else 'below'} it" if beyond else ""
    text = f"{opening} agents are recognised at an equal error rate of {error_rate(of['eer'])} %{_range(of)}; "
    return Finding(f"{text}at most {100 * limit:g} % was asked for: {_word(met)}{but}.", _word(met))


def _nulls(nulls: Mapping[str, Mapping[str, Any]]) -> Finding | None:
    if not nulls:
        return None
    said = [f"{name} {error_rate(of['eer'])} %{bracket(of, error_rate)}" for name, of in nulls.items()]
    wrong = [text for text, of in zip(said, nulls.values(), strict=True) if not holds(of)]
    if not wrong:
        text = f"Where there is nothing to see, nothing is seen: chance, 50 %, lies in every interval ({listed(said)})"
        return Finding(f"{text}: met.", "met")
    text = f"Where there is nothing to see, the rate should be chance, 50 %, and it is not: {listed(wrong)}: missed"
    return Finding(f"{text}; until that is explained, no other figure here counts.", "missed")


def _words_alone(metrics: Mapping[str, Any]) -> Finding | None:
    by_words = metrics.get("baselines", {}).get("stylometry", {}).get("card")
    ours = metrics.get("conditions", {}).get("card")
    if not by_words or not ours:
        return None
    met = ours["eer"] < by_words["eer"]
    rates = f"{error_rate(by_words['eer'])} % on the same trials, the signature {error_rate(ours['eer'])} %"
    return Finding(f"It sees more than wording: stylometry errs in {rates}: {_word(met)}.", _word(met))


def _kept(conditions: Mapping[str, Mapping[str, Any]], name: str, opening: str) -> Finding:
    rate, whole = conditions[name]["eer"], conditions["card"]["eer"]
    change = rate - whole
    # Rounded first: 0.03 - 0.01 is a little less than 0.02 in floating point, and 0.035 - 0.015 a little more.
    met = round(change, 9) <= MOST_POINTS
    rates = f"{error_rate(rate)} % against {error_rate(whole)} % for card, {100 * change:+.2f} points"
    return Finding(f"{opening} ({name}): {rates}; at most 2 more were allowed: {_word(met)}.", _word(met))


def _few(metrics: Mapping[str, Any]) -> Finding | None:
    asked = [name for name, *_ in (*GOALS, *KEPT)]
    few = [name for name, of in metrics.get("conditions", {}).items() if name in asked and mark(of)]
    if not few:
        return None
    text = f"Fewer than {ENOUGH_ERRORS} errors were seen with {listed(few)}: such a rate is small, but how small"
    return Finding(f"{text} is not known well, and the most it can be is the figure to quote.", "open")


def _unmeasured(metrics: Mapping[str, Any]) -> Finding | None:
    conditions = metrics.get("conditions", {})
    names = [*(name for name, *_ in GOALS), "kv+int8", "kv+float32"]
    missing = [name for name in names if name not in conditions]
    if not {"llamacpp", "transformers"} & set(conditions):
        missing.append("another engine")
    if not metrics.get("nulls"):
        missing.append("controls with nothing to see, without which no rate proves anything")
    return Finding(f"Not measured: {listed(missing)}.", "open") if missing else None


def _pilot(metrics: Mapping[str, Any]) -> Finding | None:
    if not metrics.get("pilot"):
        return None
    text = f"This is a pilot, with {metrics.get('agents', 'few')} agents tested: a rate of 1 % takes 60 agents in all"
    return Finding(f"{text} and 3,000 comparisons of different ones.", "open")


def _line(kind: Kind, name: str, of: Mapping[str, Any]) -> Line:
    targets, rate = of.get("targets"), of.get("eer")
    errors = None if targets is None or rate is None else rate * targets
    cells = {"name": Cell(name), "meaning": Cell(meaning(name)), "eer": rate_cell(of), "errors": plain(errors, 0)}
    cells |= {key: plain(of.get(key), 0) for key in ("targets", "nontargets")}
    cells |= {key: plain(of.get(key), 3) for key in ("min_dcf", "cllr", "min_cllr")}
    return Line(kind, cells | {"rank_one": share(of.get("rank_one"))})


def _range(of: Mapping[str, Any]) -> str:
    if _faultless(of):
        return f" (no error in {of['targets']:,} trials of the same agent)" if "targets" in of else ""
    low, high = of.get("low"), of.get("high")
    return "" if low is None or high is None else f" (95 % interval {error_rate(low)} to {error_rate(high)})"


def _faultless(of: Mapping[str, Any]) -> bool:
    """Tell whether there was no error at all: an interval then has no width, and means nothing."""
    return bool(of["eer"] == 0 and not of.get("high"))


def _word(met: bool) -> Literal["met", "missed"]:
    return "met" if met else "missed"
