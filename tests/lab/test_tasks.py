"""Every registered task asks the same again, and can be answered from its source and from nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest

from unspoken.lab.tasks import TASKS
from unspoken.lab.tasks.private_facts import FACTS, KINDS, OPTIONS, PrivateFacts
from unspoken.lab.tasks.protocol import Item, Source

SEEDS = (0, 1, 20261123)


@pytest.fixture(params=sorted(TASKS))
def task(request: pytest.FixtureRequest) -> Any:
    """A registered task: a test that takes it runs for each."""
    return TASKS.load(request.param)()


@pytest.fixture(params=SEEDS)
def facts(request: pytest.FixtureRequest) -> list[tuple[Source, Item]]:
    """Three hundred questions of the private facts, with their sources."""
    return [(source, item) for source in PrivateFacts().sources(300, request.param) for item in source.items]


def _count(words: str, text: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(words)}(?!\w)", text))


def test_a_task_is_known_by_its_registered_name(task: Any) -> None:
    assert task.name in TASKS
    assert task.version


def test_the_same_seed_asks_the_same_and_another_seed_something_else(task: Any) -> None:
    assert task.sources(30, 5) == task.sources(30, 5)
    assert task.sources(30, 5) != task.sources(30, 6)


def test_there_are_at_least_as_many_questions_as_asked_for(task: Any) -> None:
    for wanted in (2, 7, 48):
        assert sum(len(source.items) for source in task.sources(wanted, 0)) >= wanted


def test_questions_and_sources_are_named_apart(task: Any) -> None:
    sources = task.sources(60, 0)
    items = [item.id for source in sources for item in source.items]
    assert len(set(items)) == len(items)
    assert len({source.id for source in sources}) == len({source.text for source in sources}) == len(sources)


def test_the_gold_answer_is_one_of_the_options(task: Any) -> None:
    for source in task.sources(60, 0):
        for item in source.items:
            assert item.question.strip()
            assert item.gold.strip()
            assert not item.options or item.options.count(item.gold) == 1


def test_more_questions_go_on_where_fewer_ended() -> None:
    assert PrivateFacts().sources(60, 9)[:4] == PrivateFacts().sources(24, 9)


def test_the_gold_answer_is_in_the_text_exactly_once(facts: list[tuple[Source, Item]]) -> None:
    for source, item in facts:
        assert _count(item.gold, source.text) == 1
        assert _count(f"{item.stem} {item.gold}.", source.text) == 1
        assert _count(item.stem, source.text) == 1


def test_the_question_alone_does_not_hold_the_answer(facts: list[tuple[Source, Item]]) -> None:
    for _, item in facts:
        assert not any(_count(option, f"{item.question} {item.stem}") for option in item.options)


def test_six_options_of_one_kind_two_of_them_in_the_text(facts: list[tuple[Source, Item]]) -> None:
    kinds = [set(kind.values) for kind in KINDS]
    for source, item in facts:
        assert len(set(item.options)) == len(item.options) == OPTIONS == 6
        assert list(item.options) == sorted(item.options)
        assert sum(set(item.options) <= kind for kind in kinds) == 1
        assert sum(_count(option, source.text) for option in item.options) == 2


def test_no_place_in_a_source_is_used_twice(facts: list[tuple[Source, Item]]) -> None:
    for source in {source.id: source for source, _ in facts}.values():
        assert len(source.items) == FACTS == 6
        stems = [item.stem for item in source.items]
        assert len({stem.split()[1] for stem in stems}) == len({stem.split()[2] for stem in stems}) == FACTS


def test_guessing_gets_one_in_six(facts: list[tuple[Source, Item]]) -> None:
    # No position in the list of options is favoured: a receiver that always takes the same one is at chance.
    count = len(facts)
    hits = [sum(item.options[at] == item.gold for _, item in facts) for at in range(OPTIONS)]
    assert sum(hits) == count
    # Four standard deviations of a binomial with one in six.
    spread = 4 * (count * (1 / 6) * (5 / 6)) ** 0.5
    assert all(abs(hit - count / 6) < spread for hit in hits)


def test_values_of_different_kinds_do_not_overlap() -> None:
    values = [value for kind in KINDS for value in kind.values]
    assert len(set(values)) == len(values)
