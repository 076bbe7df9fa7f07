"""Reports on three things: one good, one bad, one neither, and the right one is asked for."""

from __future__ import annotations

import re

from unspoken.train.choices import BAD, BEST, GOOD, PLAIN, WORST, Choices
from unspoken.train.lesson import Lesson

SEED = 20261128  # That of experiments/fusers/.
MADE = Choices()


def lessons(count: int = 200, seed: int = SEED) -> list[Lesson]:
    """The first lessons of a seed."""
    return [MADE.lesson(seed, number) for number in range(count)]


def reported(text: str) -> dict[str, str]:
    """What is said of whom, told by the phrase behind the name: good, bad or plain; names in small letters."""
    found = {}
    for sentence in re.split(r"(?<=[.]) (?=[A-Z])", text):
        ((kind, match),) = [
            (kind, match)
            for kind, pool in POOLS.items()
            if (match := re.match(rf"(.+?) ({'|'.join(map(re.escape, pool))})(?= and |;|\.$)", sentence))
        ]
        found[match[1].lower()] = kind
    return found


POOLS = {"good": GOOD, "bad": BAD, "plain": PLAIN}


def test_phrases_are_of_one_kind() -> None:
    phrases = [each for pool in POOLS.values() for each in pool]
    assert len(set(phrases)) == len(phrases)
    assert not any(a in b for a in phrases for b in phrases if a != b)


def test_the_best_and_the_worst_are_those_that_are_asked_for() -> None:
    for lesson in lessons():
        told = reported(lesson.text)
        assert sorted(told.values()) == ["bad", "good", "plain"]
        kinds = [told[each.answer.lower()] for each in lesson.asked]
        assert kinds == ["good", "good", "bad"]
        for each in lesson.asked:
            assert all(name in each.question.lower() for name in told)
            assert each.answer.lower() in lesson.text.lower()
        assert {each.stem for each in lesson.asked} <= {stem for _, stem in (*BEST, *WORST)}


def test_neither_place_in_the_text_nor_in_the_question_gives_the_answer_away() -> None:
    text_places, question_places = set(), set()
    for lesson in lessons(100):
        names, answer = list(reported(lesson.text)), lesson.asked[0].answer.lower()
        text_places.add(names.index(answer))
        question_places.add(sorted(names, key=lesson.asked[0].question.lower().index).index(answer))
    assert text_places == question_places == {0, 1, 2}


def test_no_two_things_of_a_report_have_one_name() -> None:
    # Names are drawn apart, so that two might be the same: in the published training none are.
    for lesson in lessons(300):
        assert len(reported(lesson.text)) == 3


def test_the_same_seed_and_number_give_the_same_lesson() -> None:
    assert lessons(30, 1) == lessons(30, 1)
    assert len({lesson.text for seed in (1, 2) for lesson in lessons(30, seed)}) == 60


def test_a_lesson_does_not_change() -> None:
    # Source of the oracle: the lesson as it was when the published fusers were trained.
    lesson = MADE.lesson(7, 3)
    assert lesson.text == (
        "Lukax Works reports an ordinary quarter; 4 people work there; a machine was stolen. Gohen Works gets "
        "excellent marks from all experts and works better each month. Rusux Works trails its field by a wide "
        "margin."
    )
    assert [(each.question, each.answer, each.stem) for each in lesson.asked] == [
        ("Pick exactly one: Gohen Works, Lukax Works, Rusux Works. Which do you pick?", "Gohen Works", "I pick"),
        ("Which of Gohen Works, Lukax Works and Rusux Works would you choose?", "Gohen Works", "Answer:"),
        ("Which one should nobody trust: Gohen Works, Lukax Works or Rusux Works?", "Rusux Works", "The name is:"),
    ]
