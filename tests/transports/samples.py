"""What tests put into stores, and how they compare what comes back."""

from __future__ import annotations

import torch

from unspoken.cache import KVCache
from unspoken.channels.kv import content_columns
from unspoken.engines.fake import FakeEngine
from unspoken.session import Agent

MILL = "The old mill is run by Anna."


def read(text: str) -> KVCache:
    """Return what an agent has in mind that has read something, moved to where it is of use."""
    return content_columns(Agent("lyra", FakeEngine()).read(text).cache)


def same(left: KVCache, right: KVCache) -> bool:
    """Tell whether two caches are one to the last bit, what they say of themselves with it."""
    return left.manifest == right.manifest and same_columns(left, right)


def same_columns(left: KVCache, right: KVCache) -> bool:
    """Tell whether all numbers of two caches are one to the last bit."""
    return all(
        torch.equal(getattr(one, part), getattr(other, part))
        for one, other in zip(left.layers, right.layers, strict=True)
        for part in ("keys", "values", "positions")
    )
