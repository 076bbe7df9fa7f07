"""Several hops: a channel handed on by agents in between, at the price of all hand-overs together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from unspoken.channels.protocol import Delivery, Request
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.lab.arms import build_arm
from unspoken.lab.received import received
from unspoken.lab.tables import family
from unspoken.session import Agent

SOURCE, QUESTION = "The old mill is run by Anna. The new mill is run by Bob.", "Who runs the new mill?"


def no_donor(reading: Any) -> Any:
    raise AssertionError


def through(name: str, engine: FakeEngine | TransformersEngine, *questions: str) -> tuple[Delivery, ...]:
    sender, receiver = Agent("lyra", engine), Agent("vera", engine)
    reading = sender.read(SOURCE)
    return build_arm(name).deliver([Request((reading,), each) for each in questions], receiver, no_donor)


@pytest.mark.parametrize("channel", ["kv", "kv+int8", "text", "text-asked", "full-text"])
def test_what_was_said_arrives_over_several_hops(channel: str, fake: FakeEngine) -> None:
    (delivery,) = through(f"relay@3:{channel}", fake, QUESTION)
    (reply,) = Agent("vera", fake).answer([QUESTION], [delivery], Limits())
    assert (reply.text, delivery.channel) == ("Bob", f"relay@3:{channel}")


def test_one_hop_is_the_channel_alone(fake: FakeEngine) -> None:
    (one,), (plain,) = through("relay@1:kv", fake, QUESTION), through("kv", fake, QUESTION)
    assert (one.bytes_moved, one.tokens_skipped) == (plain.bytes_moved, plain.tokens_skipped)


def test_bytes_and_seconds_are_those_of_all_hops(fake: FakeEngine) -> None:
    (three,), (one,) = through("relay@3:kv", fake, QUESTION), through("kv", fake, QUESTION)
    assert three.bytes_moved == 3 * one.bytes_moved
    assert three.seconds.capture > three.seconds.transform


def test_a_message_is_cut_at_the_first_hop_and_handed_on(fake: FakeEngine) -> None:
    (delivery,) = through("relay@2:text@24", fake, QUESTION)
    assert delivery.message == SOURCE[:24]
    assert delivery.bytes_moved == 2 * 24


def test_questions_about_one_reading_share_the_way(fake: FakeEngine) -> None:
    first, second = through("relay@3:kv", fake, QUESTION, "Who runs the old mill?")
    assert first is second


def test_whole_columns_are_the_same_after_any_number_of_hops(tiny_engine: Callable[..., TransformersEngine]) -> None:
    engine = tiny_engine("llama")
    (far,), (near,) = through("relay@5:kv+float32", engine, "?"), through("kv+float32", engine, "?")
    assert far.past is not None
    assert near.past is not None
    for there, here in zip(far.past.layers, near.past.layers, strict=True):
        assert torch.equal(there.values, here.values)
        assert torch.allclose(there.keys, here.keys, atol=1e-5)
        assert torch.equal(there.positions, here.positions)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("relay:kv", "lacks a number of hops"),
        ("relay@3", "lacks a number of hops"),
        ("relay@0:kv", "'0' is no number"),
        ("relay@x:kv", "'x' is no number"),
        ("relay@99:kv", "has 99 hops"),
        ("relay@2:telepathy", "telepathy"),
    ],
)
def test_a_relay_that_cannot_be_is_refused(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        build_arm(name)


def test_what_hands_nothing_on_is_refused(fake: FakeEngine) -> None:
    with pytest.raises(UsageError, match="'none' hands over nothing"):
        through("relay@2:none", fake, QUESTION)


def test_tables_say_what_a_relay_is() -> None:
    assert [family(name) for name in ("relay@2:kv", "relay@2:text@32")] == ["content", "text"]
    assert received("relay@3:kv") == "the sender's cache of the text, handed on from agent to agent 3 times"
