"""The founding claim as a whole: what a sweep's cells say of it together, by the roadmap's rule and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from unspoken.lab.experiment import POWERED_ITEMS
from unspoken.lab.verdict import Claim, claims, judge, listed

Decision = Literal["shown", "refuted", "open", "not tested"]
# What ROADMAP.md decides against: messages of any length, written for the question.
ASKED = "text-asked"
KINDS = {
    "text@32": "Against a message of at most 32 tokens whose sender did not know the question",
    "text": "Against one as long as that sender liked",
    ASKED: "Against one written for the question",
}
SAID = {"holds": "holds", "does not hold": "fails", "not shown": "is open", "not measured": "was not measured"}
CLAIM = (
    "The founding claim, 8 points more accuracy and twice the speed at once, against a message that its sender wrote "
    "for the question,"
)
DECIDED = {"shown": "is shown", "refuted": "is refuted as it was stated", "open": "is neither shown nor refuted"}


class Founding(msgspec.Struct, frozen=True):
    """What several cells say of the founding claim.

    Attributes:
        standing: `refuted` if a part of it fails on most of the tasks tested, `shown` if both hold on most; a task is
            what more than half of its cells with a content gain are (ROADMAP.md, "The founding claim").
        sentences: The same in words, for readers who know no statistics.
    """

    standing: Decision
    sentences: tuple[str, ...]


def has_claims(cells: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether any cell of a sweep tests the claim."""
    return any(of.get("claims") for of in cells.values())


def tells(metrics: Mapping[str, Any]) -> bool:
    """Tell whether a cell counts: a claim about understanding needs a content gain that is shown."""
    return judge(metrics).answer == "yes"


def founding(cells: Mapping[str, Mapping[str, Any]], unfinished: Sequence[str] = ()) -> Founding:
    """Return what a sweep says of the founding claim as a whole.

    Args:
        cells: For each cell's name, which begins with its task's, what its `metrics.json` holds; those without a text
            arm are passed over.
        unfinished: Names of cells that are still to come; until then the claim is open.
    """
    tested = {key: of for key, of in cells.items() if of.get("claims")}
    asked = {key for key, of in tested.items() if ASKED in of["claims"]}
    telling = {key: claims(of) for key, of in tested.items() if tells(of)}
    against = {arm: {key: each for key, found in telling.items() for each in found if each.arm == arm} for arm in KINDS}
    standing, decided, why = _whole(against[ASKED], len(set(map(_task, asked))), unfinished)
    pilots = sum(bool(of["pilot"]) for of in tested.values())
    sentences = (
        f"{CLAIM} {decided}.",
        _tested(len(asked), len(asked & telling.keys())) if against[ASKED] else "",
        why,
        *(f"{words}, {_counted(against[arm].values())}." for arm, words in KINDS.items() if against[arm]),
        _pilots(pilots, len(tested)) if pilots else "",
        _silent([key for key in tested if key not in telling]),
    )
    return Founding(standing, tuple(each for each in sentences if each))


def _tested(cells: int, telling: int) -> str:
    where = "one cell:" if cells == 1 else f"{cells} cells, each"
    count = f"; {telling} of them count, as the right cache does better there than another text's"
    return f"It was tested in {where} a task, a model and an engine{count if telling < cells else ''}."


def _whole(asked: Mapping[str, Claim], count: int, unfinished: Sequence[str]) -> tuple[Decision, str, str]:
    """Return how the claim stands over a count of tasks, the same as the end of a sentence, and how it was decided."""
    if not asked:
        return "not tested", f"was not tested; that takes a cell with the arm {ASKED} and a content gain", ""
    held = [key for key, each in asked.items() if each.accuracy == each.speed == "holds"]
    failed = [key for key, each in asked.items() if "does not hold" in (each.accuracy, each.speed)]
    tasks, won, lost = (Counter(map(_task, keys)) for keys in (asked, held, failed))
    on, off = (sum(2 * of[task] > cells for task, cells in tasks.items()) for of in (won, lost))
    why = (
        f"Both parts hold in {len(held)} of {len(asked)} cells, and one or both fail in {len(failed)}; they hold in "
        f"most cells of {on} of {count} tasks and fail in most of {off}, and to decide it takes most tasks."
    )
    if unfinished:
        return "open", f"is open until all cells are in; still to come: {listed(unfinished)}", why
    standing: Decision = "refuted" if 2 * off > count else "shown" if 2 * on > count else "open"
    return standing, DECIDED[standing], why


def _pilots(some: int, count: int) -> str:
    which = f"All {count} cells are pilots" if some == count else f"{some} of the {count} cells are pilots"
    some_or_one = "The only cell is a pilot" if count == 1 else which
    return f"{some_or_one}, with fewer than the {POWERED_ITEMS} questions that tell 5 points."


def _task(cell: str) -> str:
    return cell.partition("/")[0]


def _counted(found: Iterable[Claim]) -> str:
    standings = [(each.accuracy, each.speed) for each in found]
    accuracy, speed = (Counter(column) for column in zip(*standings, strict=True))
    return f"8 points more accuracy {_standings(accuracy)}, and twice the speed {_standings(speed)}"


def _standings(counts: Counter[str]) -> str:
    return listed([f"{said} in {counts[standing]}" for standing, said in SAID.items() if counts[standing]])


def _silent(keys: Sequence[str]) -> str:
    if not keys:
        return ""
    return (
        f"Nothing can be said of {listed(keys)}: the right cache is not shown to do better there than another text's."
    )
