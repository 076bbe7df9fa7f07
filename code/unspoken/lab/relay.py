"""Hops: what was understood is handed on from agent to agent before it reaches the one who is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unspoken.channels.names import build_channel, count
from unspoken.channels.protocol import Channel, Delivery, Party, Reading, Request
from unspoken.errors import UsageError
from unspoken.session import Agent

NAME, MOST = "relay", 16


@dataclass(frozen=True)
class Relay:
    """A channel, several times: each agent takes in what it got and hands it on the same way.

    The agents in between run on the receiver's model and know nothing else. Bytes and seconds are those of all
    hand-overs together.

    Attributes:
        name: The arm's name.
        hops: Hand-overs in all; with one, it is the channel alone.
        channel: How each hands on.
    """

    name: str
    hops: int
    channel: Channel

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Hand over from the sender along the line to the receiver."""
        bytes_before = [0] * len(requests)
        for hop in range(1, self.hops):
            middle = Agent(f"{NAME}-{hop}", receiver.engine)
            made = self.channel.send(requests, middle)
            bytes_before = [moved + each.bytes_moved for moved, each in zip(bytes_before, made, strict=True)]
            # One delivery for several questions is taken in once.
            taken = {id(each): _taken(middle, each) for each in made}
            requests = [
                Request((taken[id(each)],), request.question) for request, each in zip(requests, made, strict=True)
            ]
        arrived = self.channel.send(requests, receiver)
        found = {
            id(each): replace(each, channel=self.name, bytes_moved=each.bytes_moved + moved)
            for each, moved in zip(arrived, bytes_before, strict=True)
        }
        return tuple(found[id(each)] for each in arrived)


def is_relay(name: str) -> bool:
    """Tell whether an arm's name is that of a channel over several hops: `relay@3:kv`."""
    return name.partition(":")[0].partition("@")[0] == NAME


def hops_of(name: str) -> tuple[int, str]:
    """Return over how many hops an arm hands on and by which channel: 3 and `kv` of `relay@3:kv`; 1 for others."""
    if not is_relay(name):
        return 1, name
    kind, _, channel = name.partition(":")
    return int(kind.partition("@")[2]), channel


def build_relay(name: str) -> Relay:
    """Return the arm of a name such as `relay@3:text@32`.

    Raises:
        UsageError: If it has no number of hops, too many of them, or no channel that there is.
    """
    kind, _, channel = name.partition(":")
    _, _, amount = kind.partition("@")
    if not amount or not channel:
        raise UsageError(f"The arm '{name}' lacks a number of hops or a channel.", "Write relay@3:kv.")
    hops = count(NAME, amount, 1, least=1)
    if hops > MOST:
        raise UsageError(f"The arm '{name}' has {hops} hops.", f"Write {MOST} or fewer.")
    return Relay(name, hops, build_channel(channel))


def _taken(middle: Agent, delivery: Delivery) -> Reading:
    """Return what an agent in between has read: that it took so long to get there belongs to its reading."""
    cache, began = delivery.past, time.perf_counter()
    if cache is not None and delivery.prompt.token_ids:
        cache = middle.engine.prefill(delivery.prompt, cache)
    spent = delivery.seconds.total + time.perf_counter() - began
    if cache is None or not any(span.kind == "content" for span in cache.manifest.spans):
        raise UsageError(
            f"The channel '{delivery.channel}' hands over nothing that can be handed on.", "Relay kv or a text channel."
        )
    return Reading(middle, delivery.message or "", cache, spent)
