"""Read the text out of a cache: what anyone who has the model can do.

Layer 0 computes a column's values from the token alone: its embedding, normalised, times one matrix. So nearly
every token of the vocabulary has a column of its own, and the nearest one tells the token (the inversion of "Shadow in
the Cache", arXiv 2508.09442, for layer 0). Keys tell as much once their rotation is taken off. Neither token ids nor
other layers are needed.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError
from unspoken.manifest import require_compatible
from unspoken.transforms.rope import RemoveRope
from unspoken.trust.recompute import first_layer

# Distances held at once, 64 MB of them, and the fewest tokens they are computed for.
DISTANCES, CHUNK = 1 << 24, 256
GAP = " ... "


@dataclass(frozen=True)
class Leak:
    """What was read out of a cache.

    Attributes:
        token_ids: The token each column of layer 0 is nearest to.
        text: They spell; where positions are missing there is `GAP`.
        distance: The largest distance of a column to its token's own, as a share of the latter's length.
        recovered: The share of columns whose token is the one the cache names; None where it names none.
        by: What told the tokens, `values` or `keys`.
        seconds: What it took.
    """

    token_ids: tuple[int, ...]
    text: str = field(repr=False)
    distance: float
    recovered: float | None
    by: Literal["values", "keys"]
    seconds: float


def leak(cache: KVCache, engine: Engine) -> Leak:
    """Read the tokens of a cache from layer 0 alone.

    Args:
        cache: With or without token ids, which are only compared with what is found.
        engine: The same model. One whose layers can be run by themselves needs seconds, another reads its whole
            vocabulary.

    Raises:
        IncompatibleCache: If another model made the cache.
        UsageError: If it does not hold layer 0, or no column there.
    """
    require_compatible(cache.spec, engine.spec)
    began = time.perf_counter()
    layer = _first(cache)
    # Whoever blanks the values to hide the text has to blank the keys, too.
    by: Literal["values", "keys"] = "values" if bool(layer.values.any()) else "keys"
    found, named = _nearest(getattr(layer, by), engine, by), cache.manifest.token_ids
    own = _rows(getattr(first_layer(engine, found), by))
    distances = (_rows(getattr(layer, by)) - own).norm(dim=1) / own.norm(dim=1)
    recovered = None
    if named is not None and len(named) == len(found):
        recovered = sum(map(int.__eq__, found, named)) / len(found)
    text = _spelt(found, layer.positions, engine)
    return Leak(found, text, float(distances.max()), recovered, by, time.perf_counter() - began)


def _first(cache: KVCache) -> KVLayer:
    layer = next((layer for layer in cache.layers if layer.index == 0 and layer.columns), None)
    if layer is None:
        raise UsageError(
            "The cache holds no column of layer 0, and this reads that layer alone: deeper columns depend on all that "
            "stood before.",
            "That does not make it safe: whoever guesses the text can compute it and compare.",
        )
    held = KVCache.build([layer], cache.spec, rope=cache.manifest.rope)
    return RemoveRope()(held).layers[0]


def _nearest(
    columns: Float[Tensor, "kv_heads columns head_dim"], engine: Engine, by: Literal["values", "keys"]
) -> tuple[int, ...]:
    """Return the token each column is nearest to, the first of equal ones."""
    sought = _rows(columns)
    best = torch.full((len(sought),), torch.inf)
    tokens = torch.zeros(len(sought), dtype=torch.int64)
    step = max(CHUNK, DISTANCES // len(sought))
    for start in range(0, engine.spec.vocabulary, step):
        ids = range(start, min(start + step, engine.spec.vocabulary))
        near, at = torch.cdist(sought, _rows(getattr(first_layer(engine, ids), by))).min(dim=1)
        closer = near < best
        best, tokens = torch.where(closer, near, best), torch.where(closer, at + start, tokens)
    return tuple(tokens.tolist())


def _rows(columns: Float[Tensor, "kv_heads columns head_dim"]) -> Float[Tensor, "columns numbers"]:
    return columns.to(torch.float32).transpose(0, 1).flatten(1)


def _spelt(token_ids: tuple[int, ...], positions: Int[Tensor, " columns"], engine: Engine) -> str:
    """Return the text of tokens, with a mark where there is a gap between their positions."""
    breaks = (torch.nonzero(positions.diff() != 1).flatten() + 1).tolist()
    edges = [0, *breaks, len(token_ids)]
    return GAP.join(engine.decode(token_ids[start:stop]) for start, stop in itertools.pairwise(edges))
