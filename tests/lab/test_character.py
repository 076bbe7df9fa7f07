"""The task about who a receiver is: options, cards, and that the right agents read and are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.channels.protocol import Reading
from unspoken.engines.fake import FakeEngine
from unspoken.errors import UsageError
from unspoken.lab.experiment import Experiment
from unspoken.lab.runner import Runner
from unspoken.lab.tasks import build_task
from unspoken.session import Agent, Reply

from .begin import begin

ITEMS = 40


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), items=st.integers(1, 60))
def test_options_are_those_of_six_agents_without_anything_in_common(seed: int, items: int) -> None:
    own, theirs = (build_task(name).sources(items, seed) for name in ("character", "character:whose=sender"))
    assert len(own) == -(-items // 4)
    for mine, yours in zip(own, theirs, strict=True):
        assert mine.cast == yours.cast
        assert mine.cast is not None
        receiver, sender = mine.cast.receiver, mine.cast.sender
        for left, right in zip(mine.items, yours.items, strict=True):
            assert (left.question, left.options) == (right.question, right.options)
            assert len(set(left.options)) == 6
            assert {left.gold, right.gold} <= set(left.options)
            assert left.gold != right.gold
        assert (mine.items[0].gold, yours.items[0].gold) == (receiver.name, sender.name)
        assert receiver.name in receiver.card
        # What an agent is asked of itself stands in its card, in this word or another.
        assert mine.items[1].gold.split()[-1] in receiver.card
        assert yours.items[1].gold.split()[-1] in sender.card


def test_sources_are_the_same_however_many_are_asked_for() -> None:
    few, many = (build_task("character").sources(items, 3) for items in (8, 40))
    assert many[: len(few)] == few


def test_nobody_elses_card_is_asked_about() -> None:
    with pytest.raises(UsageError, match="There is no card of 'donor'"):
        build_task("character:whose=donor")


def test_each_source_is_read_and_answered_by_agents_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(
        name="who", task="character", items=ITEMS, arms=("none", "kv", "kv-deranged"), batch_sources=3, timed_items=1
    )
    sources = build_task("character").sources(ITEMS, experiment.seed)
    read: list[tuple[Agent, str]] = []
    asked: dict[str, str] = {}
    own_read, own_answer = Agent.read, Agent.answer

    def noted(self: Agent, source: str) -> Reading:
        read.append((self, source))
        return own_read(self, source)

    def answering(self: Agent, questions: Any, deliveries: Any, limits: Any, options: Any, stems: Any) -> Any:
        for each in options:
            asked[" ".join(each)] = self.card
        found: tuple[Reply, ...] = own_answer(self, questions, deliveries, limits, options, stems)
        return found

    monkeypatch.setattr(Agent, "read", noted)
    monkeypatch.setattr(Agent, "answer", answering)
    folder = begin(tmp_path, experiment, {}, {})
    samples = Runner(experiment, FakeEngine(), sources).run(folder, lambda *_: None)
    assert [each.error for each in samples if each.error] == []
    assert {(each.item, each.arm) for each in samples} == {
        (item.id, arm) for source in sources for item in source.items for arm in experiment.arms
    }
    cards = {source.text: source.cast for source in sources}
    assert {text for _, text in read} == set(cards)
    for agent, text in read:
        cast = cards[text]
        assert cast is not None
        assert (agent.name, agent.card) == (cast.sender.name, cast.sender.card)
    for source in sources:
        for item in source.items:
            assert source.cast is not None
            assert asked[" ".join(f" {option}" for option in item.options)] == source.cast.receiver.card
