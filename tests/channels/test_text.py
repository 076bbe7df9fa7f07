"""Text as the channel: the whole of it, a message up to a cap, a message for the question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Delivery, Reading, Request
from unspoken.channels.text import UNCAPPED_TOKENS
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Generation, Limits, Turn
from unspoken.session import Agent

from .told import QUESTION, SOURCE, answered


def test_full_text_is_the_receivers_own_reading(send: Callable[..., Delivery], receiver: Agent) -> None:
    delivery, own = send("full-text"), receiver.read(SOURCE).cache
    assert delivery.past is not None
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(delivery.past.layers, own.layers, strict=True))
    assert (delivery.bytes_moved, delivery.tokens_prefilled, delivery.tokens_skipped) == (len(SOURCE), len(SOURCE), 0)
    assert not delivery.lossy
    assert delivery.message == SOURCE


def test_text_is_what_the_sender_wrote_up_to_the_cap(send: Callable[..., Delivery], receiver: Agent) -> None:
    short, whole = send("text@24"), send("text")
    # The fake has one token for each byte and writes down what it sees.
    assert short.message == SOURCE[:24]
    assert (short.bytes_moved, short.tokens_prefilled, short.tokens_skipped) == (24, 24, 0)
    assert (short.channel, whole.channel) == ("text@24", "text")
    assert whole.message == SOURCE
    assert answered(receiver, short).text != "Bob"
    assert short.lossy
    assert whole.lossy
    assert short.seconds.capture > 0
    assert short.seconds.transform > 0


@pytest.mark.parametrize("channel", ["text", "text-asked"])
def test_a_shorter_message_is_cut_from_a_longer_one_and_not_written_again(
    channel: str, sender: Agent, receiver: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, fresh = sender.read(SOURCE), sender.read(SOURCE)
    calls: list[int] = []
    generate = sender.engine.generate

    def counted(turns: Sequence[Turn], limits: Limits, *rest: Any) -> tuple[Generation, ...]:
        calls.append(limits.new_tokens)
        return generate(turns, limits, *rest)

    monkeypatch.setattr(sender.engine, "generate", counted)

    def sent(name: str, of: Reading) -> Delivery:
        return build_channel(name).send([Request((of,), QUESTION)], receiver)[0]

    # Growing, the message is written anew; once it came to its end, never again.
    sizes = ["@8", "@16", "", "@16", "@8", "@190"]
    found = [sent(channel + size, reading) for size in sizes]
    assert calls == [8, 16, UNCAPPED_TOKENS]
    anew = [sent(channel + size, replace(fresh, drafts={})) for size in sizes]
    assert [each.message for each in found] == [each.message for each in anew]
    # What is cut from a longer message costs its share of the longer one's time.
    whole, cut = found[2], found[3]
    share = 16 / len(whole.message or "")
    assert cut.seconds.transform == pytest.approx(whole.seconds.transform * share)


def test_text_without_a_cap_still_ends(sender: Agent, receiver: Agent) -> None:
    reading = sender.read("The mill turns. " * 40)
    delivery = build_channel("text").send([Request((reading,), QUESTION)], receiver)[0]
    assert len(sender.engine.encode(delivery.message or "")) == UNCAPPED_TOKENS


def test_text_asked_is_written_for_the_question(send: Callable[..., Delivery]) -> None:
    first, second = send("text-asked"), send("text-asked@30", "Who runs the old mill?")
    assert first.message == "The new mill is run by Bob."
    assert second.message == "The old mill is run by Anna."
    assert (first.channel, second.channel) == ("text-asked", "text-asked@30")
    assert first.bytes_moved == len(first.prompt.token_ids) == len("The new mill is run by Bob.")
    assert (first.tokens_prefilled, first.tokens_skipped) == (0, 0)


def test_text_channels_cross_models(sender: Agent) -> None:
    stranger = Agent("vera", FakeEngine(seed=1))
    for channel in ("full-text", "text", "text-asked"):
        delivery = build_channel(channel).send([Request((sender.read(SOURCE),), QUESTION)], stranger)[0]
        assert answered(stranger, delivery).text == "Bob"
