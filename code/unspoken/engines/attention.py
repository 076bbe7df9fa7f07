"""Attention for grouped queries without copying keys and values.

transformers' own function repeats keys and values for each query head of a group whenever there is a mask, and
here there always is one. With long caches and few new tokens, these copies cost more than the attention itself.
The heads of a group see the same keys, so their queries can stand one after the other along the token axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

NAME = "unspoken_folded"


@dataclass(frozen=True)
class Gaps:
    """Columns that some layers do not hold, where all layers' tensors are as long as the longest.

    A model of transformers makes one mask for all its layers. With caches of different lengths, that mask lets
    tokens of the short layers see later tokens (KVComm's published code does); here each layer gets its own.

    Attributes:
        absent: `[layers, past]`: whether a layer lacks a column.
        lenient: `[new, total]`: what is allowed instead in layers that lack some, or None for the same as elsewhere.
    """

    absent: Bool[Tensor, "layers past"]
    lenient: Bool[Tensor, "new total"] | None = None

    def masked(self, mask: Float[Tensor, "1 1 new total"], layer: int) -> Float[Tensor, "1 1 new total"]:
        """Return the mask of one layer."""
        lacking, lowest = self.absent[layer].to(mask.device), torch.finfo(mask.dtype).min
        if not lacking.any():
            return mask
        if self.lenient is None:
            own = mask.clone()
        else:
            own = torch.zeros_like(mask).masked_fill_(~self.lenient.to(mask.device), lowest)
        own[..., : len(lacking)].masked_fill_(lacking, lowest)
        return own


@runtime_checkable
class Watch(Protocol):
    """Is shown what every layer attends with."""

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "heads new head_dim"],
        key: Float[Tensor, "kv_heads total head_dim"],
        mask: Float[Tensor, "new total"],
        scaling: float,
    ) -> None:
        """Called once for each layer of a forward pass."""
        ...


def register() -> None:
    """Make the function known to transformers by its name; models are loaded with it by `engines.transformers.load`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, folded_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def folded_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads new head_dim"],
    key: Float[Tensor, "batch kv_heads total head_dim"],
    value: Float[Tensor, "batch kv_heads total head_dim"],
    attention_mask: Shaped[Tensor, "batch 1 new total"] | None,
    scaling: float | None = None,
    gaps: Gaps | None = None,
    watch: Watch | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch new heads head_dim"], None]:
    """Return attention as transformers' functions do: outputs by token and head, and no weights.

    Args:
        module: The attention layer.
        query: Turned to its positions.
        key: Turned likewise.
        value: One for each key.
        attention_mask: Added to the scores. None, as transformers itself may pass when a model is used outside this
            package, leaves the call to its own function.
        scaling: Of the scores; one over the square root of head_dim if None.
        gaps: Columns that this layer may lack; reaches it as an argument of the model's forward pass.
        watch: Is shown queries and keys; reaches it likewise.
        **others: What transformers passes along besides.
    """
    if attention_mask is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **others)
    if gaps is not None:
        attention_mask = gaps.masked(attention_mask, int(module.layer_idx))  # type: ignore[arg-type]
    if watch is not None:
        scale = scaling or query.shape[-1] ** -0.5
        watch(int(module.layer_idx), query[0], key[0], attention_mask[0, 0], scale)  # type: ignore[arg-type]
    batch, heads, new, head_dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    queries = query.reshape(batch, kv_heads, group * new, head_dim)
    mask = attention_mask.repeat(1, 1, group, 1)
    made = scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scaling)
    return made.reshape(batch, heads, new, head_dim).transpose(1, 2).contiguous(), None
