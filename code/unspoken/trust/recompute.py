"""Compute columns again from token ids: all of a text's in the first layers, or layer 0 of any tokens.

Every engine can do it with a prefill. Where layers can be run by themselves, only those wanted are: the first three of
SmolLM2's thirty take a tenth of the time. Nothing of the cache in question is used. Standing on its own columns instead
would cost less for a few columns of a long text, but what 4 and 8 bits lost in them grows from layer to layer, up to
twenty times a column's length (Qwen2.5-Coder-0.5B in q4_0), so that honest columns and false ones could not be told
apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.capabilities import Layered
from unspoken.engines.checks import require_even, require_injectable, require_room
from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.transforms.rope import RemoveRope

# Tokens computed at once, so that a mask is [256, columns] and small contexts have room for them.
CHUNK = 256


def first_layer(engine: Engine, token_ids: Sequence[int]) -> KVLayer:
    """Return the columns of layer 0 for some tokens, position-free: they depend on nothing but the token.

    Args:
        engine: The model.
        token_ids: In any order; they need not be a text.
    """
    parts = [_first_layer(engine, token_ids[at : at + CHUNK]) for at in range(0, len(token_ids), CHUNK)]
    keys, values, positions = (
        torch.cat([getattr(part, side) for part in parts], dim=dim)
        for side, dim in (("keys", 1), ("values", 1), ("positions", 0))
    )
    return KVLayer(0, keys, values, positions)


def _first_layer(engine: Engine, token_ids: Sequence[int]) -> KVLayer:
    if isinstance(engine, Layered):
        count = len(token_ids)
        # A key at position 0 is turned by no angle: it is position-free as it comes.
        nowhere = torch.zeros(count, dtype=torch.int64)
        return engine.through(engine.embed(token_ids), _blank(engine, 1), torch.arange(count), nowhere)[1][0]
    return RemoveRope()(engine.prefill(_prompt(token_ids))).layers[0]


def whole_text(engine: Engine, token_ids: Sequence[int], prefix: KVCache | None, depth: int) -> KVCache:
    """Return the columns of a text in the first layers, position-free.

    Args:
        engine: The model.
        token_ids: The text.
        prefix: What stands before it; its columns are not returned.
        depth: How many layers are wanted; engines that run all of them at once return more.

    Raises:
        IncompatibleCache: If another model made the prefix.
        ContextOverflow: If the text does not fit the model.
    """
    if prefix is not None:
        require_injectable(prefix, engine.spec)
        require_even(prefix, engine.name)
    require_room(0 if prefix is None else prefix.next_position, len(token_ids), engine.spec)
    before = 0 if prefix is None else prefix.columns
    if isinstance(engine, Layered):
        layers = _layer_by_layer(engine, token_ids, prefix, depth)
    else:
        layers = list(engine.prefill(_prompt(token_ids), prefix).layers)
    made = KVCache.build(layers, engine.spec)
    return RemoveRope()(made.slice(before, made.columns))


def _layer_by_layer(engine: Engine, token_ids: Sequence[int], prefix: KVCache | None, depth: int) -> list[KVLayer]:
    run = cast(Layered, engine)
    layers = _blank(engine, depth) if prefix is None else list(prefix.layers[:depth])
    column, position = (0, 0) if prefix is None else (prefix.columns, prefix.next_position)
    for at in range(0, len(token_ids), CHUNK):
        chunk = token_ids[at : at + CHUNK]
        behind = at + torch.arange(len(chunk))
        _, layers = run.through(run.embed(chunk), layers, column + behind, position + behind)
    return layers


def _blank(engine: Engine, depth: int) -> list[KVLayer]:
    """Return the first layers with no column."""
    none = torch.empty(engine.spec.kv_heads, 0, engine.spec.head_dim)
    return [KVLayer(index, none, none, torch.empty(0, dtype=torch.int32)) for index in range(depth)]


def _prompt(token_ids: Sequence[int]) -> Prompt:
    return Prompt((Piece("content", tuple(token_ids)),))
