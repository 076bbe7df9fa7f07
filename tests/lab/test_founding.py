"""The founding claim as a whole, from figures written by hand: what counts, and what it takes to decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from unspoken.lab.founding import founding, has_claims

# Intervals of more accuracy and of the ratio of times that hold, fail and leave the claim open.
INTERVALS = {"+": ((0.09, 0.2), (2.1, 4.0)), "-": ((-0.1, 0.05), (1.0, 1.5)), "?": ((0.01, 0.2), (1.5, 4.0))}


def cell(asked: str, *, gain: float = 0.4, pilot: bool = False, arms: tuple[str, ...] = ("text-asked",)) -> Any:
    """Return a cell's metrics; `asked` says how accuracy and speed fare against each arm."""
    (accuracy, _), (_, speed) = INTERVALS[asked[0]], INTERVALS[asked[1]]
    claim = {
        "accuracy_difference": {"mean": sum(accuracy) / 2, "low": accuracy[0], "high": accuracy[1]},
        "time_ratio": {"mean": sum(speed) / 2, "low": speed[0], "high": speed[1]},
        "timed_items": 8,
    }
    return {
        "pilot": pilot,
        "items": 640,
        "arms": {arm: {"n": 640, "accuracy": 0.5, "failures": 0} for arm in ("none", "full-text", "kv", "kv-deranged")},
        "content_gain": {"mean": gain, "low": gain - 0.1, "high": gain + 0.1, "p": 0.001 if gain > 0.1 else 0.9},
        "claims": dict.fromkeys(arms, claim),
    }


def cells(**tasks: str) -> dict[str, Mapping[str, Any]]:
    """Return cells of several tasks, one for each word of the task's text."""
    return {
        f"{task}/tiny/engine-{at}": cell(asked) for task, told in tasks.items() for at, asked in enumerate(told.split())
    }


@pytest.mark.parametrize(
    ("tasks", "decision"),
    [
        ({"a": "++", "b": "++", "c": "--"}, "shown"),
        ({"a": "+-", "b": "-+", "c": "++"}, "refuted"),
        # Half of the tasks are not most of them, nor are half of a task's cells.
        ({"a": "--", "b": "??"}, "open"),
        ({"a": "-- ++", "b": "-- ??", "c": "--"}, "open"),
        ({"a": "-- -- ++", "b": "-- ??", "c": "--"}, "refuted"),
        ({"a": "++", "b": "??"}, "open"),
        # Both parts have to hold.
        ({"a": "+?", "b": "?+", "c": "+?"}, "open"),
    ],
)
def test_most_tasks_decide(tasks: dict[str, str], decision: str) -> None:
    assert founding(cells(**tasks)).standing == decision


def test_cells_without_a_content_gain_count_for_neither_side() -> None:
    found = cells(a="++", b="??") | {f"{task}/tiny/fake": cell("--", gain=0.0) for task in "cde"}
    told = founding(found)
    assert told.standing == "open"
    words = " ".join(told.sentences)
    assert "It was tested in 5 cells" in words
    assert "2 of them count" in words
    assert "Both parts hold in 1 of 2 cells, and one or both fail in 0" in words
    assert "Nothing can be said of c/tiny/fake, d/tiny/fake and e/tiny/fake" in words


def test_tasks_without_a_content_gain_are_tasks_all_the_same() -> None:
    silent = {f"{task}/tiny/fake": cell("++", gain=0.0) for task in "bcd"}
    for asked in ("++", "--"):
        told = founding(cells(a=asked) | silent)
        assert told.standing == "open"
        assert "most cells of" in told.sentences[2]
        assert "of 4 tasks" in told.sentences[2]


def test_tasks_that_were_not_asked_so_are_none_that_it_was_tested_on() -> None:
    unasked = {f"{task}/tiny/fake": cell("++", arms=("text@32",)) for task in "bc"}
    told = founding(cells(a="--") | unasked)
    assert told.standing == "refuted"
    assert told.sentences[1] == "It was tested in one cell: a task, a model and an engine."


def test_nothing_is_decided_before_all_cells_are_in() -> None:
    told = founding(cells(a="--", b="--"), ("c/tiny/fake",))
    assert told.standing == "open"
    assert told.sentences[0].endswith("is open until all cells are in; still to come: c/tiny/fake.")


def test_each_kind_of_message_is_counted_by_itself() -> None:
    found = {
        "a/tiny/fake": cell("++", arms=("text@32", "text@128", "text", "text-asked")),
        "b/tiny/fake": cell("-?", pilot=True, arms=("text@32", "text-asked")),
        "c/tiny/fake": {"pilot": False, "arms": {}},
    }
    told = founding(found).sentences
    assert told[0].endswith("is neither shown nor refuted.")
    short, unlimited, asked = told[3:6]
    assert short.startswith("Against a message of at most 32 tokens")
    counted = "8 points more accuracy holds in 1 and fails in 1, and twice the speed holds in 1 and is open in 1."
    assert short.endswith(counted)
    assert asked.endswith(counted)
    assert unlimited.endswith("liked, 8 points more accuracy holds in 1, and twice the speed holds in 1.")
    assert "1 of the 2 cells are pilots, with fewer than the 620 questions that tell 5 points." in told


@pytest.mark.parametrize("untold", [cell("++", arms=("text",)), cell("++", gain=0.0)])
def test_it_takes_messages_for_the_question_and_a_content_gain(untold: Any) -> None:
    told = founding({"a/tiny/fake": untold})
    assert told.standing == "not tested"
    assert told.sentences[0].endswith("that takes a cell with the arm text-asked and a content gain.")
    # What was not tested was not tested in so many cells.
    assert not any(sentence.startswith("It was tested") for sentence in told.sentences)


def test_where_all_cells_are_pilots_that_is_said() -> None:
    told = founding({f"{task}/tiny/fake": cell("??", pilot=True) for task in "ab"})
    assert "All 2 cells are pilots, with fewer than the 620 questions that tell 5 points." in told.sentences


def test_a_sweep_without_text_arms_does_not_test_the_claim() -> None:
    assert has_claims({"a": cell("++")})
    assert not has_claims({"a": {"arms": {}}, "b": cell("++", arms=())})
