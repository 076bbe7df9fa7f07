"""Take columns out of a cache before it is passed on: a system prompt, a thought, or some ranges.

What is taken out is gone, with its tokens. What stays was computed while it was in view, and still tells of it: whoever
can guess what stood there can try the guess (`docs/trust.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.errors import UsageError
from unspoken.manifest import SpanKind, Step
from unspoken.transforms.select import keep

KINDS: tuple[SpanKind, ...] = get_args(SpanKind)


@dataclass(frozen=True)
class Redact:
    """Remove the columns of some kinds, and those of some ranges; the others keep their positions.

    A column that is of several kinds goes if one of them goes. Columns without a kind stay, unless a range has them.

    Args:
        kinds: Of the spans whose columns go: `sink`, `system`, `template`, `content`, `thought`.
        ranges: First column that goes and the one after the last, counted from 0, as `unspoken inspect` shows spans.

    Raises:
        UsageError: If a kind is none of these, or a range is none.
    """

    kinds: tuple[str, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise UsageError(f"There are no '{unknown[0]}' columns.", f"The kinds are {', '.join(KINDS)}.")
        for start, stop in self.ranges:
            if not 0 <= start < stop:
                raise UsageError(
                    f"{start}-{stop} is no range of columns.", "Give the first one and the one after the last: 3-17."
                )

    def __call__(self, cache: KVCache, /) -> KVCache:
        """Return the cache without those columns.

        Raises:
            UsageError: If there are none to remove or none would be left, a range ends outside the cache, or its layers
                hold different columns.
        """
        gone = self.removed(cache)
        if not gone.any():
            there = ", ".join(sorted({span.kind for span in cache.manifest.spans})) or "not labelled"
            raise UsageError(
                f"Nothing would be removed: the cache has no column of kind {', '.join(self.kinds) or '(none given)'}, "
                f"its columns are {there}.",
                "See `unspoken inspect`; give ranges of columns where they are not labelled.",
            )
        if gone.all():
            raise UsageError("Nothing would be left of the cache.", "Remove fewer columns.")
        left = torch.nonzero(~gone).flatten()
        # As lists, which is what they are once the lineage was in a file.
        args = {"kinds": list(self.kinds), "ranges": [list(each) for each in self.ranges]}
        return keep(cache, [left] * len(cache.layers), Step("redact", args))

    def removed(self, cache: KVCache) -> Bool[Tensor, " columns"]:
        """Tell for each column whether it goes.

        Raises:
            UsageError: If a range ends outside the cache, or its layers hold different columns.
        """
        first = cache.layers[0]
        if any(not layer.positions.equal(first.positions) for layer in cache.layers):
            raise UsageError(
                "The cache's layers hold different columns, so that no span tells what each of them is.",
                "Redact the whole cache first, and select columns of what is left.",
            )
        gone = torch.zeros(first.columns, dtype=torch.bool)
        for start, stop in self.ranges:
            if stop > first.columns:
                raise UsageError(
                    f"The columns {start}-{stop} are not all there: the cache has {first.columns}.",
                    "See `unspoken inspect`.",
                )
            gone[start:stop] = True
        for span in cache.manifest.spans:
            if span.kind in self.kinds:
                gone[span.start : span.stop] = True
        return gone
