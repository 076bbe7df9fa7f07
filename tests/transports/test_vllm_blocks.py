"""Blocks of vLLM's CPU backend: packed and unpacked, and against the packing written out element by element."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unspoken.errors import UsageError
from unspoken.transports.lmcache_client import Address, Server
from unspoken.transports.vllm_blocks import BLOCK, pack, unpack


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 8]))
def test_what_is_packed_comes_out_again(layers: int, heads: int, blocks: int, head_dim: int) -> None:
    shape = (layers, heads, blocks * BLOCK, head_dim)
    keys, values = torch.rand(shape), torch.rand(shape)
    packed = pack(keys, values)
    assert packed.shape == (layers, blocks * BLOCK, heads * 2 * head_dim)
    for one, other in zip(unpack(packed, heads), (keys, values), strict=True):
        assert torch.equal(one, other)


def test_a_block_has_its_keys_turned_over_and_its_values_behind_them() -> None:
    heads, head_dim = 2, 4
    keys = torch.arange(heads * 2 * BLOCK * head_dim).reshape(1, heads, 2 * BLOCK, head_dim).float()
    values = -keys
    packed = pack(keys, values)[0]
    for head in range(heads):
        for block in range(2):
            rows = packed[block * BLOCK : (block + 1) * BLOCK].reshape(BLOCK, heads, 2 * head_dim)[:, head].flatten()
            for at in range(BLOCK):
                for dim in range(head_dim):
                    token = block * BLOCK + at
                    assert rows[dim * BLOCK + at] == keys[0, head, token, dim]
                    assert rows[BLOCK * head_dim + at * head_dim + dim] == values[0, head, token, dim]


def test_only_whole_blocks_are_kept(lmcache: Address) -> None:
    server = Server(lmcache)  # Its chunks are of 16 tokens.
    with pytest.raises(UsageError, match="a multiple of 32, to a store with --chunk 32"):
        server.put_blocks("m", list(range(32)), torch.zeros(1, 32, 8), 1)
