"""What tests put into stores, and how they compare what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from unspoken.cache import KVCache
from unspoken.channels.kv import content_columns
from unspoken.engines.fake import FakeEngine
from unspoken.errors import TransportFailed
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


def eventually(act: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return what comes of an act once it is something: a server writes to what it shares in its own time."""
    until = time.monotonic() + seconds
    while True:
        try:
            if found := act():
                return found
        except TransportFailed:
            if time.monotonic() > until:
                raise
        assert time.monotonic() < until
        time.sleep(0.05)
