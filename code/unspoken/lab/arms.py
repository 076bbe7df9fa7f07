"""Arms: every channel by its name, and the controls that stand in for a cache."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from unspoken.cache import KVCache
from unspoken.channels.kv import WIRE, inserted
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Channel, Delivery, Party, Reading, Readings, Request, once_per_source
from unspoken.channels.text import Text, TextAsked, read_tokens
from unspoken.engines.protocol import Piece, Prompt
from unspoken.errors import UsageError
from unspoken.lab import fused_arms, parts, relay
from unspoken.lab.tasks.protocol import cluster_of, state_of
from unspoken.registry import Registry
from unspoken.transforms import Transform
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.controls import Displace, Noise, Zero

CONTROLS = Registry(
    "control arm",
    "unspoken.arms",
    {
        "kv-deranged": "unspoken.lab.arms:Deranged",
        "kv-zero": "unspoken.lab.arms:Zeroed",
        "kv-random": "unspoken.lab.arms:Randomised",
        "kv-self": "unspoken.lab.arms:SelfMade",
        "kv-shifted": "unspoken.lab.arms:Shifted",
    },
)
DEFAULT_ARMS = (
    "none", "full-text", "text@32", "text-asked@32", "text", "kv", "kv-continue",
    "kv-deranged", "kv-zero", "kv-random", "kv-self", "kv-shifted",
)  # fmt: skip
DERANGED = "deranged:"
DISPLACED_BY = 1024
NEUTRAL = (
    "This page was left blank on purpose. It has no message for anybody, and nothing on it needs to be kept. "
    "Lines like these only take up room until something else is put in their place. "
)


@runtime_checkable
class Arm(Protocol):
    """One condition of an experiment."""

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Return what the receiver starts from for each request; `donor` names another item's reading."""
        ...


@dataclass(frozen=True)
class ChannelArm:
    """A channel, as an arm."""

    channel: Channel

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Hand over as the channel does."""
        return self.channel.send(requests, receiver)


@dataclass(frozen=True)
class OtherReading:
    """A channel that hands over what was read of another item, and is the same otherwise: `deranged:need@0.3`."""

    channel: Channel

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Hand the donor's reading over, to be asked the item's own question."""
        others = {id(each): donor(each) for request in requests for each in request.readings}
        swapped = [
            Request(tuple(others[id(each)] for each in request.readings), request.question) for request in requests
        ]
        return self.channel.send(swapped, receiver)


@dataclass(frozen=True)
class Deranged:
    """Another item's columns: whatever a cache does by merely being there, without the right content."""

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Insert the donor's columns, handled exactly as the `kv` arm handles the right ones."""
        codec = codec_named(WIRE)

        def swapped(readings: Readings) -> Delivery:
            return inserted("kv-deranged", tuple(donor(each) for each in readings), receiver, codec)

        return once_per_source(requests, lambda sources: [swapped(readings) for readings in sources])


@dataclass(frozen=True)
class Zeroed:
    """As many columns, all zero."""

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Insert zeros."""
        return _controlled("kv-zero", requests, receiver, change=lambda _: Zero())


@dataclass(frozen=True)
class Randomised:
    """As many columns of noise with the right columns' mean and variance per layer and head."""

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Insert noise, the same for the same source."""
        return _controlled("kv-random", requests, receiver, change=lambda reading: Noise(_seed(reading)))


@dataclass(frozen=True)
class Shifted:
    """The right columns with their keys turned to positions far off: must be worse than `kv`."""

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Insert the right columns, displaced."""
        return _controlled("kv-shifted", requests, receiver, in_place=Displace(DISPLACED_BY))


@dataclass(frozen=True)
class SelfMade:
    """The receiver's own columns of a neutral text of the same length."""

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Let the receiver read a text that says nothing."""
        return once_per_source(requests, lambda sources: [self._made(readings, receiver) for readings in sources])

    def _made(self, readings: Readings, receiver: Party) -> Delivery:
        columns = sum(reading.cache.span("content").columns for reading in readings)
        neutral = receiver.engine.encode(NEUTRAL)
        repeated = (neutral * (columns // len(neutral) + 1))[:columns]
        return read_tokens(receiver, Prompt((Piece("content", repeated),)), "kv-self", {}, message="", lossy=True)


def needs_donor(name: str) -> bool:
    """Tell whether an arm needs another source's columns."""
    return name == "kv-deranged" or name.startswith(DERANGED) or fused_arms.needs_donor(name)


def is_control(name: str) -> bool:
    """Tell whether an arm is one of the controls, by whatever way they hand over."""
    return name in CONTROLS.names() or name.startswith(DERANGED) or fused_arms.is_control(name)


def control_in(arm: str, arms: Container[str]) -> str | None:
    """Return which of some arms is the control of a hand-over: its own with another text, or else `kv-deranged`."""
    own = f"{DERANGED}{arm}", fused_arms.control_of(arm) or "kv-deranged"
    return next((each for each in own if each in arms), None)


def build_arm(name: str) -> Arm:
    """Return the arm of a name: a control, a channel with its options, one over several hops, or parts by several.

    `deranged:` before a channel is the control of that channel.

    Raises:
        UsageError: If there is none.
    """
    if name in CONTROLS.names():
        arm: Arm = CONTROLS.load(name)()
        return arm
    if name.startswith(DERANGED):
        return OtherReading(build_channel(name.removeprefix(DERANGED)))
    if fused_arms.is_control(name):
        return fused_arms.build_control(name)
    if relay.is_relay(name):
        return relay.build_relay(name)
    if parts.is_parts(name):
        return parts.build_parts(name)
    return ChannelArm(build_channel(name))


def in_running_order(arms: Mapping[str, Arm], first: str) -> tuple[str, ...]:
    """Return arms' names in the order in which a batch goes through them.

    One arm comes first, and longer messages before shorter ones, which are their beginnings and cost nothing then.
    """

    def place(name: str) -> tuple[bool, int]:
        arm = arms[name]
        channel = arm.channel if isinstance(arm, ChannelArm) else None
        return name != first, -channel.limit if isinstance(channel, Text | TextAsked) else 0

    return tuple(sorted(arms, key=place))


def derangement(lengths: dict[str, int]) -> dict[str, str]:
    """Pair each source with another of nearly its length; none keeps its own.

    Sources sorted by length take the next one's columns, the last the first's. Where words are read in several states
    of mind (`unspoken.lab.twins`), a source takes those of other words, read in the same state: its own words would
    hold an answer, right or wrong.

    Raises:
        UsageError: If there are not two sources.
    """
    states: dict[str, list[str]] = {}
    for source in sorted(lengths, key=lambda source: (lengths[source], source)):
        states.setdefault(state_of(source), []).append(source)
    found = {
        source: next((each for each in (*order[at + 1 :], *order[:at]) if cluster_of(each) != cluster_of(source)), "")
        for order in states.values()
        for at, source in enumerate(order)
    }
    if not found or not all(found.values()):
        raise UsageError(
            "There is one source only, and no other whose columns could stand in for its own.",
            "Ask for more items: a source has several.",
        )
    return found


def _controlled(
    name: str,
    requests: Sequence[Request],
    receiver: Party,
    change: Callable[[Reading], Transform] | None = None,
    in_place: Transform | None = None,
) -> tuple[Delivery, ...]:
    """Insert the right columns changed, before they travel or once they are in place."""
    codec = codec_named(WIRE)

    def changed(reading: Reading, segment: KVCache) -> KVCache:
        return segment if change is None else change(reading)(segment)

    return once_per_source(
        requests, lambda sources: [inserted(name, each, receiver, codec, changed, in_place) for each in sources]
    )


def _seed(reading: Reading) -> int:
    return zlib.crc32(reading.source.encode())
