"""Several caches side by side in transformers' form, and how to take one out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unspoken.cache import KVCache, KVLayer


@dataclass(frozen=True)
class Pack:
    """The distinct pasts of some turns, each in its own run of columns.

    Attributes:
        inner: transformers' cache; grows while the model reads.
        ranges: For each turn, the columns of its past.
        columns: Columns of all pasts together.
        absent: `[layers, columns]`: which of them a layer does not hold; None if all layers hold all.
    """

    inner: Any
    ranges: tuple[range, ...]
    columns: int
    absent: Bool[Tensor, "layers columns"] | None

    def read(self, past: KVCache | None, positions: Int[Tensor, " new"]) -> list[KVLayer]:
        """Return the columns after a prompt was read on top of the only past: each layer's own, and the prompt's."""
        layers = []
        for index, inner in enumerate(self.inner.layers):
            keys, values, own = inner.keys[0], inner.values[0], positions
            if past is not None:
                held = past.layers[index].columns
                own = torch.cat((past.layers[index].positions, positions))
                if held != self.columns:
                    keys = torch.cat((keys[:, :held], keys[:, self.columns :]), dim=1)
                    values = torch.cat((values[:, :held], values[:, self.columns :]), dim=1)
            layers.append(KVLayer(index, keys.contiguous().cpu(), values.contiguous().cpu(), own))
        return layers


def side_by_side(
    pasts: Sequence[KVCache | None], layers: int, room: int, device: torch.device, dtype: torch.dtype
) -> Pack:
    """Copy the distinct pasts into one cache of transformers, once, with room for more columns.

    Args:
        pasts: For each turn, what it stands on; turns may share a past.
        layers: Layers of the model.
        room: Columns that will be added.
        device: Where the model computes.
        dtype: What it computes in.
    """
    from transformers import DynamicCache

    from unspoken.engines.room import roomy_cache

    ranges: dict[int, range] = {id(None): range(0)}
    distinct: list[KVCache] = []
    columns = 0
    for past in pasts:
        if past is not None and id(past) not in ranges:
            longest = max(layer.columns for layer in past.layers)
            ranges[id(past)] = range(columns, columns + longest)
            distinct.append(past)
            columns += longest
    where = tuple(ranges[id(past)] for past in pasts)
    if not distinct:
        return Pack(DynamicCache(), where, 0, None)
    segments = [[(past.layers[index], len(ranges[id(past)])) for past in distinct] for index in range(layers)]
    absent = torch.zeros((layers, columns), dtype=torch.bool)
    for index in range(layers):
        for past in distinct:
            run = ranges[id(past)]
            absent[index, run.start + past.layers[index].columns : run.stop] = True
    gaps = absent if bool(absent.any()) else None
    return Pack(roomy_cache(segments, room, device, dtype), where, columns, gaps)
