"""Honest caches of a tiny model, and ways to make them lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.manifest import Step
from unspoken.transforms.codecs import codec_named

WIRES = ("float32", "bfloat16", "float16", "int8", "q8_0", "int4", "q4_0")
FINE = WIRES[:5]
Lie = Callable[[KVLayer, Sequence[int]], tuple[Tensor, Tensor]]


def tokens(count: int, seed: int) -> tuple[int, ...]:
    """Random tokens of which no two neighbours are the same."""
    steps = torch.randint(1, 250, (count,), generator=torch.Generator().manual_seed(seed))
    return tuple((steps.cumsum(0) % 256).tolist())


def text(count: int, seed: int) -> Prompt:
    """A prompt of such tokens."""
    return Prompt((Piece("content", tokens(count, seed)),))


def read(engine: Engine, count: int = 60, seed: int = 0) -> KVCache:
    """A whole cache."""
    return engine.prefill(text(count, seed))


def cut(engine: Engine, count: int = 60, seed: int = 0) -> KVCache:
    """The content columns of a cache, without the ten that stood before them."""
    before = engine.prefill(Prompt((Piece("system", tokens(10, 1000 + seed)),)))
    return engine.prefill(text(count, seed), before).span("content")


def sent(cache: KVCache, wire: str) -> KVCache:
    """A cache as it arrives."""
    codec = codec_named(wire)
    return codec.unpack(codec.pack(cache))


def changed(cache: KVCache, lie: Lie, columns: Sequence[int], layers: Sequence[int] | None = None) -> KVCache:
    """A cache some of whose columns are lies, in all layers or some; nothing in its manifest tells."""

    def one(layer: KVLayer) -> KVLayer:
        if layers is not None and layer.index not in layers:
            return layer
        keys, values = layer.keys.clone(), layer.values.clone()
        false_keys, false_values = lie(layer, columns)
        keys[:, list(columns)], values[:, list(columns)] = false_keys.to(keys.dtype), false_values.to(values.dtype)
        return KVLayer(layer.index, keys, values, layer.positions, layer.kind)

    return KVCache(tuple(map(one, cache.layers)), cache.manifest)


def neighbours(layer: KVLayer, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The column to the left of each: of another token, since no two neighbours are the same."""
    left = [(at - 1) % layer.columns for at in columns]
    return layer.keys[:, left], layer.values[:, left]


def louder(layer: KVLayer, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each column made longer by a twentieth."""
    return layer.keys[:, list(columns)] * 1.05, layer.values[:, list(columns)] * 1.05


def noisy(layer: KVLayer, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each column moved in a random direction by a tenth of its length."""
    generator = torch.Generator().manual_seed(7)

    def moved(numbers: Tensor) -> Tensor:
        noise = torch.randn(numbers.shape, generator=generator)
        share = numbers.norm(dim=(0, 2), keepdim=True) / noise.norm(dim=(0, 2), keepdim=True) / 10
        return numbers + noise * share

    return moved(layer.keys[:, list(columns)]), moved(layer.values[:, list(columns)])


def keys_only(layer: KVLayer, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The keys of other tokens with the right values."""
    return neighbours(layer, columns)[0], layer.values[:, list(columns)]


def relabelled(cache: KVCache, *steps: Step) -> KVCache:
    """The same columns with more steps in their history."""
    return cache.rebuilt(steps[0], lambda layer: (layer.keys, layer.values, layer.positions))
