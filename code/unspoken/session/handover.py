"""Hand on, from one mind to another, what the other does not know."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from unspoken.cache import KVCache
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Channel, Delivery, Request
from unspoken.channels.text import Text, TextAsked, read_by
from unspoken.errors import UsageError
from unspoken.session.events import HandedOver, Passage
from unspoken.session.mind import APART, Held, Mind
from unspoken.session.topology import Pair
from unspoken.transforms.rope import RemoveRope

# With these, the sender tells in its own words all that the receiver lacks.
WRITING = (Text, TextAsked)

Recognise = Callable[[KVCache], str | None]
"""Names the agent whose columns these look like."""


@dataclass(frozen=True)
class Link:
    """A way from one agent to another.

    Args:
        name: The channel's name with its options.
    """

    name: str
    channel: Channel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel", build_channel(self.name))


class Parcel(NamedTuple):
    """What one delivery brings.

    Attributes:
        passage: What the receiver gets; a message is a passage of its own.
        held: What it stands for, in the sender's mind.
    """

    passage: Passage
    held: tuple[Held, ...]


def linked(pairs: Sequence[Pair], channel: str, others: Mapping[Pair, str]) -> dict[Pair, Link]:
    """Return a topology's links with their channels.

    Args:
        pairs: The links there are, (sender, receiver).
        channel: The usual channel.
        others: Channels of single links.

    Raises:
        UsageError: If one of these is no link, or a channel is unknown.
    """
    strange = [pair for pair in others if pair not in pairs]
    if strange:
        known = ", ".join(f"{sender} to {receiver}" for sender, receiver in pairs)
        raise UsageError(f"There is no link from {' to '.join(strange[0])}.", f"There are: {known}.")
    return {pair: Link(others.get(pair, channel)) for pair in pairs}


def hand_over(
    sender: Mind, receiver: Mind, link: Link, question: str, recognise: Recognise | None = None
) -> tuple[Mind, HandedOver | None]:
    """Return the receiver's mind with all in it that the sender had and it had not, and what that cost.

    Args:
        sender: Who knows.
        receiver: Who gets to know.
        link: How.
        question: What the receiver will be asked, for channels that look at it.
        recognise: Names the sender by its columns.

    Raises:
        UsageError: If no conversation can go on from what the channel delivers.
        IncompatibleCache: If the models differ and the channel is not made for them.
    """
    lacking = sender.lacking(receiver)
    if not lacking:
        return receiver, None
    began = time.perf_counter()
    mind, deliveries, headings = _delivered(
        _parcels(lacking, sender, receiver, link),
        receiver,
        lambda parcel, to: link.channel.send([Request((sender.reading(parcel.held[-1]),), question)], to)[0],
    )
    seconds = time.perf_counter() - began
    return mind, HandedOver(
        sender=sender.name,
        receiver=receiver.name,
        channel=link.name,
        passages=tuple(held.passage.name for held in lacking),
        bytes_moved=sum(each.bytes_moved for each in deliveries),
        tokens_prefilled=headings + sum(each.tokens_prefilled for each in deliveries),
        tokens_skipped=sum(each.tokens_skipped for each in deliveries),
        seconds=seconds,
        messages=tuple(each.message for each in deliveries),
        recognised=None if recognise is None else recognise(_telling(mind, len(deliveries))),
    )


def handed_again(sender: Mind, receiver: Mind, link: Link, question: str, told: HandedOver) -> Mind:
    """Return the receiver's mind after a hand-over that is on record; what was written then is not written again."""
    messages = iter(told.messages)

    def send(parcel: Parcel, to: Mind) -> Delivery:
        message = next(messages)
        if message is not None:
            return read_by(to, [message], told.channel, {}, lossy=True)
        return link.channel.send([Request((sender.reading(parcel.held[-1]),), question)], to)[0]

    lacking = tuple(held for held in sender.held if held.passage.name in told.passages)
    return _delivered(_parcels(lacking, sender, receiver, link), receiver, send)[0]


def _parcels(lacking: Sequence[Held], sender: Mind, receiver: Mind, link: Link) -> list[Parcel]:
    """Return what is delivered one by one: each passage, or one message about all of them."""
    if not isinstance(link.channel, WRITING):
        return [Parcel(held.passage, (held,)) for held in lacking]
    name = f"{lacking[-1].passage.name}>{receiver.name}"
    return [Parcel(Passage(name, sender.name, None, ""), tuple(lacking))]


def _delivered(
    parcels: Sequence[Parcel], receiver: Mind, send: Callable[[Parcel, Mind], Delivery]
) -> tuple[Mind, list[Delivery], int]:
    """Return the receiver's mind, the deliveries, and how many tokens of headings it has read."""
    mind, deliveries, headings = receiver, list[Delivery](), 0
    for parcel in parcels:
        headed = mind.reads((APART if mind.begun else "") + parcel.passage.heading())
        delivery = send(parcel, headed)
        passage, others = parcel.passage, [held.passage for held in parcel.held if held.passage != parcel.passage]
        if not passage.text:
            passage = msgspec.structs.replace(passage, text=delivery.message or "")
        taken = headed.takes(passage, delivery)
        if taken.columns > headed.columns:
            headings += headed.columns - mind.columns
        else:  # Nothing came: a heading over nothing is not worth its columns.
            taken = mind.knows(passage)
        mind = taken.knows(*others)
        deliveries.append(delivery)
    return mind, deliveries, headings


def _telling(mind: Mind, passages: int) -> KVCache:
    """Return the columns of the last passages that tell most of whose they are, position-free.

    These are the longest that was read: agents are enrolled by what they read, and an answer of a small model that
    repeats itself is like nobody's reading (docs/log.md, 2026-11-28).
    """
    told = max(mind.held[-passages:], key=lambda held: (held.passage.hearer is not None, held.stop - held.start))
    return RemoveRope()(mind.reading(told).cache.span("content"))
