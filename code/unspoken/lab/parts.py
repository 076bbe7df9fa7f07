"""Parts of a source by different ways: what one sender read comes as a cache, what the next one read as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unspoken.cache import KVCache
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Channel, Delivery, Party, Reading, Readings, Request, once_per_source
from unspoken.engines.protocol import Engine, Frame
from unspoken.errors import UsageError

NAME = "parts"


@dataclass(frozen=True)
class Grown:
    """A receiver that has taken in something already: what comes next stands behind it."""

    name: str
    engine: Engine
    frame: Frame
    prefix: KVCache


@dataclass(frozen=True)
class Parts:
    """Each sender's part by a channel of its own, one behind the other.

    Attributes:
        name: The arm's name.
        channels: One for each part, in order.
    """

    name: str
    channels: tuple[Channel, ...]

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Hand the parts over.

        Raises:
            UsageError: If there are more or fewer parts than channels, or one leaves nothing to go on from.
        """
        return once_per_source(requests, lambda sources: [self._one(readings, receiver) for readings in sources])

    def _one(self, readings: Readings, receiver: Party) -> Delivery:
        if len(readings) != len(self.channels):
            raise UsageError(
                f"The arm '{self.name}' names {len(self.channels)} channels, and the source has {len(readings)} parts.",
                "Name one for each part: parts:kv,full-text.",
            )
        made: Delivery | None = None
        for channel, reading in zip(self.channels, readings, strict=True):
            onto = receiver if made is None else _grown(receiver, made)
            # The question is not known here: channels that ask for it get none.
            (next_one,) = channel.send([Request((reading,), "")], onto)
            made = next_one if made is None else _after(made, next_one)
        if made is None:
            raise UsageError(f"The arm '{self.name}' has no parts.", "Name one channel for each part.")
        return replace(made, channel=self.name)


def is_parts(name: str) -> bool:
    """Tell whether an arm's name is that of parts by different ways: `parts:kv,full-text`."""
    return name.partition(":")[0] == NAME


def parted(name: str) -> list[str]:
    """Return the channels' names: `kv` and `full-text` of `parts:kv,full-text`."""
    return [each for each in name.partition(":")[2].split(",") if each]


def build_parts(name: str) -> Parts:
    """Return the arm of a name such as `parts:kv,full-text`.

    Raises:
        UsageError: If it names fewer than two channels, one that there is not, or one that needs the question.
    """
    names = parted(name)
    if len(names) < 2:
        raise UsageError(f"The arm '{name}' names fewer than two channels.", "Write parts:kv,full-text.")
    for each in names:
        if each.startswith(("text-asked", "need")):
            raise UsageError(f"The channel '{each}' in '{name}' needs the question.", "Use kv, text or full-text.")
    return Parts(name, tuple(map(build_channel, names)))


def _grown(receiver: Party, made: Delivery) -> Grown:
    if made.past is None or made.prompt.token_ids:
        raise UsageError(f"Nothing can stand behind what '{made.channel}' hands over.", "Use kv, text or full-text.")
    return Grown(receiver.name, receiver.engine, receiver.frame, made.past)


def _after(first: Delivery, second: Delivery) -> Delivery:
    """Return the second delivery at the price of both."""
    stages = {
        stage: getattr(first.seconds, stage) + getattr(second.seconds, stage)
        for stage in ("capture", "transform", "move", "inject", "first_token", "answer")
    }
    return replace(
        second,
        bytes_moved=first.bytes_moved + second.bytes_moved,
        tokens_prefilled=first.tokens_prefilled + second.tokens_prefilled,
        tokens_skipped=first.tokens_skipped + second.tokens_skipped,
        seconds=replace(second.seconds, **stages),
        lossy=first.lossy or second.lossy,
        message="".join(each.message or "" for each in (first, second)) or None,
    )
