"""Parts of a source by different ways: what one sender read comes as a cache, what the next one read as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unspoken.cache import KVCache
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Channel, Delivery, Party, Reading, Request
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

    def check(self, parts: int) -> None:
        """Refuse a source that has another number of parts.

        Raises:
            UsageError: If there are more or fewer parts than channels.
        """
        if parts != len(self.channels):
            raise UsageError(
                f"The arm '{self.name}' names {len(self.channels)} channels, and the source has {parts} "
                f"part{'s' * (parts != 1)}.",
                "Name one for each part: parts:kv,full-text.",
            )

    def deliver(
        self, requests: Sequence[Request], receiver: Party, donor: Callable[[Reading], Reading]
    ) -> tuple[Delivery, ...]:
        """Hand the parts over.

        Raises:
            UsageError: If there are more or fewer parts than channels, or one leaves nothing to go on from.
        """
        for request in requests:
            self.check(len(request.readings))
        first, *others = self.channels
        made = first.send([_part(request, 0) for request in requests], receiver)
        for at, channel in enumerate(others, start=1):
            made = _behind(channel, [_part(request, at) for request in requests], made, receiver)
        found = {id(each): replace(each, channel=self.name) for each in made}
        return tuple(found[id(each)] for each in made)


def is_parts(name: str) -> bool:
    """Tell whether an arm's name is that of parts by different ways: `parts:kv,full-text`."""
    return name.partition(":")[0] == NAME


def parted(name: str) -> list[str]:
    """Return the channels' names: `kv` and `full-text` of `parts:kv,full-text`."""
    return [each for each in name.partition(":")[2].split(",") if each]


def build_parts(name: str) -> Parts:
    """Return the arm of a name such as `parts:kv,full-text`.

    Raises:
        UsageError: If it names fewer than two channels, or one that there is not.
    """
    names = parted(name)
    if len(names) < 2:
        raise UsageError(f"The arm '{name}' names fewer than two channels.", "Write parts:kv,full-text.")
    return Parts(name, tuple(map(build_channel, names)))


def _part(request: Request, at: int) -> Request:
    return Request((request.readings[at],), request.question)


def _behind(
    channel: Channel, requests: Sequence[Request], before: Sequence[Delivery], receiver: Party
) -> tuple[Delivery, ...]:
    """Hand a part over behind what came before; questions that shared that share this, if the channel lets them."""
    places: dict[int, list[int]] = {}
    for at, each in enumerate(before):
        places.setdefault(id(each), []).append(at)
    found: dict[int, Delivery] = {}
    for some in places.values():
        earlier = before[some[0]]
        made = channel.send([requests[at] for at in some], _grown(receiver, earlier))
        priced = {id(each): _after(earlier, each) for each in made}
        found.update((at, priced[id(each)]) for at, each in zip(some, made, strict=True))
    return tuple(found[at] for at in range(len(requests)))


def _grown(receiver: Party, made: Delivery) -> Grown:
    if made.past is None or made.prompt.token_ids:
        raise UsageError(f"Nothing can stand behind what '{made.channel}' hands over.", "Use kv, text or full-text.")
    return Grown(receiver.name, receiver.engine, receiver.frame, made.past)


def _recomputed(first: Delivery, second: Delivery) -> float:
    """Return which share of the columns of both, times layers, was computed again."""
    columns = first.tokens_skipped + second.tokens_skipped
    again = first.recomputed * first.tokens_skipped + second.recomputed * second.tokens_skipped
    return again / columns if columns else 0.0


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
        recomputed=_recomputed(first, second),
        seconds=replace(second.seconds, **stages),
        lossy=first.lossy or second.lossy,
        message="".join(each.message or "" for each in (first, second)) or None,
    )
