"""Generated facts: apart from what is measured on, the same for the same seed, and each with one answer in its text."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from unspoken.lab.tasks import private_facts as published
from unspoken.train.facts import (
    ADJECTIVES,
    FILLERS,
    POOLS,
    RELATIONS,
    THINGS,
    GeneratedFacts,
    Relation,
    invented,
)
from unspoken.train.lesson import Lesson
from unspoken.train.vocabulary import Vocabulary, reserved

WORDS = Vocabulary(tuple(sorted({f"w{a}{b}{c}" for a in "aeiou" for b in "klmnop" for c in "rstuv"})))
MADE = GeneratedFacts(WORDS)
SEED = 20261128  # That of experiments/fusers/.


def lessons(count: int = 300, seed: int = SEED, facts: int = 6) -> list[Lesson]:
    """The first lessons of a seed."""
    return [GeneratedFacts(WORDS, facts).lesson(seed, number) for number in range(count)]


def words(text: str) -> set[str]:
    """The words of a text, in small letters."""
    return set(re.findall(r"[a-z]+", text.lower()))


def bare(form: str) -> str:
    """A form without what is filled in, in small letters."""
    return " ".join(re.sub(r"\{\w+\}|[.,?]|\bthe\b", " ", form).lower().split())


def pattern_of(form: str) -> re.Pattern[str]:
    """What finds the things and values a form says."""
    pattern = re.escape(form)
    thing = r"(?P<thing>the \w+ of \w+|the \w+ \w+)"
    for mark, found in (("s", thing), ("S", thing), ("v", r"(?P<value>\w+)")):
        pattern = pattern.replace(re.escape("{" + mark + "}"), found)
    return re.compile(pattern, re.IGNORECASE)


SAID = {relation: [pattern_of(form) for form in relation.statements] for relation in RELATIONS}
ASKED = [
    (relation, re.compile(re.escape(form).replace(re.escape("{s}"), "(?P<thing>the .+)")))
    for relation in RELATIONS
    for form in relation.questions
]


def told_in(text: str, relation: Relation) -> set[tuple[str, str]]:
    """The things and values that a text says of a relation, in small letters."""
    sentences = re.split(r"(?<=[.]) ", text)
    found = [pattern.fullmatch(sentence) for pattern in SAID[relation] for sentence in sentences]
    return {(each["thing"].lower(), each["value"].lower()) for each in found if each}


def asked_about(question: str) -> tuple[Relation, str]:
    """The relation and the thing of a question."""
    found = [(relation, match["thing"]) for relation, form in ASKED if (match := form.fullmatch(question))]
    (only,) = found
    return only


def test_it_shares_no_word_with_the_tasks_things_and_values() -> None:
    pools = {word.lower() for pool in POOLS.values() for word in pool}
    own = pools | set(ADJECTIVES) | set(THINGS)
    own |= {word for relation in RELATIONS for form in relation.statements for word in words(bare(form))}
    assert not own & reserved()
    assert reserved() == {
        *published.PLACES, *published.ADJECTIVES, *(value.lower() for kind in published.KINDS for value in kind.values)
    }  # fmt: skip


def test_it_shares_no_sentence_with_the_task() -> None:
    theirs = {bare(each) for kind in published.KINDS for each in (kind.statement, kind.question, kind.stem)}
    for relation in RELATIONS:
        for form in (*relation.statements, *relation.questions, *relation.stems):
            assert bare(form) not in theirs
    assert not set(FILLERS) & set(published.FILLERS)
    assert not {bare(each) for each in FILLERS} & {bare(each) for each in published.FILLERS}


def test_no_text_of_the_published_training_says_a_word_of_the_task() -> None:
    # Names are invented from syllables, and some of the task's could come out of them (Peter, Paris): none does.
    for lesson in [*lessons(520), *lessons(260, facts=12)]:
        assert not words(lesson.text) & reserved()
        assert not {asked.answer.lower() for asked in lesson.asked} & reserved()


@pytest.mark.parametrize("pool", [*POOLS.values(), ADJECTIVES, THINGS, FILLERS])
def test_nothing_is_listed_twice(pool: tuple[str, ...]) -> None:
    assert max(Counter(pool).values()) == 1


def test_every_relation_can_be_said_asked_and_answered() -> None:
    for relation in RELATIONS:
        assert relation.values in {*POOLS, "number", "year", "invented", "word"}
        assert relation.statements
        assert relation.questions
        assert relation.stems
        for form in relation.statements:
            assert form.count("{v}") == 1
            assert form.count("{s}") + form.count("{S}") == 1
            assert form.endswith(".")
        for form in relation.questions:
            assert "{v}" not in form
            assert form.count("{s}") == 1
            assert form[-1] in "?."
        for form in relation.stems:
            assert "{v}" not in form
    questions = [form for relation in RELATIONS for form in relation.questions]
    assert len(questions) == len(set(questions))


@pytest.mark.parametrize("facts", [2, 6, 12, 38])
def test_the_same_seed_and_number_give_the_same_lesson(facts: int) -> None:
    first, second = lessons(40, 1, facts), lessons(40, 1, facts)
    assert first == second
    assert len({lesson.text for lesson in (*first, *lessons(40, 2, facts))}) == 80
    assert all(len(lesson.asked) == facts for lesson in first)


def test_a_lesson_does_not_change() -> None:
    # Source of the oracle: the lesson as it was when the published fusers were trained.
    lesson = GeneratedFacts(Vocabulary(("amber", "candle", "gravity", "ribbon"))).lesson(7, 39)
    assert lesson.text == (
        "A gravity was found in the round balcony. A fire destroyed the golden fountain in 1165. A fire "
        "destroyed the mossy studio in 1932. In the painted cemetery they found a gravity. A doctor designed "
        "the forgotten monastery. The shallow airport was designed by a soldier."
    )
    assert [(each.question, each.stem, each.answer) for each in lesson.asked] == [
        ("What did they find in the painted cemetery?", "It was a", "gravity"),
        ("When did the mossy studio burn down?", "The mossy studio burned down in", "1932"),
        (
            "What was the trade of the designer of the forgotten monastery?",
            "The forgotten monastery was designed by a",
            "doctor",
        ),
        ("What did they find in the round balcony?", "It was a", "gravity"),
        ("When did the golden fountain burn down?", "The golden fountain burned down in", "1165"),
        (
            "What was the trade of the designer of the shallow airport?",
            "The shallow airport was designed by a",
            "soldier",
        ),
    ]


def test_every_answer_is_said_of_the_thing_it_is_asked_of() -> None:
    for lesson in lessons(200):
        for asked in lesson.asked:
            relation, thing = asked_about(asked.question)
            values = {value for what, value in told_in(lesson.text, relation) if what == thing.lower()}
            assert values == {asked.answer.lower()}
            assert asked.answer in lesson.text or asked.answer[0].upper() + asked.answer[1:] in lesson.text


def test_no_thing_is_told_of_twice() -> None:
    # So no question has two answers: each thing has one relation and one value.
    for lesson in lessons(200):
        things = [asked_about(asked.question)[1].lower() for asked in lesson.asked]
        assert len(set(things)) == len(things) == 6
        nouns = [thing.split()[1] if " of " in thing else thing.split()[-1] for thing in things]
        assert len(set(nouns)) == 6  # Not even the noun alone.
        for thing in things:
            assert len(re.findall(rf"\b{thing}\b", lesson.text.lower())) == 1


def test_each_kind_of_fact_is_told_of_two_things() -> None:
    for lesson in lessons(100):
        kinds = Counter(RELATIONS.index(asked_about(asked.question)[0]) for asked in lesson.asked)
        assert sorted(kinds.values()) == [2, 2, 2]


def test_all_relations_things_and_words_come_up() -> None:
    made = lessons(400)
    asked = [each for lesson in made for each in lesson.asked]
    assert {RELATIONS.index(asked_about(each.question)[0]) for each in asked} == set(range(len(RELATIONS)))
    text = " ".join(lesson.text.lower() for lesson in made)
    assert all(f" {noun}" in text for noun in THINGS)
    assert all(filler.lower() in text for filler in FILLERS)
    assert len({each.answer for each in asked} & set(WORDS.words)) > 100


def test_years_numbers_and_names_are_of_their_kind() -> None:
    draw = random.Random(0)
    for _ in range(300):
        assert 1100 <= int(MADE._value("year", draw)) < 2030
        assert 2 <= int(MADE._value("number", draw)) < 10**4 + 2
        assert re.fullmatch(r"[A-Z][a-z]{3,9}", invented(draw))
        assert MADE._value("word", draw) in WORDS.words
