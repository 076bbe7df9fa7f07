"""Caches to pack, and the slow way to pack them: group by group, straight from the rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.manifest import RopeState, Span
from unspoken.spec import ModelSpec, RopeSpec

f32 = np.float32
# Fewest tokens and most channels of a group, and bits of a code: chosen by measuring, see docs/log.md.
RULES = {"int8": (64, 64, 8), "int4": (32, 32, 4)}


def spec(heads: int = 1, head_dim: int = 64, layers: int = 1) -> ModelSpec:
    """A model of a size."""
    frequencies = tuple(float(f32(10000 ** (-2 * pair / head_dim))) for pair in range(head_dim // 2))
    rope = RopeSpec("default", "half", frequencies)
    return ModelSpec("toy", "llama", layers, heads, head_dim, 10, 1 << 20, rope, "w", "a", "t", "c")


def cache_of(
    keys: Sequence[Tensor], values: Sequence[Tensor], positions: Sequence[Tensor] | None = None,
    rope: RopeState = "removed", spans: Sequence[Span] = (),
) -> KVCache:  # fmt: skip
    """A cache of given numbers, one tensor `[kv_heads, seq, head_dim]` for each layer."""
    where = positions or [torch.arange(each.shape[1], dtype=torch.int32) for each in keys]
    layers = [KVLayer(index, *parts) for index, parts in enumerate(zip(keys, values, where, strict=True))]
    made_by = spec(keys[0].shape[0], keys[0].shape[2], len(layers))
    return KVCache.build(layers, made_by, rope=rope, spans=spans)


def random_cache(
    columns: Sequence[int], head_dim: int = 64, heads: int = 2, seed: int = 0, dtype: str = "float32",
    rope: RopeState = "removed", spans: Sequence[Span] = (),
) -> KVCache:  # fmt: skip
    """A cache with some large channels, an offset, and gaps between positions that differ from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    keys, values, positions = [], [], []
    for count in columns:
        shape = (heads, count, head_dim)
        loud = torch.randint(0, 4, (head_dim,), generator=generator).eq(0) * 20.0 + 1
        keys.append((torch.randn(shape, generator=generator) * loud + 0.3).to(DTYPES[dtype]))
        values.append((torch.randn(shape, generator=generator) - 0.1).to(DTYPES[dtype]))
        positions.append(torch.randint(1, 9, (count,), generator=generator).cumsum(0).to(torch.int32))
    return cache_of(keys, values, positions, rope, spans)


class Slow(NamedTuple):
    """Codes of one group, its scale and its minimum."""

    codes: NDArray[np.uint8]
    scale: np.float16
    minimum: np.float16


def slow_group(numbers: NDArray[np.float32], bits: int) -> Slow:
    """Pack the numbers of one group."""
    low, high = numbers.min(), numbers.max()
    minimum = np.float16(low)
    if f32(minimum) > low:
        minimum = np.nextafter(minimum, np.float16(-np.inf))
    step = (high - f32(minimum)) / f32(2**bits - 1)
    scale = np.float16(step)
    if f32(scale) < step:
        scale = np.nextafter(scale, np.float16(np.inf))
    if scale == 0:
        return Slow(np.zeros(numbers.shape, np.uint8), scale, minimum)
    codes = np.rint((numbers - f32(minimum)) * (f32(1) / f32(scale)))
    assert codes.min() >= 0
    assert codes.max() < 2**bits
    return Slow(codes.astype(np.uint8), scale, minimum)


def slow_token_groups(columns: int, smallest: int) -> list[range]:
    """Cut columns into groups of at least `smallest`, the first ones larger by one where they do not come out even."""
    count = max(1, columns // smallest)
    sizes = [columns // count + (at < columns % count) for at in range(count)]
    starts = np.cumsum([0, *sizes]).tolist()
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=False)]


class SlowSide(NamedTuple):
    """Keys or values, packed the slow way: codes as they are, not yet two in a byte."""

    codes: NDArray[np.uint8]
    scale: NDArray[np.float16]
    minimum: NDArray[np.float16]
    step: NDArray[np.float32]  # The scale of each number.


def slow_side(numbers: NDArray[np.float32], codec: str, side: str) -> SlowSide:
    """Pack `[kv_heads, seq, head_dim]`: keys per channel over tokens, values per token over channels."""
    smallest, most, bits = RULES[codec]
    heads, columns, head_dim = numbers.shape
    tokens = slow_token_groups(columns, smallest)
    width = max(size for size in range(1, most + 1) if head_dim % size == 0)
    channels = [range(at, at + width) for at in range(0, head_dim, width)]
    shape = (heads, len(tokens), head_dim) if side == "keys" else (heads, columns, len(channels))
    codes, step = np.empty(numbers.shape, np.uint8), np.empty(numbers.shape, f32)
    scale, minimum = np.empty(shape, np.float16), np.empty(shape, np.float16)
    for head, one, two in np.ndindex(*shape):
        where = (
            (head, slice(tokens[one].start, tokens[one].stop), two)
            if side == "keys"
            else (head, one, slice(channels[two].start, channels[two].stop))
        )
        codes[where], scale[head, one, two], minimum[head, one, two] = slow_group(numbers[where], bits)
        step[where] = scale[head, one, two]
    return SlowSide(codes, scale, minimum, step)


def two_in_a_byte(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put a head's first half into the low bits and its second half into the high ones."""
    half = codes.shape[-1] // 2
    found: NDArray[np.uint8] = (codes[..., :half] + 16 * codes[..., half:].astype(int)).astype(np.uint8)
    return found
