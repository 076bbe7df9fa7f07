"""Every question of a run with what every arm answered, packed for a page that shows it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unspoken.lab.record import Sample

RIGHT, WRONG, FAILED, MISSING = "1", "0", "x", "-"


def packed(samples: Sequence[Sample], arms: Sequence[str]) -> str:
    """Return a run's answers as JSON that can stand in a page's script element; the same run gives the same text.

    A message that is the beginning of another one, as capped messages are, is kept as a length only.

    Args:
        samples: Of the run, in any order; those run alone are left out.
        arms: In the order in which they are shown.
    """
    items = by_item(samples)
    kept = _longest(sample.message for sample in samples if sample.message and not sample.alone)
    places = {text: at for at, text in enumerate(sorted(set(kept.values())))}
    rows = [
        _row(name, of, arms, {text: (places[whole], len(text)) for text, whole in kept.items()}) for name, of in items
    ]
    found = {"arms": list(arms), "texts": list(places), "items": rows}
    # Nothing in here can end the element it stands in.
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def by_item(samples: Iterable[Sample]) -> list[tuple[str, dict[str, Sample]]]:
    """Return what every arm answered to each item in a batch, items in the order of their ids."""
    found: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        if not sample.alone:
            found.setdefault(sample.item, {})[sample.arm] = sample
    return sorted(found.items())


def _row(
    name: str, of: Mapping[str, Sample], arms: Sequence[str], places: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    first = next(iter(of.values()))
    answered = [of.get(arm) for arm in arms]
    return {
        "id": name,
        "source": first.source,
        "question": first.question,
        "gold": first.gold,
        "marks": "".join(map(_mark, answered)),
        "answers": [None if each is None else each.error or each.answer for each in answered],
        "scores": [_score(each) for each in answered],
        "messages": [None if each is None or not each.message else places[each.message] for each in answered],
    }


def _mark(sample: Sample | None) -> str:
    if sample is None:
        return MISSING
    if sample.error is not None:
        return FAILED
    return RIGHT if sample.correct else WRONG


def _score(sample: Sample | None) -> float | None:
    """Return what a mark does not say already."""
    if sample is None or sample.judged == float(sample.correct):
        return None
    return round(sample.judged, 2)


def _longest(texts: Iterable[str]) -> dict[str, str]:
    """Return for each text the longest of all texts that it is the beginning of."""
    found: dict[str, str] = {}
    for text in sorted(set(texts), reverse=True):
        # In this order, what a text is the beginning of stands right before it.
        before = found[previous] if (previous := next(reversed(found), None)) is not None else ""
        found[text] = before if before.startswith(text) else text
    return found
