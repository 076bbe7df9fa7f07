"""Paired statistics: cluster bootstrap, exact McNemar, Holm.

Written with numpy alone. scipy has an exact binomial test, but transformers imports a large part of scipy
at every start where it is installed, which costs each `unspoken ask` 0.7 s (measured, `docs/log.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

DRAWS = 4000


class Interval(msgspec.Struct, frozen=True):
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float


class ClusterBootstrap:
    """Resamples whole clusters (source documents), because questions about one source are not independent.

    The same resamples serve every statistic, so that differences and ratios are paired.

    Args:
        clusters: The cluster of each item.
        seed: Of the resampling; part of the run record.
        draws: Number of resamples.

    Attributes:
        clusters: How many there are.
    """

    def __init__(self, clusters: Sequence[str], seed: int, draws: int = DRAWS) -> None:
        names = sorted(set(clusters))
        self._index = np.array([names.index(cluster) for cluster in clusters])
        self.clusters = len(names)
        rng = np.random.default_rng(seed)
        share = np.full(self.clusters, 1 / self.clusters)
        self._weights = rng.multinomial(self.clusters, share, size=draws).astype(np.float64)

    def means(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Return the mean of each resample, `[draws]`."""
        sums = np.bincount(self._index, weights=np.asarray(values, dtype=np.float64), minlength=self.clusters)
        sizes = np.bincount(self._index, minlength=self.clusters).astype(np.float64)
        resampled: NDArray[np.float64] = (self._weights @ sums) / (self._weights @ sizes)
        return resampled

    def item_weights(self) -> NDArray[np.float64]:
        """Return how often each item is in each resample, `[draws, items]`."""
        return self._weights[:, self._index]

    def interval(self, values: Sequence[float], level: float = 0.95) -> Interval:
        """Return the mean with its percentile interval."""
        return spread(float(np.mean(values)), self.means(values), level)


def spread(mean: float, resampled: NDArray[np.float64], level: float = 0.95) -> Interval:
    """Return a figure with the percentile interval of its resamples (those that are numbers)."""
    finite = resampled[np.isfinite(resampled)]
    if not math.isfinite(mean) or not finite.size:
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def mcnemar(left: Sequence[bool], right: Sequence[bool]) -> float:
    """Return the exact two-sided p-value that two paired right/wrong rows differ only by chance.

    Source: McNemar 1947, in the exact binomial form: of the items on which the two differ, half should
    favour each. Computed in whole numbers.
    """
    only_left = sum(a and not b for a, b in zip(left, right, strict=True))
    only_right = sum(b and not a for a, b in zip(left, right, strict=True))
    differing = only_left + only_right
    tail = sum(math.comb(differing, k) for k in range(min(only_left, only_right) + 1))
    return min(1.0, float(2 * tail / 2**differing))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for the whole family (Holm 1979, step-down)."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}
