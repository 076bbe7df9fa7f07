"""Lists of words: questions are about neighbours in the list, and every word stands there once."""

from __future__ import annotations

import re

import pytest

from unspoken.train.lesson import Asked
from unspoken.train.lists import AFTER, ASKED, BEFORE, HEADS, STEMS, WordLists
from unspoken.train.vocabulary import Vocabulary

WORDS = Vocabulary(tuple(sorted({f"w{a}{b}{c}" for a in "aeiou" for b in "klmnop" for c in "rstuv"})))


def listed(text: str) -> list[str]:
    """The words of a list, in order."""
    (words,) = {found[1] for head in HEADS if (found := re.fullmatch(head.replace("{words}", "(.+)"), text))}
    return words.split(", ")


def named_in(question: str, forms: tuple[str, ...]) -> str | None:
    """The word a question of some forms is about."""
    found = [
        match[1] for form in forms if (match := re.fullmatch(re.escape(form).replace(r"\{word\}", "(.+)"), question))
    ]
    return found[0] if found else None


@pytest.mark.parametrize("words", [2, 5, 20])
def test_answers_are_the_neighbours_that_are_asked_for(words: int) -> None:
    made = WordLists(WORDS, words)
    ways = set()
    for number in range(60):
        lesson = made.lesson(3, number)
        order = listed(lesson.text)
        assert len(order) == len(set(order)) == words
        assert set(order) <= set(WORDS.words)
        assert len(lesson.asked) == min(ASKED, words - 1)
        for each in lesson.asked:
            after, before = named_in(each.question, AFTER), named_in(each.question, BEFORE)
            assert (after is None) != (before is None)
            ways.add(after is None)
            expected = order[order.index(after) + 1] if after else order[order.index(str(before)) - 1]
            assert each.answer == expected
            assert before != order[0]
            assert each.stem in STEMS
        assert len({each.question for each in lesson.asked}) == len(lesson.asked)
    assert ways == {True, False}


def test_the_same_seed_and_number_give_the_same_lesson() -> None:
    made = WordLists(WORDS, 6)
    assert [made.lesson(1, number) for number in range(20)] == [made.lesson(1, number) for number in range(20)]
    assert len({made.lesson(seed, number).text for seed in (1, 2) for number in range(20)}) == 40


def test_a_lesson_does_not_change() -> None:
    # Source of the oracle: the lesson as it was when the published fusers were trained.
    lesson = WordLists(Vocabulary(("amber", "candle", "gravity", "ribbon")), 4).lesson(7, 3)
    assert lesson.text == "Items on the list: ribbon, amber, gravity, candle."
    assert lesson.asked == (
        Asked("What stands in front of candle in the list?", "gravity", "Answer:"),
        Asked("What follows amber?", "gravity", "The word is"),
        Asked("What stands behind ribbon in the list?", "amber", "The word is"),
    )
