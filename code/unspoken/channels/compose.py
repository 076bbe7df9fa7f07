"""Compose what several senders have read: their columns one after the other, partly read again where they meet.

Columns made apart lack what they would have seen in each other. How much of that is made up for is the variant:

published   Nothing, and nothing is left out: the senders' whole caches, each with its sink, header and system prompt,
            at the positions they were made at, and the receiver's own prompt after them (KVComm, arXiv 2510.03346,
            as released, with several senders).
concat      The same for content columns alone, behind the receiver's own prefix.
align       Each segment is turned to the positions behind the one before it.
legolink    `align`, and the first tokens of every segment but the first are read again in their place (EPIC,
            arXiv 2410.15332): made apart, they have become a second attention sink.
cacheblend  `align`, and the tokens whose values differ most from what they would be are read again in the layers
            after the second (CacheBlend, arXiv 2405.16444, section 4).
blend       The same, but tokens are chosen by how much they and their neighbours differ, relative to their size: what
            lacks its context comes in runs, and a run half mended is not (measured, docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool1d

from unspoken.cache import KVCache, KVLayer
from unspoken.channels.kv import WIRE, arrived, called, measured_for, packed_bytes, require_fitting, sent
from unspoken.channels.names import count, share
from unspoken.channels.protocol import Delivery, Party, Readings, Request, once_per_source, stopwatch
from unspoken.engines.capabilities import layered
from unspoken.engines.checks import require_room
from unspoken.engines.protocol import Onset, Piece, Prompt
from unspoken.errors import UsageError
from unspoken.manifest import Step
from unspoken.transforms.cast import Cast
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.place import place_behind
from unspoken.transforms.rope import ApplyRope

LEGOLINK_TOKENS, BLEND_SHARE = 16, 0.15
# CacheBlend reads everything again in the first layers, and chooses by what differs in the last of them.
READ_WHOLE = 2
# Tokens on either side that are looked at with a token.
NEIGHBOURS = 1
TOKEN_BYTES = 4


class Composed(NamedTuple):
    """What the receiver holds: the columns, the share of tokens times layers it has read again, and how it reads on."""

    past: KVCache
    recomputed: float = 0.0
    onset: Onset = Onset()


Ranking = Callable[[Tensor, Tensor], Tensor]
Composer = Callable[[Sequence[KVCache], Party, float | int], Composed]


@dataclass(frozen=True)
class Compose:
    """Several senders' content columns in one receiver's turn, in the order of the readings.

    Args:
        variant: `published`, `concat`, `align`, `legolink`, `cacheblend` or `blend`.
        amount: Tokens of each segment that `legolink` reads again, the share of tokens that `cacheblend` and `blend`
            do; the others take none.
        codec: How columns are coded on the wire.

    Raises:
        UsageError: If there is no such variant, or the amount is none of its.
    """

    variant: str = "align"
    amount: float | int | str | None = None
    codec: str = WIRE
    name: ClassVar[str] = "compose"

    def __post_init__(self) -> None:
        codec_named(self.codec)
        self._amount()

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand each set of readings over once; the questions fork the result."""
        return once_per_source(requests, lambda sources: [self._delivery(each, receiver) for each in sources])

    def _delivery(self, readings: Readings, receiver: Party) -> Delivery:
        if self.variant == PUBLISHED:
            return self._published(readings, receiver)
        took = {"capture": sum(reading.seconds for reading in readings)}
        segments, moved = sent(readings, receiver, codec_named(self.codec), took)
        columns = sum(segment.columns for segment in segments)
        composer, amount = COMPOSERS[self.variant], self._amount()
        with stopwatch(took, "inject"):
            made = composer(segments, receiver, amount)
        tokens = TOKEN_BYTES * columns if self.variant in READING else 0
        name = called(f"{self.name}:{self.variant}", self.codec, amount=self.amount)
        return arrived(name, made.past, columns, took, moved + tokens, recomputed=made.recomputed, onset=made.onset)

    def _published(self, readings: Readings, receiver: Party) -> Delivery:
        codec, took = codec_named(self.codec), {"capture": sum(reading.seconds for reading in readings)}
        wholes, moved = [], 0
        for reading in readings:
            measured_for(reading, receiver)
            require_fitting(reading.cache, receiver.engine)
            with stopwatch(took, "transform"):
                packed = codec.pack(reading.cache)
            moved += packed_bytes(packed)
            with stopwatch(took, "inject"):
                wholes.append(Cast(receiver.engine.dtype)(codec.unpack(packed)))
        with stopwatch(took, "inject"):
            past = reduce(KVCache.concat, wholes)
        onset = Onset(position=max(past.columns, past.next_position))
        name = called(f"{self.name}:{self.variant}", self.codec)
        return arrived(name, past, past.columns, took, moved, prompt=receiver.frame.before, onset=onset)

    def _amount(self) -> float | int:
        name = f"{self.name}:{self.variant}"
        known = (PUBLISHED, *COMPOSERS)
        if self.variant not in known:
            raise UsageError(f"There is no way '{self.variant}' to compose.", f"Choose one of {', '.join(known)}.")
        if self.variant == "legolink":
            return count(name, self.amount, LEGOLINK_TOKENS)
        if self.variant in ("blend", "cacheblend"):
            return 0.0 if _is_zero(self.amount) else share(name, self.amount, BLEND_SHARE)
        if self.amount is not None:
            raise UsageError(f"'{name}' takes no amount, found '{self.amount}'.", "Leave it out.")
        return 0.0


def concat(segments: Sequence[KVCache], receiver: Party, _: float | int) -> Composed:
    """Lay segments side by side at the positions they were made at.

    The question comes after as many positions as there are columns, as it does where a cache's length counts them.
    """
    past = receiver.prefix
    for segment in segments:
        past = past.concat(ApplyRope()(Cast(past.manifest.dtype)(segment)))
    return Composed(past, onset=Onset(position=max(past.columns, past.next_position)))


def align(segments: Sequence[KVCache], receiver: Party, _: float | int = 0) -> Composed:
    """Turn each segment to the positions behind the one before it."""
    past = receiver.prefix
    for segment in segments:
        past = place_behind(past, segment)
    return Composed(past)


def legolink(segments: Sequence[KVCache], receiver: Party, tokens: float | int) -> Composed:
    """Read the first tokens of every segment but the first again, on top of all that stands before them."""
    past, again = receiver.prefix, 0
    for number, segment in enumerate(segments):
        first = min(int(tokens), segment.columns) if number else 0
        if first:
            past = receiver.engine.prefill(Prompt((Piece("content", token_ids(segment)[:first]),)), past)
        if first < segment.columns:
            past = place_behind(past, segment.slice(first, segment.columns))
        again += first
    return Composed(past, again / sum(segment.columns for segment in segments))


def cacheblend(segments: Sequence[KVCache], receiver: Party, part: float | int) -> Composed:
    """Read the tokens again whose values in the second layer differ most from those that came."""
    return _read_again("cacheblend", segments, receiver, part, squared_distance)


def blend(segments: Sequence[KVCache], receiver: Party, part: float | int) -> Composed:
    """Read the tokens again that differ most together with their neighbours, relative to the size of their values."""
    return _read_again("blend", segments, receiver, part, relative_with_neighbours)


def _read_again(
    variant: str, segments: Sequence[KVCache], receiver: Party, part: float | int, rank: Ranking
) -> Composed:
    """Read all tokens again in the first two layers, then those that rank highest alone.

    Each sees the columns before it as they are by then. With a share of 1 that is joint prefill, with 0 it is `align`.
    """
    aligned = align(segments, receiver).past
    if not part:
        return Composed(aligned)
    engine, first_free = layered(receiver.engine, f"compose:{variant}"), receiver.prefix.next_position
    require_room(first_free, aligned.next_position - first_free, receiver.engine.spec)
    ids = [token for segment in segments for token in token_ids(segment)]
    at = torch.arange(receiver.prefix.columns, aligned.columns)
    positions, layers = aligned.positions[at].to(torch.int64), aligned.layers
    whole = min(READ_WHOLE, len(layers))
    residuals, first = engine.through(engine.embed(ids), layers[:whole], at, positions)
    differ = rank(first[-1].values[:, at].float(), layers[whole - 1].values[:, at].float())
    chosen = differ.topk(min(math.ceil(part * len(ids)), len(ids))).indices.sort().values
    rest: list[KVLayer] = []
    if whole < len(layers):
        _, rest = engine.through(residuals[chosen], layers[whole:], at[chosen], positions[chosen])
    made = {layer.index: layer for layer in (*first, *rest)}
    past = aligned.rebuilt(
        Step("recompute", {"tokens": len(chosen), "of": len(ids), "whole_layers": whole}),
        lambda layer: (made[layer.index].keys, made[layer.index].values, layer.positions),
    )
    read = whole * len(ids) + (len(layers) - whole) * len(chosen)
    return Composed(past, read / (len(layers) * len(ids)))


def squared_distance(
    fresh: Float[Tensor, "kv_heads content head_dim"], came: Float[Tensor, "kv_heads content head_dim"]
) -> Float[Tensor, " content"]:
    """Return how far each token's values are from those that came (CacheBlend, section 4.2, on values alone)."""
    return (fresh - came).square().sum(dim=(0, 2))


def relative_with_neighbours(
    fresh: Float[Tensor, "kv_heads content head_dim"], came: Float[Tensor, "kv_heads content head_dim"]
) -> Float[Tensor, " content"]:
    """Return the squared distance over the squared length, averaged over a token and the ones beside it."""
    relative = squared_distance(fresh, came) / came.square().sum(dim=(0, 2)).clamp(min=1e-12)
    return avg_pool1d(relative[None], 2 * NEIGHBOURS + 1, stride=1, padding=NEIGHBOURS, count_include_pad=False)[0]


COMPOSERS: dict[str, Composer] = {
    "concat": concat,
    "align": align,
    "legolink": legolink,
    "cacheblend": cacheblend,
    "blend": blend,
}
PUBLISHED = "published"
READING = ("legolink", "cacheblend", "blend")


def token_ids(segment: KVCache) -> tuple[int, ...]:
    """Return a segment's tokens, to be read again.

    Raises:
        UsageError: If its sender kept them to itself.
    """
    ids = segment.manifest.token_ids
    if ids is None:
        raise UsageError(
            "Columns cannot be read again: their sender did not tell the tokens.",
            "Capture them with their tokens, or use compose:align.",
        )
    return ids


def _is_zero(amount: float | int | str | None) -> bool:
    try:
        return amount is not None and float(amount) == 0
    except ValueError:
        return False
