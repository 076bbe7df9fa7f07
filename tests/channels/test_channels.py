"""Every registered channel delivers what it says, on the fake engine: a new channel is tested by existing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.channels import CHANNELS
from unspoken.channels.names import build_channel, parse_channel
from unspoken.channels.protocol import Delivery, Request
from unspoken.engines.protocol import Limits
from unspoken.errors import UsageError
from unspoken.session import Agent

from .told import QUESTION, SOURCE, answered

# Every registered channel with what the receiver of the fake engine can answer through it.
ANSWERS = {"none": "unknown", "full-text": "Bob", "text": "Bob", "text-asked": "Bob", "kv": "Bob", "kv-continue": "Bob"}
# Channels that need more of an engine than the fake one shows, or whose name alone says too little; each has a file.
ELSEWHERE = {"compose", "need", "layers", "latent", "embedding", "activation", "finetune", "fused"}


def test_every_registered_channel_is_tested() -> None:
    assert set(CHANNELS) == set(ANSWERS) | ELSEWHERE
    for name in ELSEWHERE:
        assert (Path(__file__).parent / f"test_{name}.py").exists()


@pytest.mark.parametrize("channel", sorted(ANSWERS))
def test_receiver_answers_from_what_was_delivered(channel: str, send: Callable[..., Delivery], receiver: Agent) -> None:
    delivery = send(channel)
    reply = answered(receiver, delivery)
    assert delivery.channel == channel
    assert reply.text == ANSWERS[channel]
    # The question is read by the receiver in any case, and so is what the delivery left to be read.
    asked = len(receiver.asked(QUESTION).token_ids) + len(delivery.prompt.token_ids)
    assert reply.delivery.tokens_prefilled == delivery.tokens_prefilled + asked
    assert delivery.peak_rss_bytes > 0
    assert reply.delivery.seconds.total >= delivery.seconds.total >= 0
    assert reply.delivery.seconds.first_token > 0


@pytest.mark.parametrize("channel", sorted(ANSWERS))
def test_requests_about_one_reading_get_one_delivery_each(channel: str, sender: Agent, receiver: Agent) -> None:
    one, other = sender.read(SOURCE), sender.read("The inn is painted red.")
    requests = [
        Request((one,), QUESTION),
        Request((other,), "What colour is the inn?"),
        Request((one,), "Who runs the old mill?"),
    ]
    deliveries = build_channel(channel).send(requests, receiver)
    assert len(deliveries) == 3
    if channel != "text-asked":
        # The work for a reading is done once, however many questions there are.
        assert deliveries[0] is deliveries[2]
    replies = receiver.answer([each.question for each in requests], deliveries, Limits())
    expected = ["unknown"] * 3 if channel == "none" else ["Bob", "red", "Anna"]
    assert [reply.text for reply in replies] == expected


@pytest.mark.parametrize("channel", sorted(ANSWERS))
def test_what_the_sender_holds_is_left_as_it_was(channel: str, sender: Agent, receiver: Agent) -> None:
    reading = sender.read(SOURCE)
    before = [layer.keys.clone() for layer in reading.cache.layers]
    prefix = [layer.keys.clone() for layer in receiver.prefix.layers]
    delivery = build_channel(channel).send([Request((reading,), QUESTION)], receiver)[0]
    answered(receiver, delivery)
    assert all(torch.equal(layer.keys, old) for layer, old in zip(reading.cache.layers, before, strict=True))
    assert all(torch.equal(layer.keys, old) for layer, old in zip(receiver.prefix.layers, prefix, strict=True))


def test_none_delivers_nothing(send: Callable[..., Delivery], receiver: Agent) -> None:
    delivery = send("none")
    assert (delivery.bytes_moved, delivery.tokens_prefilled, delivery.tokens_skipped) == (0, 0, 0)
    assert delivery.past is receiver.prefix
    assert delivery.seconds.total == 0


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("kv", ("kv", {})),
        ("text@32", ("text", {"amount": "32"})),
        ("kv+float32", ("kv", {"codec": "float32"})),
        ("x@3+int8", ("x", {"amount": "3", "codec": "int8"})),
        ("kv+int8+blosc2", ("kv", {"codec": "int8+blosc2"})),
        ("compose:blend@0.15", ("compose", {"variant": "blend", "amount": "0.15"})),
        (
            "need:value-norm:backfill=2@0.3+int8",
            ("need", {"variant": "value-norm", "backfill": "2", "amount": "0.3", "codec": "int8"}),
        ),
    ],
)
def test_a_channels_name_carries_its_options(text: str, parsed: tuple[str, dict[str, Any]]) -> None:
    assert parse_channel(text) == parsed


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("none@3", "'none' has no option 'amount'"),
        ("full-text+float32", "'full-text' has no option 'codec'"),
        ("kv@3", "'kv' has no option 'amount'"),
        ("text+float32", "'text' has no option 'codec'"),
        ("kv:fast", "'kv' has no option 'variant'"),
        ("kv+int3", "Did you mean 'int"),
        ("kv-continue+int3", "Did you mean 'int"),
        ("text@zero", "'zero' is no number"),
        ("text@0", "'0' is no number"),
        ("text-asked@-1", "'-1' is no number"),
        ("text@1.5", "'1.5' is no number"),
        ("text@nan", "'nan' is no number"),
        ("kv+", "ends where an option should follow"),
        ("text@", "ends where an option should follow"),
        ("compose:", "ends where an option should follow"),
        ("compose:blend=", "ends where an option should follow"),
        ("compose:blend:align", "two options 'variant'"),
        ("compose:glue", "no way 'glue' to compose"),
        ("compose:align@3", "takes no amount"),
        ("compose:blend@1.5", "'1.5' is no share"),
        ("compose:blend@-1", "'-1' is no share"),
        ("compose:legolink@0.5", "'0.5' is no number"),
        ("kv-continu", "Did you mean 'kv-continue'"),
        ("telepathy", "no channel named 'telepathy'"),
    ],
)
def test_unknown_channels_and_options_are_refused(channel: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_channel(channel)
