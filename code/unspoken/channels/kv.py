"""Cache channels: the receiver gets the sender's columns instead of words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from unspoken.cache import KVCache
from unspoken.channels.names import labelled
from unspoken.channels.protocol import (
    Delivery,
    Party,
    Reading,
    Readings,
    Request,
    Stages,
    once_per_source,
    only,
    peak_rss_bytes,
    stopwatch,
)
from unspoken.engines.gate import ensure_pair, require_pair
from unspoken.engines.protocol import Engine
from unspoken.manifest import Step, require_compatible
from unspoken.packed import Packed
from unspoken.transforms import Codec, Transform
from unspoken.transforms.cast import Cast
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.place import place, place_behind
from unspoken.transforms.rope import RemoveRope
from unspoken.transforms.select import keep

WIRE = "bfloat16"
"""How columns are coded on the wire unless the channel says otherwise."""

Change = Callable[[Reading, KVCache], KVCache]
"""What is done to a reading's position-free content columns before they travel."""


def content_columns(cache: KVCache) -> KVCache:
    """Return the content columns of a sender's cache, position-free.

    Nothing else of the sender travels: not its system prompt, not its chat header, not its sink. Several runs of
    content, as a conversation has them, become one, with gaps between their positions.
    """
    runs = [span for span in cache.manifest.spans if span.kind == "content"]
    if len(runs) < 2:
        return RemoveRope()(cache.span("content"))
    columns = torch.cat([torch.arange(span.start, span.stop) for span in runs])
    return RemoveRope()(keep(cache, [columns] * len(cache.layers), Step("content")))


def packed_bytes(packed: Packed) -> int:
    """Return the payload of a packed cache: keys and values as they are coded, and positions."""
    positions = {tensor.numpy().tobytes() for name, tensor in packed.tensors.items() if name.endswith(".positions")}
    return packed.bytes_held() + sum(map(len, positions))


def wire_bytes(cache: KVCache) -> int:
    """Return the payload of a cache: keys, values and positions."""
    return cache.bytes_held() + position_bytes(cache)


def position_bytes(cache: KVCache) -> int:
    """Return the bytes of a cache's positions; a set that layers share travels once."""
    distinct = {layer.positions.numpy().tobytes() for layer in cache.layers}
    return sum(len(each) for each in distinct)


@dataclass(frozen=True)
class Insert:
    """The sender's content columns stand in the receiver's own turn, where the text would have stood.

    Exact up to two things: the sender's columns did not see the receiver's prefix, and what the codec loses.
    Those of several senders follow one another, in the order of the readings.

    Args:
        codec: How columns are coded on the wire; `bfloat16` halves the bytes of float32.
    """

    codec: str = WIRE
    name: ClassVar[str] = "kv"

    def __post_init__(self) -> None:
        codec_named(self.codec)

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand each source's content columns over once; the questions fork the result."""
        name, codec = called(self.name, self.codec), codec_named(self.codec)
        return once_per_source(
            requests, lambda sources: [inserted(name, readings, receiver, codec) for readings in sources]
        )


@dataclass(frozen=True)
class Continue:
    """The receiver goes on from the sender's whole cache, and becomes the sender.

    Args:
        codec: How columns are coded on the wire; by default as they are, and the hand-over is exact.
    """

    codec: str | None = None
    name: ClassVar[str] = "kv-continue"

    def __post_init__(self) -> None:
        if self.codec is not None:
            codec_named(self.codec)

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand the whole caches over."""
        return once_per_source(
            requests, lambda sources: [self._delivery(only(each, self.name), receiver) for each in sources]
        )

    def _delivery(self, reading: Reading, receiver: Party) -> Delivery:
        measured_for(reading, receiver)
        name, own, took = labelled(self.name, codec=self.codec), receiver.engine.dtype, {"capture": reading.seconds}
        if self.codec is None:
            return continued(name, Cast(own)(reading.cache), receiver, Stages(**took), wire_bytes(reading.cache))
        codec = codec_named(self.codec)
        with stopwatch(took, "transform"):
            packed = codec.pack(reading.cache)
        with stopwatch(took, "inject"):
            cache = Cast(own)(codec.unpack(packed))
        moved = packed.bytes_held() + position_bytes(cache)
        return continued(name, cache, receiver, Stages(**took), moved)


def called(name: str, codec: str, **options: object) -> str:
    """Return a cache channel's name with options; the codec is named only if it is not the usual one."""
    return labelled(name, codec=None if codec == WIRE else codec, **options)  # type: ignore[arg-type]


def measured_for(reading: Reading, receiver: Party) -> None:
    """Measure, once, whether the receiver's engine goes on from caches of the sender's, where these differ."""
    sender = reading.reader.engine
    ensure_pair(sender.name, receiver.engine, lambda: sender)


def require_fitting(cache: KVCache, engine: Engine) -> None:
    """Refuse a cache of another model, or of another engine that was not measured against the receiver's.

    Raises:
        IncompatibleCache: If another model made it.
        GateFailed: If the pair of engines is not known to pass.
    """
    require_compatible(cache.spec, engine.spec)
    for made_by in cache.manifest.engines():
        require_pair(made_by, engine)


def continued(name: str, cache: KVCache, receiver: Party, seconds: Stages, bytes_moved: int) -> Delivery:
    """Return the delivery of a whole cache, in the receiver's element type, that it goes on from."""
    require_fitting(cache, receiver.engine)
    changed = {"cast", "pack"} & {step.op for step in cache.manifest.lineage}
    return Delivery(
        channel=name,
        bytes_moved=bytes_moved,
        tokens_prefilled=0,
        tokens_skipped=cache.columns,
        seconds=seconds,
        lossy=bool(changed),
        lineage=cache.manifest.lineage,
        peak_rss_bytes=peak_rss_bytes(),
        past=cache,
    )


def unchanged(_: Reading, segment: KVCache) -> KVCache:
    """Return content columns as they are."""
    return segment


def inserted(
    name: str,
    readings: Readings,
    receiver: Party,
    codec: Codec,
    change: Change = unchanged,
    in_place: Transform | None = None,
) -> Delivery:
    """Pack what was read, send it, and join it to the receiver's prefix.

    Args:
        name: The channel's or arm's name.
        readings: What was read.
        receiver: Who gets it.
        codec: How columns are coded on the wire.
        change: What is done to the position-free content columns before they travel.
        in_place: What is done to them once they are turned to the receiver's positions.
    """
    took = {"capture": sum(reading.seconds for reading in readings)}
    segments, moved = sent(readings, receiver, codec, took, change)
    return joined(name, segments, receiver, took, moved, in_place)


def sent(
    readings: Readings, receiver: Party, codec: Codec, seconds: dict[str, float], change: Change = unchanged
) -> tuple[list[KVCache], int]:
    """Return content columns as they arrive, position-free, and the bytes that moved."""
    segments, moved = [], 0
    for reading in readings:
        measured_for(reading, receiver)
        require_fitting(reading.cache, receiver.engine)
        with stopwatch(seconds, "transform"):
            changed = change(reading, content_columns(reading.cache))
            packed = codec.pack(changed)
        moved += packed.bytes_held() + position_bytes(changed)
        with stopwatch(seconds, "inject"):
            segments.append(codec.unpack(packed))
    return segments, moved


def joined(
    name: str,
    segments: Sequence[KVCache],
    receiver: Party,
    seconds: dict[str, float],
    bytes_moved: int,
    in_place: Transform | None = None,
) -> Delivery:
    """Join position-free segments to the receiver's prefix and return the delivery that leaves it there."""
    past, took = receiver.prefix, dict(seconds)
    with stopwatch(took, "inject"):
        for segment in segments:
            past = place_behind(past, segment) if in_place is None else past.concat(in_place(place(segment, past)))
    # Layers may hold different columns; a token is skipped if any layer has its.
    skipped = sum(max(layer.columns for layer in segment.layers) for segment in segments)
    return arrived(name, past, skipped, took, bytes_moved)


def arrived(
    name: str, past: KVCache, tokens_skipped: int, seconds: dict[str, float], bytes_moved: int, **others: object
) -> Delivery:
    """Return the delivery of columns that stand in the receiver's own turn.

    Args:
        name: The channel's or arm's name.
        past: What the receiver starts from.
        tokens_skipped: Tokens it did not have to read.
        seconds: By stage.
        bytes_moved: Payload.
        others: Further fields of the delivery.
    """
    return Delivery(
        channel=name,
        bytes_moved=bytes_moved,
        **{"tokens_prefilled": 0, "lossy": True, **others},  # type: ignore[arg-type]
        tokens_skipped=tokens_skipped,
        seconds=Stages(**seconds),
        lineage=past.manifest.lineage,
        peak_rss_bytes=peak_rss_bytes(),
        past=past,
    )


def received(cache: KVCache, receiver: Party, bytes_moved: int | None = None) -> Delivery:
    """Take in a cache that came from elsewhere: insert a position-free one, continue from any other.

    Args:
        cache: The columns.
        receiver: Who gets them.
        bytes_moved: Payload they came in, if they were packed (`packed_bytes`); by default that of the columns.

    Raises:
        IncompatibleCache: If another model made it.
        GateFailed: If another engine made it and the pair was not measured, see `engines.gate.ensure_pair`.
    """
    require_fitting(cache, receiver.engine)
    moved = wire_bytes(cache) if bytes_moved is None else bytes_moved
    if cache.manifest.rope == "removed":
        return joined("kv", [cache], receiver, {}, moved)
    own = Cast(receiver.engine.dtype)(cache)
    return continued("kv-continue", own, receiver, Stages(), moved)
