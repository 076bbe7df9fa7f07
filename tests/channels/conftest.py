"""Agents on tiny models with enough layers to select among, and a way to send through a channel of a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from .told import QUESTION, SOURCE

if TYPE_CHECKING:
    from unspoken.channels.protocol import Delivery
    from unspoken.engines.fake import FakeEngine
    from unspoken.engines.transformers import TransformersEngine
    from unspoken.session import Agent

LAYERS = 5


@pytest.fixture
def deep(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """A tiny model with five layers."""
    return tiny_engine("llama", num_hidden_layers=LAYERS)


@pytest.fixture
def deliver() -> Callable[..., Delivery]:
    """Let senders read a text each and send it all through a channel of a name."""

    def make(channel: str, receiver: Agent, *read: tuple[Agent, str], question: str = "Who?") -> Delivery:
        from unspoken.channels.names import build_channel
        from unspoken.channels.protocol import Request

        readings = tuple(sender.read(text) for sender, text in read)
        (delivery,) = build_channel(channel).send([Request(readings, question)], receiver)
        return delivery

    return make


@pytest.fixture
def sender(fake: FakeEngine) -> Agent:
    """An agent whose system prompt holds a secret."""
    from unspoken.session import Agent

    return Agent("lyra", fake, "The password of the sender is swordfish.")


@pytest.fixture
def receiver(fake: FakeEngine) -> Agent:
    """Another agent on the same model, with a longer card."""
    from unspoken.session import Agent

    return Agent("vera", fake, "You are Vera. You answer in one word and you never guess.")


@pytest.fixture
def send(sender: Agent, receiver: Agent, deliver: Callable[..., Delivery]) -> Callable[..., Delivery]:
    """Send the source through a channel of a name and return the one delivery."""

    def once(channel: str, question: str = QUESTION) -> Delivery:
        return deliver(channel, receiver, (sender, SOURCE), question=question)

    return once
