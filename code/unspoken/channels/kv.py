"""Cache channels: the receiver gets the sender's columns instead of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unspoken.cache import DTYPES, KVCache
from unspoken.channels.protocol import (
    Delivery,
    Party,
    Reading,
    Request,
    Stages,
    once_per_reading,
    peak_rss_bytes,
    stopwatch,
)
from unspoken.engines.gate import ensure_pair, require_pair
from unspoken.errors import UsageError
from unspoken.manifest import require_compatible
from unspoken.transforms import Transform
from unspoken.transforms.cast import Cast
from unspoken.transforms.place import place, place_behind
from unspoken.transforms.rope import RemoveRope


def content_columns(cache: KVCache) -> KVCache:
    """Return the content columns of a sender's cache, position-free.

    Nothing else of the sender travels: not its system prompt, not its chat header, not its sink.
    """
    return RemoveRope()(cache.span("content"))


def wire_bytes(cache: KVCache) -> int:
    """Return the payload of a cache: keys, values and one set of positions."""
    return cache.bytes_held() + cache.positions.nbytes


@dataclass(frozen=True)
class Insert:
    """The sender's content columns stand in the receiver's own turn, where the text would have stood.

    Exact up to two things: the sender's columns did not see the receiver's prefix, and the element
    type on the wire.

    Args:
        dtype: Element type on the wire; `bfloat16` halves the bytes of float32.
    """

    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"There is no element type '{self.dtype}'.", f"Choose one of {', '.join(DTYPES)}.")

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand each reading's content columns over once; the questions fork the result."""
        name = "kv" if self.dtype == "bfloat16" else f"kv+{self.dtype}"
        return once_per_reading(
            requests, lambda readings: [inserted(name, reading, receiver, Cast(self.dtype)) for reading in readings]
        )


@dataclass(frozen=True)
class Continue:
    """The receiver goes on from the sender's whole cache: exact, and the receiver becomes the sender."""

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand the whole caches over."""
        return once_per_reading(requests, lambda readings: [self._delivery(each, receiver) for each in readings])

    def _delivery(self, reading: Reading, receiver: Party) -> Delivery:
        measured_for(reading, receiver)
        return continued(Cast(receiver.engine.dtype)(reading.cache), receiver, Stages(capture=reading.seconds))


def measured_for(reading: Reading, receiver: Party) -> None:
    """Measure, once, whether the receiver's engine goes on from caches of the sender's, where these differ."""
    sender = reading.reader.engine
    ensure_pair(sender.name, receiver.engine, lambda: sender)


def require_fitting(cache: KVCache, receiver: Party) -> None:
    """Refuse a cache of another model, or of another engine that was not measured against the receiver's.

    Raises:
        IncompatibleCache: If another model made it.
        GateFailed: If the pair of engines is not known to pass.
    """
    require_compatible(cache.spec, receiver.engine.spec)
    for engine in cache.manifest.engines():
        require_pair(engine, receiver.engine)


def continued(cache: KVCache, receiver: Party, seconds: Stages) -> Delivery:
    """Return the delivery of a whole cache that the receiver goes on from."""
    require_fitting(cache, receiver)
    return Delivery(
        channel="kv-continue",
        bytes_moved=wire_bytes(cache),
        tokens_prefilled=0,
        tokens_skipped=cache.columns,
        seconds=seconds,
        lossy=cache.manifest.dtype != receiver.engine.dtype,
        lineage=cache.manifest.lineage,
        peak_rss_bytes=peak_rss_bytes(),
        past=cache,
    )


def inserted(
    name: str, reading: Reading, receiver: Party, on_wire: Transform, in_place: Transform | None = None
) -> Delivery:
    """Pack what was read, change it, and join it to the receiver's prefix.

    Args:
        name: The channel's or arm's name.
        reading: What was read.
        receiver: Who gets it.
        on_wire: What is done to the position-free content columns before they travel.
        in_place: What is done to them once they are turned to the receiver's positions.
    """
    measured_for(reading, receiver)
    require_fitting(reading.cache, receiver)
    seconds = {"capture": reading.seconds}
    with stopwatch(seconds, "transform"):
        segment = on_wire(content_columns(reading.cache))
    return joined(name, segment, receiver, seconds, in_place)


def joined(
    name: str, segment: KVCache, receiver: Party, seconds: dict[str, float], in_place: Transform | None = None
) -> Delivery:
    """Join a position-free segment to the receiver's prefix and return the delivery that leaves it there."""
    prefix, took = receiver.prefix, dict(seconds)
    with stopwatch(took, "inject"):
        past = place_behind(prefix, segment) if in_place is None else prefix.concat(in_place(place(segment, prefix)))
    return Delivery(
        channel=name,
        bytes_moved=wire_bytes(segment),
        tokens_prefilled=0,
        tokens_skipped=segment.columns,
        seconds=Stages(**took),
        lossy=True,
        lineage=past.manifest.lineage,
        peak_rss_bytes=peak_rss_bytes(),
        past=past,
    )


def received(cache: KVCache, receiver: Party) -> Delivery:
    """Take in a cache that came from elsewhere: insert a position-free one, continue from any other.

    Raises:
        IncompatibleCache: If another model made it.
        GateFailed: If another engine made it and the pair was not measured, see `engines.gate.ensure_pair`.
    """
    require_fitting(cache, receiver)
    if cache.manifest.rope == "removed":
        return joined("kv", cache, receiver, {})
    return continued(Cast(receiver.engine.dtype)(cache), receiver, Stages())
