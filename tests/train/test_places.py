"""People at places: each question has one country, which the place is in and the text does not say."""

from __future__ import annotations

import re
from collections import Counter

from unspoken.train.facts import POOLS
from unspoken.train.lesson import Lesson
from unspoken.train.places import COUNTRIES, QUESTIONS, Places

SEED = 20261128  # That of experiments/fusers/.


def lessons(count: int = 300, seed: int = SEED) -> list[Lesson]:
    """The first lessons of a seed."""
    return [Places().lesson(seed, number) for number in range(count)]


def test_each_place_is_in_one_country() -> None:
    places = [place for names in COUNTRIES.values() for place in names.split("|")]
    assert len(places) == len(set(places))
    assert not any(a in b for a in places for b in places if a != b)


def test_the_answer_is_the_country_of_the_place_beside_the_name() -> None:
    for lesson in lessons():
        told = [sentence for sentence in lesson.text.split(".") if sentence]
        assert len(told) == len(lesson.asked)
        for asked in lesson.asked:
            ((who, sentence),) = [
                (who, each) for who in POOLS["person"] for each in told if has(asked.question, who) and has(each, who)
            ]
            countries = [name for name, places in COUNTRIES.items() if any(at in sentence for at in places.split("|"))]
            assert countries == [asked.answer]
            assert asked.stem in {stem.format(who=who) for _, stem in QUESTIONS}


def has(text: str, word: str) -> bool:
    """Whether a word stands in a text."""
    return re.search(rf"\b{word}\b", text) is not None


def test_the_text_does_not_say_the_country() -> None:
    for lesson in lessons():
        assert not any(asked.answer in lesson.text for asked in lesson.asked)


def test_all_countries_and_numbers_of_people_come() -> None:
    made = lessons()
    assert {asked.answer for lesson in made for asked in lesson.asked} == set(COUNTRIES)
    assert set(Counter(len(lesson.asked) for lesson in made)) == {1, 2, 3}


def test_the_same_seed_and_number_give_the_same_lesson() -> None:
    assert lessons(40, 1) == lessons(40, 1)
    assert lessons(40, 1) != lessons(40, 2)
