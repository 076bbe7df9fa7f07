"""What a run is said to have shown, from figures written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unspoken.lab.verdict import claims, judge


def figures(low: float, high: float, p: float | None = 1e-4, **more: Any) -> dict[str, Any]:
    """Return the figures of a large run with a content gain."""
    mean = (low + high) / 2
    arms = {"none": 0.2, "full-text": 0.9, "kv": 0.3 + mean, "kv-deranged": 0.3}
    base = {
        "pilot": False,
        "items": 640,
        "arms": {arm: {"n": 640, "accuracy": rate, "failures": 0} for arm, rate in arms.items()},
        "content_gain": {"mean": mean, "low": low, "high": high, "p": p},
        "reading_gain": {"mean": 0.7, "low": 0.6, "high": 0.8},
    }
    return base | more


@pytest.mark.parametrize(
    ("low", "high", "p", "answer"),
    [
        (0.25, 0.55, 1e-6, "yes"),
        (0.001, 0.1, 0.04, "yes"),
        (0.0, 0.2, 0.01, "not shown"),
        (0.01, 0.2, 0.06, "not shown"),
        (0.01, 0.2, None, "not shown"),
        (-0.1, 0.2, 0.6, "not shown"),
        (-0.02, 0.03, 0.9, "no"),
        (0.0, 0.0, 1.0, "no"),
        (-0.4, -0.2, 1e-6, "no"),
    ],
)
def test_answer(low: float, high: float, p: float | None, answer: str) -> None:
    verdict = judge(figures(low, high, p))
    assert verdict.answer == answer
    opening = {"yes": "Yes,", "no": "No,", "not shown": "It is not shown"}[answer]
    assert verdict.sentences[0].startswith(opening)


def test_questions_about_the_receiver_do_not_ask_whether_understanding_moved() -> None:
    verdict = judge(figures(-0.4, -0.2, about="receiver"))
    assert verdict.answer == "not asked"
    (sentence,) = verdict.sentences
    assert sentence.startswith("Whether understanding moved was not asked")
    assert "20.0 % with nothing, 90.0 % reading the text, 0.0 % with the sender's columns of it" in sentence
    assert judge(figures(-0.4, -0.2, about="text")).answer == "no"


def test_pilot_cannot_show_that_nothing_moved() -> None:
    verdict = judge(figures(0.0, 0.0, 1.0, pilot=True, items=12))
    assert verdict.answer == "not shown"
    assert "pilot" in verdict.sentences[-1]
    assert "12 questions" in verdict.sentences[-1]


def test_task_on_which_reading_does_not_help_cannot_show_that_nothing_moved() -> None:
    found = figures(0.0, 0.0, 1.0, reading_gain={"mean": 0.02, "low": -0.01, "high": 0.05})
    verdict = judge(found)
    assert verdict.answer == "not shown"
    assert "reading the text itself is not shown to help" in verdict.sentences[0]
    worse = judge(found | {"content_gain": {"mean": -0.2, "low": -0.3, "high": -0.1, "p": 0.001}})
    assert worse.answer == "no"
    assert "cannot tell" not in worse.sentences[0]


def test_what_reading_does_has_to_be_known_to_say_that_nothing_moved() -> None:
    found = figures(0.0, 0.0, 1.0)
    del found["reading_gain"]
    assert judge(found).answer == "not shown"


def test_twins_are_told_apart_by_what_reading_cannot_show() -> None:
    nothing = {"mean": 0.0, "low": 0.0, "high": 0.0}
    verdict = judge(figures(-0.02, 0.02, 1.0, reading_gain=nothing, twins={"questions": 640}))
    assert verdict.answer == "no"
    assert "cannot tell" not in judge(figures(-0.1, 0.2, 0.5, reading_gain=nothing, twins={})).sentences[0]


def test_numbers_beside_the_claim_are_told_from_it() -> None:
    (claim,) = claims(figures(0.1, 0.2, claims={"text": claimed(0.0, 0.0796, (1.5, 1.958), 8)}))
    assert (claim.accuracy, claim.speed) == ("does not hold", "does not hold")
    assert claim.accuracy_text.endswith("[0.0, 7.96]")
    assert claim.speed_text == "1.7 times [1.5, 1.96]"


def test_numbers_stand_in_the_sentence() -> None:
    first = judge(figures(0.25, 0.55)).sentences[0]
    assert "70.0 %" in first
    assert "30.0 %" in first
    assert "40.0 points (95 % interval 25.0 to 55.0, p < 0.001)" in first


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.02, 0.2, "helps"), (-0.2, -0.02, "does harm"), (0.0, 0.2, "is not shown to matter")],
)
def test_presence(low: float, high: float, words: str) -> None:
    effect = {"mean": (low + high) / 2, "low": low, "high": high}
    assert words in judge(figures(0.1, 0.2, presence_effect=effect)).sentences[1]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.02, 0.02, "equal to within 5 points"),
        (-0.1, 0.02, "is not shown"),
        (-0.2, -0.06, "falls short of the text by 5 points or more"),
        (0.06, 0.2, "exceeds the text by 5 points or more"),
    ],
)
def test_closeness_to_reading_the_text(low: float, high: float, words: str) -> None:
    equal = {"mean": 0.0, "low": low, "high": high, "margin": 0.05, "equal": low > -0.05 and high < 0.05}
    gap = {"kv": {"mean": 0.96, "low": 0.9, "high": 1.02}}
    sentence = judge(figures(0.1, 0.2, pgr=gap, kv_equals_full_text=equal)).sentences[2]
    assert "96 % (95 % interval 90 to 102)" in sentence
    assert words in sentence


def test_undefined_pgr_is_said_to_be_so() -> None:
    found = figures(0.1, 0.2, pgr={"kv": {"mean": None, "low": None, "high": None}})
    found["arms"]["full-text"]["accuracy"] = 0.2
    assert "cannot be told" in judge(found).sentences[2]


def claimed(low: float, high: float, ratio: tuple[float | None, float | None], timed: int) -> dict[str, Any]:
    """Return how a claim stands in the figures."""
    middle = None if ratio[0] is None or ratio[1] is None else (ratio[0] + ratio[1]) / 2
    return {
        "accuracy_difference": {"mean": (low + high) / 2, "low": low, "high": high},
        "time_ratio": {"mean": middle, "low": ratio[0], "high": ratio[1]},
        "timed_items": timed,
    }


def test_claims_hold_fail_or_are_not_shown() -> None:
    found = figures(
        0.1,
        0.2,
        claims={
            "text@16": claimed(0.08, 0.3, (2.0, 9.0), 8),
            "text@64": claimed(0.0, 0.3, (1.5, 2.5), 8),
            "text": claimed(-0.1, 0.07, (0.5, 1.9), 8),
        },
    )
    assert [each.accuracy for each in claims(found)] == ["holds", "not shown", "does not hold"]
    assert [each.speed for each in claims(found)] == ["holds", "not shown", "does not hold"]
    accuracy, speed = judge(found).sentences[3:5]
    for part in ("holds against text@16 (", "is not shown against text@64 (", "does not hold against text ("):
        assert part in accuracy
        assert part in speed
    assert "measured on 8 items" in speed


def test_one_timed_item_shows_no_speed() -> None:
    (claim,) = claims(figures(0.1, 0.2, claims={"text": claimed(0.1, 0.2, (5.0, 5.0), 1)}))
    assert claim.speed == "not shown"


def test_untimed_run_has_no_word_on_speed() -> None:
    found = figures(0.1, 0.2, claims={"text": claimed(0.1, 0.2, (None, None), 0)})
    assert claims(found)[0].speed == "not measured"
    assert "no items were timed" in judge(found).sentences[4]


def test_missing_figures_are_named() -> None:
    verdict = judge({"arms": {}})
    assert verdict.answer == "not shown"
    assert len(verdict.sentences) >= 3
    assert "kv-deranged" in verdict.sentences[0]
    missing = figures(0.1, 0.2, content_gain={"mean": None, "low": None, "high": None, "p": 1.0})
    assert judge(missing).answer == "not shown"


def test_doubts_about_the_run_are_warnings(build: Callable[..., Any]) -> None:
    rows = {"kv": "1100", "kv-shifted": "1110", "kv-deranged": "0000"}
    verdict = judge(build(rows, failed={"kv-deranged": 1}).metrics | {"gate": {"passed": False}, "alone_agrees": 0.5})
    for words in ("gate", "kv-shifted", "kv-deranged: 1 of 4", "50.0 %", "only 2 texts"):
        assert any(words in warning for warning in verdict.warnings), words


def test_verdict_on_a_whole_run(usual: Any) -> None:
    verdict = judge(usual.metrics)
    assert 3 <= len(verdict.sentences) <= 6
    assert verdict.answer == "not shown"
    assert all(
        sentence.endswith(".") and "None" not in sentence and "nan" not in sentence for sentence in verdict.sentences
    )


def test_a_run_judged_by_f1_is_told_in_f1(usual: Any) -> None:
    arms = {
        arm: of | {"score": {"mean": of["accuracy"] / 2, "low": 0.0, "high": 1.0}}
        for arm, of in usual.metrics["arms"].items()
    }
    first = judge(usual.metrics | {"arms": arms, "measure": "f1"}).sentences[0]
    assert "with the right cache the receiver reached an F1 of 37.5 %, with the cache of another text 12.5 %" in first
