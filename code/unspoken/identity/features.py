"""What a cache says about its agent: averages of its content columns, layer by layer.

Positions are taken out of keys first, so that a cache that was moved says the same. Only content columns count: those
of the system prompt and of the chat template would give the card away as words.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.errors import UsageError
from unspoken.manifest import Step
from unspoken.transforms.rope import RemoveRope
from unspoken.transforms.select import keep

PARTS = ("keys", "values")


def content(cache: KVCache) -> KVCache:
    """Return a cache's content columns, position-free; positions stay beside them.

    Raises:
        UsageError: If it has none, or not all of its model's layers.
    """
    missing = cache.spec.layers - len(cache.layers)
    if missing:
        raise UsageError(
            f"The cache lacks {missing} of {cache.spec.layers} layers: a signature is read across all of them.",
            "Give the whole cache.",
        )
    spans = [span for span in cache.manifest.spans if span.kind == "content"]
    if not spans:
        raise UsageError(
            "The cache has no content columns: nothing in it was written or read by an agent.",
            "Capture it with `unspoken capture`, which marks them.",
        )
    longest = max(layer.columns for layer in cache.layers)
    if sum(span.stop - span.start for span in spans) == longest:
        return RemoveRope()(cache)
    chosen = torch.cat([torch.arange(span.start, span.stop) for span in spans])
    return RemoveRope()(keep(cache, [chosen] * len(cache.layers), Step("content")))


def pooled(columns: KVCache) -> Float[Tensor, "layers parts kv_heads head_dim"]:
    """Return the averages of position-free keys and of values over all columns, float32.

    Args:
        columns: Content columns, from `content`; layers may hold different ones.

    Raises:
        UsageError: If a layer holds none.
    """
    return torch.stack([_averages(layer, 0, layer.columns) for layer in columns.layers])


def pooled_windows(columns: KVCache, width: int) -> Float[Tensor, "windows layers parts kv_heads head_dim"]:
    """Return the averages over runs of `width` columns, the last run taking what is left over.

    Args:
        columns: Content columns, the same in all layers.
        width: Columns of a window.

    Raises:
        UsageError: If there are fewer columns than a window has, or layers hold different columns.
    """
    counts = {layer.columns for layer in columns.layers}
    if len(counts) != 1 or columns.columns < width:
        raise UsageError(
            f"Windows of {width} columns cannot be taken of layers with {sorted(counts)} columns.",
            "Give a whole cache with at least one window's columns.",
        )
    return torch.stack(
        [torch.stack([_averages(layer, *run) for layer in columns.layers]) for run in runs(columns.columns, width)]
    )


def runs(columns: int, width: int) -> list[tuple[int, int]]:
    """Return windows as ranges of columns; what is left over goes to the last one."""
    starts = [at * width for at in range(max(1, columns // width))]
    return list(pairwise([*starts, columns]))


def alike(columns: KVCache, positions: Sequence[Int[Tensor, " _"]]) -> KVCache:
    """Return the columns that stand at the same places in a text as another cache's.

    Args:
        columns: Content columns of the whole text, as one agent read it.
        positions: For each layer, the places wanted, counted from the text's first token.

    Raises:
        UsageError: If a place lies outside the text.
    """
    everywhere = torch.arange(columns.columns, dtype=torch.int32)
    if all(torch.equal(each, everywhere) for each in positions):
        return columns
    return keep(columns, [each.to(torch.int64) for each in positions], Step("alike"))


def places(columns: KVCache, start: int | None = None) -> list[Int[Tensor, " _"]]:
    """Return, for each layer, where in their text a cache's columns stand.

    Args:
        columns: Content columns.
        start: Position of the text's first token; by default that of the first column that any layer holds.
    """
    starts = [int(layer.positions.min()) for layer in columns.layers if layer.columns]
    first = min(starts, default=0) if start is None else start
    return [layer.positions - first for layer in columns.layers]


def _averages(layer: KVLayer, start: int, stop: int) -> Float[Tensor, "parts kv_heads head_dim"]:
    if stop <= start:
        raise UsageError(f"Layer {layer.index} holds no column.", "Select some columns of every layer.")
    return torch.stack([each[:, start:stop].to(torch.float32).mean(dim=1) for each in (layer.keys, layer.values)])
