"""Keep some of a cache's columns: the same in all layers, or others in each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.errors import UsageError
from unspoken.manifest import Span, Step


def keep(cache: KVCache, columns: Sequence[Int[Tensor, " _"]], step: Step) -> KVCache:
    """Return a cache with only some columns of each layer, positions kept.

    Args:
        cache: The whole one.
        columns: For each layer, which of its columns, in ascending order; none for a layer that is left empty.
        step: What chose them, for the lineage.

    Raises:
        UsageError: If no column is kept at all, or one does not exist.
    """
    if not any(len(each) for each in columns):
        raise UsageError("The selection keeps no column: nothing would be handed over.", "Keep a larger share.")
    for layer, chosen in zip(cache.layers, columns, strict=True):
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < layer.columns:
            raise UsageError(
                f"Layer {layer.index} has {layer.columns} columns; {int(chosen.min())} to {int(chosen.max())} were "
                "chosen.",
                "Choose among those it has.",
            )
    by_index = {layer.index: chosen for layer, chosen in zip(cache.layers, columns, strict=True)}
    shared = len({each.numpy().tobytes() for each in columns}) == 1
    return cache.rebuilt(step, lambda layer: _kept(layer, by_index[layer.index]), **_described(cache, columns, shared))


def _kept(layer: KVLayer, chosen: Int[Tensor, " kept"]) -> tuple[Tensor, Tensor, Tensor]:
    return layer.keys[:, chosen], layer.values[:, chosen], layer.positions[chosen]


def _described(cache: KVCache, columns: Sequence[Int[Tensor, " _"]], shared: bool) -> dict[str, object]:
    """Return spans and tokens of what is kept; where layers keep different columns, there is no token per column."""
    if not shared:
        longest = max(len(each) for each in columns)
        return {"spans": (Span("content", 0, longest),), "token_ids": None}
    chosen, spans = columns[0], []
    for span in cache.manifest.spans:
        at = torch.nonzero((chosen >= span.start) & (chosen < span.stop)).flatten()
        if len(at):
            spans.append(Span(span.kind, int(at[0]), int(at[-1]) + 1))
    ids = cache.manifest.token_ids
    return {"spans": tuple(spans), "token_ids": None if ids is None else tuple(ids[at] for at in chosen.tolist())}
