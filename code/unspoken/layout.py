"""Which tensors a cache consists of, told by its manifest alone: names, element types, shapes, and their order.

A file's reader has to know this before it touches a tensor, so nothing in here needs torch or numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from unspoken.manifest import LayerInfo, Manifest

FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Grouping:
    """How whole numbers share a scale and a minimum: keys per channel, values per token (KIVI, arXiv 2402.02750).

    Attributes:
        bits: Of one code.
        tokens: Fewest tokens whose keys share a scale in each channel.
        channels: Most channels whose values share a scale in each token.
    """

    bits: int
    tokens: int
    channels: int


# The most tokens and channels a byte bound allows: 0.55 of bfloat16's bytes for int8, 0.32 for int4.
GROUPINGS = {"int8": Grouping(8, 64, 64), "int4": Grouping(4, 32, 32)}
# ggml's blocks of 32 values, by the bytes of one (ggml, `block_q8_0` and `block_q4_0`).
BLOCK_VALUES = 32
BLOCK_BYTES = {"q8_0": 34, "q4_0": 18}
PACKED = (*GROUPINGS, *BLOCK_BYTES)
# Bytes of one element. ggml's blocks mix scales and codes, so their tensors count bytes.
SIZES = {"float32": 4, "int32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "q8_0": 1, "q4_0": 1}


class Part(NamedTuple):
    """One tensor: what its elements are (a key of `SIZES`), and its shape."""

    element: str
    shape: tuple[int, ...]


class Run(NamedTuple):
    """Some groups of one size, one after the other: the first token of the first, how many, tokens of each."""

    start: int
    groups: int
    tokens: int


def token_runs(columns: int, smallest: int) -> tuple[Run, ...]:
    """Cut columns into groups of at least `smallest` tokens whose sizes differ by one at most; larger ones come first.

    Fewer columns than that make one group, none make no group.
    """
    groups = min(columns, max(1, columns // smallest))
    if groups == 0:
        return ()
    tokens, larger = divmod(columns, groups)
    runs = (Run(0, larger, tokens + 1), Run(larger * (tokens + 1), groups - larger, tokens))
    return tuple(run for run in runs if run.groups)


def channel_group(head_dim: int, most: int) -> int:
    """Return the largest divisor of a head's channels that is at most `most`."""
    return next(size for size in range(min(head_dim, most), 0, -1) if head_dim % size == 0)


def sink_runs(cache: Manifest) -> tuple[range, ...]:
    """Return the columns of kind `sink` as runs that do not touch; none if layers hold different columns."""
    counts = {layer.columns for layer in cache.layers}
    if len(counts) != 1:
        return ()
    (columns,) = counts
    runs: list[range] = []
    for start, stop in sorted((span.start, min(span.stop, columns)) for span in cache.spans if span.kind == "sink"):
        if runs and start <= runs[-1].stop:
            runs[-1] = range(runs[-1].start, max(runs[-1].stop, stop))
        elif start < stop:
            runs.append(range(start, stop))
    return tuple(runs)


def parts(cache: Manifest) -> dict[str, Part]:
    """Return every tensor of a cache by its name, in the order they lie in a file: larger elements first.

    Sizes of elements fall, so each tensor is aligned wherever the one before it ends. The manifest's `dtype` is one
    of `FLOATS` or `PACKED`, its layers hold columns, and its spans lie within them.
    """
    found = {f"layers.{layer.index}.positions": Part("int32", (layer.columns,)) for layer in cache.layers}
    # Counted once: a header may name very many of them.
    sinks = sum(map(len, sink_runs(cache))) if cache.dtype in GROUPINGS else 0
    for layer in cache.layers:
        for side in ("keys", "values"):
            for name, part in _side(cache, layer, side, sinks):
                found[f"layers.{layer.index}.{side}{name}"] = part
    return dict(sorted(found.items(), key=lambda item: -SIZES[item[1].element]))


def _side(cache: Manifest, layer: LayerInfo, side: str, sinks: int) -> Iterator[tuple[str, Part]]:
    """Yield the tensors of a layer's keys or values, by what is added to their name."""
    heads, columns, head_dim = cache.spec.kv_heads, layer.columns, cache.spec.head_dim
    if cache.dtype in FLOATS:
        yield "", Part(cache.dtype, (heads, columns, head_dim))
        return
    if cache.dtype in BLOCK_BYTES:
        yield "", Part(cache.dtype, (columns, heads * head_dim // BLOCK_VALUES * BLOCK_BYTES[cache.dtype]))
        return
    rule, rest = GROUPINGS[cache.dtype], columns - sinks
    groups = sum(run.groups for run in token_runs(rest, rule.tokens))
    shared = (heads, groups, head_dim)
    if side == "values":
        shared = (heads, rest, head_dim // channel_group(head_dim, rule.channels))
    yield "", Part("uint8", (heads, rest, head_dim * rule.bits // 8))
    yield ".scale", Part("float16", shared)
    yield ".minimum", Part("float16", shared)
    if sinks:
        yield ".sink", Part("bfloat16", (heads, sinks, head_dim))
