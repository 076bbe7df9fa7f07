"""Columns as rows of numbers, which is what a map between caches works on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.fusers.pair import Side
from unspoken.manifest import Span, Step
from unspoken.spec import ModelSpec


def as_rows(cache: KVCache) -> Float[Tensor, "columns width"]:
    """Return a position-free cache as one row for each column.

    A row holds, layer after layer, the keys of all heads and then the values of all heads.

    Raises:
        UsageError: If the keys are turned to positions, or layers hold different columns.
    """
    if cache.manifest.rope != "removed" or len({layer.columns for layer in cache.layers}) != 1:
        raise UsageError(
            f"A cache with RoPE {cache.manifest.rope} and {sorted({layer.columns for layer in cache.layers})} columns "
            "cannot be mapped.",
            "Remove RoPE first, and take a cache whose layers hold the same columns.",
        )
    halves = [half for layer in cache.layers for half in (layer.keys, layer.values)]
    return torch.cat([half.to(torch.float32).transpose(0, 1).flatten(1) for half in halves], dim=1)


def as_layers(rows: Float[Tensor, "columns width"], side: Side) -> Float[Tensor, "layers 2 kv_heads columns head_dim"]:
    """Return rows as keys (0) and values (1) of each layer: a view, through which gradients pass.

    Raises:
        IncompatibleCache: If rows of this model have another width.
    """
    if rows.shape[1] != side.width:
        raise IncompatibleCache(
            f"Columns of {rows.shape[1]} numbers are none of '{side.name}', whose columns have {side.width}.",
            "Use a fuser for this model.",
        )
    parts = rows.reshape(len(rows), side.layers, 2, side.kv_heads, side.head_dim)
    return parts.permute(1, 2, 3, 0, 4)


def as_cache(rows: Float[Tensor, "columns width"], spec: ModelSpec, lineage: Sequence[Step], sender: str) -> KVCache:
    """Return rows as a position-free cache of content, its columns at positions from 0.

    Args:
        rows: One for each column.
        spec: The model whose columns they are.
        lineage: What was done to make them.
        sender: Name of the agent that read.
    """
    halves = as_layers(rows, Side.of(spec))
    positions = torch.arange(len(rows), dtype=torch.int32)
    layers = [
        KVLayer(index, keys.contiguous(), values.contiguous(), positions)
        for index, (keys, values) in enumerate(halves.unbind(0))
    ]
    spans = (Span("content", 0, len(rows)),)
    return KVCache.build(layers, spec, rope="removed", spans=spans, lineage=lineage, sender=sender)
