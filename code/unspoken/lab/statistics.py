"""Paired statistics: cluster bootstrap, exact McNemar, Holm, and intervals of a few ratios.

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

    def __init__(self, clusters: Sequence[str], seed: int | Sequence[int], draws: int = DRAWS) -> None:
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


def geometric(ratios: Sequence[float]) -> Interval:
    """Return the geometric mean of ratios with its 95 % interval, Student's t on their logarithms.

    A bootstrap of a handful is too narrow: of two values it gives the two, which covers the truth half the time.
    One ratio has no interval, none has no mean either: what is unknown is not a number.
    """
    if not ratios:
        return Interval(*3 * [float("nan")])
    logs = np.log(ratios)
    mean = float(logs.mean())
    if len(logs) == 1:
        return Interval(math.exp(mean), float("nan"), float("nan"))
    half = student(len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def student(freedom: int, level: float = 0.95) -> float:
    """Return the value within whose reach, on both sides of 0, Student's t falls with a probability.

    By bisection of its distribution function for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and
    26.7.4), of which the angle whose tangent is t / sqrt(freedom) is the variable.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """Return the probability that Student's t is nearer to 0 than an angle stands for."""
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * step / (step + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
