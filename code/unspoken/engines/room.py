"""A layer of transformers' cache with room to grow, so that columns are copied once and not at every step.

transformers' own dynamic layer makes a new tensor of all columns for each update. With thousands of columns, that
copy costs more than the rest of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from unspoken.cache import KVLayer


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Holds its own copy of the columns it starts from, and writes new ones behind them in place."""

    def __init__(
        self, segments: Sequence[tuple[KVLayer, int]], room: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        kv_heads, _, head_dim = segments[0][0].keys.shape
        columns = sum(width for _, width in segments)
        shape = (1, kv_heads, columns + room, head_dim)
        self._room = (torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
        at = 0
        for layer, width in segments:
            held = at + layer.columns
            self._room[0][0, :, at:held], self._room[1][0, :, at:held] = layer.keys, layer.values
            at += width
            for part in self._room:  # Columns this layer lacks are masked; what stands there must only be finite.
                part[0, :, held:at] = 0
        self.dtype, self.device, self.is_initialized = dtype, device, True
        self._show(columns)

    def update(
        self,
        key_states: Float[Tensor, "batch kv_heads new head_dim"],
        value_states: Float[Tensor, "batch kv_heads new head_dim"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch kv_heads total head_dim"], Float[Tensor, "batch kv_heads total head_dim"]]:
        """Write new columns behind the old ones and return all of them."""
        filled, total = self._filled, self._filled + key_states.shape[-2]
        if total > self._room[0].shape[-2]:
            self._grow(total)
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, filled:total] = states
        return self._show(total)

    def _show(self, columns: int) -> tuple[Tensor, Tensor]:
        keys, values = self._room[0][:, :, :columns], self._room[1][:, :, :columns]
        self.keys, self.values, self._filled = keys, values, columns
        return keys, values

    def _grow(self, least: int) -> None:
        grown = []
        for old in self._room:
            new = torch.empty((*old.shape[:2], least + least // 2, old.shape[3]), dtype=old.dtype, device=old.device)
            new[:, :, : self._filled] = old[:, :, : self._filled]
            grown.append(new)
        self._room = (grown[0], grown[1])


def roomy_cache(
    layers: Sequence[Sequence[tuple[KVLayer, int]]], room: int, device: torch.device, dtype: torch.dtype
) -> DynamicCache:
    """Return transformers' cache with several segments side by side in each layer.

    Args:
        layers: For each layer of the model, the segments: their columns, and how many the longest layer of each has.
        room: Columns to be added without another copy.
        device: Where the model computes.
        dtype: What it computes in.
    """
    cache = DynamicCache()
    cache.layers = [RoomyLayer(each, room, device, dtype) for each in layers]
    return cache
