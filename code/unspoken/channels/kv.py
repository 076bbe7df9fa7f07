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
from unspoken.errors import UsageError
from unspoken.manifest import require_compatible
from unspoken.transforms import Transform
from unspoken.transforms.cast import Cast
from unspoken.transforms.rope import ApplyRope, Move, RemoveRope


def content_columns(cache: KVCache) -> KVCache:
    """Return the content columns of a sender's cache, position-free.

    Nothing else of the sender travels: not its system prompt, not its chat header, not its sink.
    """
    return RemoveRope()(cache.span("content"))


def placed(segment: KVCache, prefix: KVCache) -> KVCache:
    """Return a segment in the prefix's element type, turned once to the positions that follow it."""
    return ApplyRope()(Move(prefix.next_position)(Cast(prefix.manifest.dtype)(segment)))


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
        require_compatible(reading.cache.spec, receiver.engine.spec)
        return Delivery(
            channel="kv-continue",
            bytes_moved=wire_bytes(reading.cache),
            tokens_prefilled=0,
            tokens_skipped=reading.cache.columns,
            seconds=Stages(capture=reading.seconds),
            lossy=False,
            lineage=reading.cache.manifest.lineage,
            peak_rss_bytes=peak_rss_bytes(),
            past=reading.cache,
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
    require_compatible(reading.cache.spec, receiver.engine.spec)
    seconds = {"capture": reading.seconds}
    with stopwatch(seconds, "transform"):
        segment = on_wire(content_columns(reading.cache))
    with stopwatch(seconds, "inject"):
        standing = placed(segment, receiver.prefix)
        past = receiver.prefix.concat(standing if in_place is None else in_place(standing))
    return Delivery(
        channel=name,
        bytes_moved=wire_bytes(segment),
        tokens_prefilled=0,
        tokens_skipped=segment.columns,
        seconds=Stages(**seconds),
        lossy=True,
        lineage=past.manifest.lineage,
        peak_rss_bytes=peak_rss_bytes(),
        past=past,
    )
