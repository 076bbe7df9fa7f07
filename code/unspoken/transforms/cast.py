"""Change the element type of keys and values: what a cache weighs on the wire."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from unspoken.cache import DTYPES, KVCache
from unspoken.errors import UsageError
from unspoken.manifest import Step


@dataclass(frozen=True)
class Cast:
    """Cast keys and values to `float32`, `bfloat16` or `float16`; narrowing loses precision."""

    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"There is no element type '{self.dtype}'.", f"Choose one of {', '.join(DTYPES)}.")

    def __call__(self, cache: KVCache, /) -> KVCache:
        """Return the cache in the other type (the same one if nothing changes)."""
        if cache.manifest.dtype == self.dtype:
            return cache
        target = DTYPES[self.dtype]
        return cache.rebuilt(
            Step("cast", asdict(self)),
            lambda layer: (layer.keys.to(target), layer.values.to(target), layer.positions),
        )
