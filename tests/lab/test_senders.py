"""Sources in parts: each part is read by a sender of its own, and every control respects that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.channels.protocol import Reading, Request
from unspoken.engines.fake import FakeEngine
from unspoken.errors import UsageError
from unspoken.lab.experiment import Experiment
from unspoken.lab.record import Sample
from unspoken.lab.runner import Runner, Watcher, load_task, task_hash
from unspoken.lab.tasks.protocol import Item, Measure, Source
from unspoken.session import Agent

from .begin import begin

NAMES = ("Anna", "Bruno", "Clara", "Dario", "Edith", "Felix", "Greta", "Henri")
HALVES = Experiment(
    name="halves", items=8, arms=("none", "full-text", "kv", "kv-deranged"), batch_sources=2, timed_items=1
)


@dataclass(frozen=True)
class Halves:
    """Two facts about a number of houses, each known to another sender."""

    name: str = "halves"
    version: str = "1"
    measure: Measure = "contained"

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        return tuple(_source(at) for at in range(items // 2))


def _source(at: int) -> Source:
    parts = (f"House {at} is run by {NAMES[2 * at]}. ", f"Tower {at} is run by {NAMES[2 * at + 1]}. ")
    items = tuple(
        Item(f"{at}-{nth}", f"Who runs {kind} {at}?", NAMES[2 * at + nth])
        for nth, kind in enumerate(("house", "tower"))
    )
    return Source(f"{at}", "".join(parts), items, parts)


def _runner(experiment: Experiment = HALVES, sources: tuple[Source, ...] | None = None) -> Runner:
    return Runner(experiment, FakeEngine(), sources or Halves().sources(8, 0), "contained")


def _run(runner: Runner, tmp_path: Path, watch: Watcher = lambda *_: None) -> list[Sample]:
    return runner.run(begin(tmp_path, runner.experiment, {}, {}), watch)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Who read what, in order."""
    found: list[tuple[str, str]] = []
    own = Agent.read

    def noted(self: Agent, source: str) -> Reading:
        found.append((self.name, source))
        return own(self, source)

    monkeypatch.setattr(Agent, "read", noted)
    return found


def _right(samples: list[Sample], arm: str) -> list[bool]:
    return [sample.correct for sample in samples if sample.arm == arm and not sample.alone]


def test_a_receiver_can_answer_from_either_senders_part(tmp_path: Path) -> None:
    samples = _run(_runner(), tmp_path)
    assert not [sample.error for sample in samples if sample.error]
    assert all(_right(samples, "kv"))
    assert all(_right(samples, "full-text"))
    assert not any(_right(samples, "none"))
    assert not any(_right(samples, "kv-deranged"))


def test_each_part_is_read_by_its_own_sender(tmp_path: Path, read: list[tuple[str, str]]) -> None:
    experiment = msgspec.structs.replace(HALVES, timed_items=0)
    _run(_runner(experiment), tmp_path)
    sources = Halves().sources(8, 0)
    # The first of the order stands in for the last, and is read again for it.
    for source, times in zip(sources, (2, 1, 1, 1), strict=True):
        assert read.count(("lyra", source.parts[0])) == read.count(("cc", source.parts[1])) == times
    assert len(read) == 2 * (len(sources) + 1)


def test_no_more_readings_are_kept_than_a_batch_and_one_donor_need(tmp_path: Path) -> None:
    runner = _runner()
    most = 0

    def watch(*_: object) -> None:
        nonlocal most
        most = max(most, len(runner._readings))

    _run(runner, tmp_path, watch)
    assert 0 < most <= 2 * (HALVES.batch_sources + 1)


def test_a_request_carries_all_readings_in_the_order_of_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = _runner()
    asked: list[Request] = []
    arm: Any = runner._arms["kv"]
    deliver = type(arm).deliver

    def noted(self: Any, requests: list[Request], *more: Any) -> Any:
        asked.extend(requests)
        return deliver(self, requests, *more)

    monkeypatch.setattr(type(arm), "deliver", noted)
    _run(runner, tmp_path)
    for request in asked:
        assert [reading.reader.name for reading in request.readings] == ["lyra", "cc"]
        assert "".join(reading.source for reading in request.readings) in {each.text for each in runner.sources}


@settings(max_examples=25)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=7))
def test_a_part_stands_in_for_the_same_part_of_another_source(counts: list[int]) -> None:
    sources = tuple(
        Source(str(at), "xy" * count, (Item(f"{at}-0", "Who?", "Bob"),), ("xy",) * count if count > 1 else ())
        for at, count in enumerate(counts)
    )
    runner = _runner(sources=sources)
    for at, count in enumerate(counts):
        for part in range(count):
            donor, place = runner._donor((str(at), part))
            held = counts[int(donor)]
            assert donor != str(at)
            assert place == (part if part < held else part % held)


def test_more_parts_than_senders_are_refused_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspoken.lab.runner.build_task", lambda *_: Halves())
    assert load_task(HALVES)[1] == Halves().sources(8, 0)
    with pytest.raises(UsageError, match="sources in 2 parts, and there are 1 senders: lyra"):
        load_task(msgspec.structs.replace(HALVES, further_senders=()))


def test_a_sender_is_named_once() -> None:
    assert Experiment().senders == ("lyra", "cc", "sender-3", "sender-4")
    assert Experiment(sender="cc").senders == ("cc", "sender-3", "sender-4")


def test_parts_change_what_a_task_asks_and_none_change_nothing() -> None:
    whole = Source("0", "ab", (Item("0-0", "Who?", "Bob"),))
    assert task_hash([whole]) != task_hash([msgspec.structs.replace(whole, parts=("a", "b"))])
    assert msgspec.to_builtins(whole).keys() == {"id", "text", "items"}


@pytest.mark.parametrize(
    ("measure", "answer", "correct", "score"),
    [
        ("contained", "It is Bob", True, 1.0),
        ("f1", "It is Bob", True, 0.5),
        ("f1", "Ann Lee", True, 2 / 3),
        ("f1", "Carl", False, 0.0),
    ],
)
def test_an_open_answer_is_right_if_it_holds_a_right_one(
    measure: Measure, answer: str, correct: bool, score: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = _runner()
    runner.measure = measure
    made: Callable[..., Any] = Agent.answer

    def answering(self: Agent, *args: Any) -> Any:
        return tuple(replace(reply, text=answer) for reply in made(self, *args))

    monkeypatch.setattr(Agent, "answer", answering)
    runner.sources = [Source("0", "a b", (Item("0-0", "Who?", "Ann", others=("Bob",)),))]
    source = runner.sources[0]
    runner._by_id = {"0": source}
    (sample,) = runner._cell("none", [(source, source.items[0])], False, {})
    assert (sample.correct, sample.score) == (correct, pytest.approx(score))
    assert sample.judged == sample.score
