"""Parts by different ways: each stands behind the one before, at the price of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from unspoken.channels.protocol import Delivery, Request
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.lab.arms import build_arm
from unspoken.lab.parts import _after
from unspoken.lab.received import received
from unspoken.lab.tables import family
from unspoken.session import Agent

READ = ("The old mill is run by Anna.", " The new mill is run by Bob.")
QUESTIONS = ("Who runs the old mill?", "Who runs the new mill?")


def no_donor(reading: Any) -> Any:
    raise AssertionError


def through(name: str, engine: FakeEngine | TransformersEngine, *read: str) -> Delivery:
    senders, receiver = [Agent(f"sender-{at}", engine) for at in range(len(read))], Agent("vera", engine)
    readings = tuple(sender.read(text) for sender, text in zip(senders, read, strict=True))
    first, second = build_arm(name).deliver([Request(readings, each) for each in QUESTIONS], receiver, no_donor)
    assert first is second
    return first


@pytest.mark.parametrize("ways", ["kv,full-text", "full-text,kv", "kv,kv+int8", "text,kv", "full-text,full-text"])
def test_each_part_can_be_asked_for(ways: str, fake: FakeEngine) -> None:
    delivery = through(f"parts:{ways}", fake, *READ)
    replies = Agent("vera", fake).answer(QUESTIONS, [delivery, delivery], Limits())
    assert [reply.text for reply in replies] == ["Anna", "Bob"]
    assert delivery.channel == f"parts:{ways}"


def test_the_price_is_that_of_all_parts(fake: FakeEngine) -> None:
    both, text = through("parts:kv,full-text", fake, *READ), len(READ[1])
    alone = through("kv", fake, READ[0])
    assert both.bytes_moved == alone.bytes_moved + text
    assert (both.tokens_skipped, both.tokens_prefilled) == (len(READ[0]), text)
    assert both.seconds.total > both.seconds.inject > 0


@pytest.mark.parametrize(
    ("parts", "whole"), [("full-text,full-text", "full-text"), ("kv+float32,kv+float32", "kv+float32")]
)
def test_parts_by_one_way_are_that_way(parts: str, whole: str, tiny_engine: Callable[..., TransformersEngine]) -> None:
    engine = tiny_engine("llama")
    apart, together = through(f"parts:{parts}", engine, *READ), through(whole, engine, *READ)
    assert apart.past is not None
    assert together.past is not None
    for ours, theirs in zip(apart.past.layers, together.past.layers, strict=True):
        assert torch.equal(ours.positions, theirs.positions)
        assert torch.allclose(ours.keys, theirs.keys, atol=1e-5)
        assert torch.allclose(ours.values, theirs.values, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("parts:kv", "fewer than two channels"),
        ("parts", "fewer than two channels"),
        ("parts:kv,telepathy", "telepathy"),
    ],
)
def test_parts_that_cannot_be_are_refused(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        build_arm(name)


def test_a_part_may_be_written_for_the_question_if_nothing_stands_behind_it(fake: FakeEngine) -> None:
    senders, receiver = [Agent("lyra", fake), Agent("cc", fake)], Agent("vera", fake)
    readings = tuple(sender.read(text) for sender, text in zip(senders, READ, strict=True))
    requests = [Request(readings, each) for each in QUESTIONS]
    made = build_arm("parts:kv,text-asked").deliver(requests, receiver, no_donor)
    assert made[0] is not made[1]
    assert made[1].message == "The new mill is run by Bob."
    assert receiver.answer(QUESTIONS[1:], made[1:], Limits())[0].text == "Bob"
    with pytest.raises(UsageError, match="Nothing can stand behind what 'text-asked' hands over"):
        build_arm("parts:text-asked,kv").deliver(requests, receiver, no_donor)


def test_as_many_channels_as_parts_are_needed(fake: FakeEngine) -> None:
    with pytest.raises(UsageError, match="names 2 channels, and the source has 3 parts"):
        through("parts:kv,kv", fake, *READ, " The ferry is red.")


def test_tables_say_what_came_how() -> None:
    assert family("parts:kv,full-text") == "content"
    told = received("parts:kv,full-text")
    assert told == "part 1: the sender's cache of the text; part 2: the whole text, which it reads itself"


def test_what_is_computed_again_is_a_share_of_all_columns(fake: FakeEngine) -> None:
    first, second = (through("kv", fake, text) for text in READ)
    told = _after(replace(first, recomputed=0.5, tokens_skipped=3), replace(second, recomputed=0.0, tokens_skipped=7))
    assert told.recomputed == pytest.approx(0.15)
    assert _after(replace(first, tokens_skipped=0), replace(second, tokens_skipped=0)).recomputed == 0.0
