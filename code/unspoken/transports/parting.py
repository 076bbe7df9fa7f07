"""Caches that their tokens say all about: how many columns, what is left behind, and what has to be read again."""

from __future__ import annotations

import msgspec
import torch
from jaxtyping import Shaped
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.cachefile import Header
from unspoken.errors import CacheFileError
from unspoken.manifest import Step

PARTED = "part"


def addressed(cache: KVCache, codec: str | None, chunk: int) -> int:
    """Return how many columns of a cache its tokens say all about, in whole chunks; 0 if they do not.

    They do if it is what one engine computes for these tokens from the first position on, and nothing else was done.
    """
    info = cache.manifest
    known = info.token_ids is not None and len(info.token_ids) == cache.columns
    plain = codec in (None, info.dtype) and info.rope == "applied" and len(info.engines()) == 1
    read = {step.op for step in info.lineage} == {"prefill"}
    whole = [layer.index for layer in info.layers] == list(range(info.spec.layers))
    if not (known and plain and read and whole):
        return 0
    first = torch.arange(cache.columns, dtype=torch.int32)
    if any(layer.kind != "full" or not torch.equal(layer.positions.int(), first) for layer in cache.layers):
        return 0
    return cache.columns // chunk * chunk


def parted(cache: KVCache, columns: int) -> KVCache:
    """Return the first columns of a cache, with the token ids of the others in its history."""
    if columns == cache.columns:
        return cache
    kept, ids = cache.slice(0, columns), cache.manifest.token_ids or ()
    steps = (*kept.manifest.lineage, Step(PARTED, {"missing": list(ids[columns:])}))
    return KVCache(kept.layers, msgspec.structs.replace(kept.manifest, lineage=steps))


def missing(cache: KVCache) -> tuple[int, ...]:
    """Return the token ids that a cache was parted from, if that is the last that was done to it.

    Raises:
        CacheFileError: If they are no token ids.
    """
    info = cache.manifest
    if not info.lineage or info.lineage[-1].op != PARTED:
        return ()
    ids = info.lineage[-1].args.get("missing")
    if not isinstance(ids, list) or not all(type(each) is int and 0 <= each < info.spec.vocabulary for each in ids):
        raise CacheFileError("The cache names missing tokens that are none.", "Ask the sender to put it there again.")
    return tuple(ids)


def as_rows(cache: KVCache) -> Shaped[Tensor, "2 layers columns width"]:
    """Return keys and values as a token-addressed store has them: a row for each token, head after head."""
    return torch.stack(
        [
            torch.stack([getattr(layer, part).transpose(0, 1).flatten(1) for layer in cache.layers])
            for part in ("keys", "values")
        ]
    )


def as_file_data(rows: Shaped[Tensor, "2 layers columns width"], header: Header) -> Tensor:
    """Return rows as the data of the cache file with a header; positions are those of a plain reading."""
    info, columns = header.manifest.cache, rows.shape[2]
    data = torch.zeros(header.file_bytes - header.header_bytes, dtype=torch.uint8)
    positions = torch.arange(columns, dtype=torch.int32)
    for at, layer in enumerate(info.layers):
        heads = rows[:, at].reshape(2, columns, info.spec.kv_heads, info.spec.head_dim).transpose(1, 2)
        for part, tensor in (("keys", heads[0]), ("values", heads[1]), ("positions", positions)):
            place = header.tensors[f"layers.{layer.index}.{part}"]
            data[place.start : place.stop] = tensor.contiguous().reshape(-1).view(torch.uint8)
    return data
