"""Attention for grouped queries without copying keys and values.

transformers' own function repeats keys and values for each query head of a group whenever there is a mask, and
here there always is one. With long caches and few new tokens, these copies cost more than the attention itself.
The heads of a group see the same keys, so their queries can stand one after the other along the token axis.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

NAME = "unspoken_folded"


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
    attention_mask: Float[Tensor, "batch 1 new total"],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "batch new heads head_dim"], None]:
    """Return attention as transformers' functions do: outputs by token and head, and no weights."""
    batch, heads, new, head_dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    queries = query.reshape(batch, kv_heads, group * new, head_dim)
    mask = attention_mask.repeat(1, 1, group, 1)
    made = scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scaling)
    return made.reshape(batch, heads, new, head_dim).transpose(1, 2).contiguous(), None
