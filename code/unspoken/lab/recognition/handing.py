"""What is done to a cache on its way: a channel, two hops, another engine; what arrives is what is recognised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from unspoken.cache import KVCache
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Channel, Reading, Request
from unspoken.engines.gate import ensure_pair
from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.errors import UsageError
from unspoken.identity.cards import Persona
from unspoken.identity.cohort import read_tokens
from unspoken.identity.features import content
from unspoken.lab.recognition.people import Mind, told
from unspoken.session import BRIEFLY

# What the receiver asks, for channels that send what a question needs.
QUESTION = BRIEFLY.format(question="What is this text about?")
OTHER_ENGINES = ("llamacpp", "transformers")


@dataclass(frozen=True)
class Handed:
    """Content columns as they arrived.

    Attributes:
        columns: Position-free.
        tokens: The whole text behind them.
        start: The text's first position in its sender's cache, where columns may be missing at its beginning.
    """

    columns: KVCache = field(repr=False)
    tokens: tuple[int, ...]
    start: int | None = None


def read_all(mind: Mind, texts: Sequence[tuple[int, ...]]) -> list[Handed]:
    """Return the columns an agent has of each text, not handed over at all."""
    return [Handed(read_tokens(mind.engine, mind.prefix, ids), ids) for ids in texts]


def handed(
    persona: Persona,
    condition: str,
    engine: Engine,
    texts: Sequence[tuple[int, ...]],
    other: Callable[[str], Engine],
) -> list[Handed]:
    """Let an agent read texts and hand its columns over.

    Args:
        persona: The agent, told by its card.
        condition: An engine's name, `two-hops`, or a channel with its options.
        engine: The model.
        texts: As tokens.
        other: Opens the same model in another engine.

    Raises:
        UsageError: If there is no such channel.
        GateFailed: If the other engine's caches are not understood here.
    """
    if condition in OTHER_ENGINES:
        there = other(condition)
        ensure_pair(there.name, engine, lambda: there)
        return read_all(told(persona, "card", there), texts)
    hops = 2 if condition == "two-hops" else 1
    channel: Channel = build_channel("kv" if hops == 2 else condition)
    sender, receiver = told(persona, "card", engine), Mind("receiver", engine)
    return [_sent(sender, receiver, channel, ids, hops) for ids in texts]


def _sent(sender: Mind, receiver: Mind, channel: Channel, ids: tuple[int, ...], hops: int) -> Handed:
    cache = sender.engine.prefill(Prompt((Piece("content", ids),)), sender.prefix)
    reading, start = Reading(sender, "", cache, 0.0), sender.prefix.columns
    for _ in range(hops):
        (delivery,) = channel.send([Request((reading,), QUESTION)], receiver)
        start = receiver.prefix.columns
        if delivery.past is None:
            raise UsageError(f"The channel '{delivery.channel}' hands no columns over.", "Choose one that does.")
        reading = replace(reading, reader=receiver, cache=delivery.past)
    return Handed(content(reading.cache), ids, start)
