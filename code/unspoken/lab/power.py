"""How many questions it takes to see a difference, and what a number of them can see.

Two arms answer the same questions, right or wrong. What counts are the questions on which they differ: the exact
McNemar test asks whether half of these favour each. Its power is summed over how many there may be, and computed, not
simulated.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unspoken.errors import UsageError

LEVEL, POWER = 0.05, 0.80
# Of 119 pairs of arms on record that lie 2 to 8 points apart, half differ on at most 12.5 % of the questions, and a
# tenth on 37 % and more (docs/log.md, 2026-11-28).
DIFFERING = 0.20
MOST_ITEMS = 20_000


def power(items: int, difference: float, differing: float = DIFFERING, level: float = LEVEL) -> float:
    """Return the probability that the exact two-sided McNemar test sees a difference.

    The unconditional power of the conditional exact test: the number of differing questions is binomial, and so is, of
    these, the number that favour one arm.

    Args:
        items: Questions that both arms answer.
        difference: In accuracy, 0 to 1.
        differing: Share of the questions on which one arm is right and the other wrong.
        level: Of the test.

    Raises:
        UsageError: If the arms cannot be so far apart with so few differing answers.
    """
    _require(difference, differing)
    favoured = (differing + difference) / (2 * differing)
    chances = _binomial(items, differing)
    # A handful of terms hold all but a billionth of the sum.
    likely = [count for count in range(1, items + 1) if chances[count] > 1e-12]
    return float(sum(chances[count] * _rejected(count, favoured, level) for count in likely))


def items_needed(difference: float, differing: float = DIFFERING, wanted: float = POWER, level: float = LEVEL) -> int:
    """Return the fewest questions from which on a difference is seen with some power.

    Begins at the number of Connor 1987 (Biometrics 43, 207-211), which holds for the test in its normal approximation.

    Raises:
        UsageError: If it takes more than 20,000, or no number would do.
    """
    _require(difference, differing)
    items = max(2, connor(difference, differing, wanted, level) - 10)
    while items <= MOST_ITEMS:
        if power(items, difference, differing, level) >= wanted:
            return items
        items += 1
    raise UsageError(
        f"More than {MOST_ITEMS} questions would be needed for {100 * difference:g} points.",
        "Look for a larger difference, or for arms that differ on fewer questions.",
    )


def connor(difference: float, differing: float, wanted: float = POWER, level: float = LEVEL) -> int:
    """Return the number of pairs of Connor 1987 (Biometrics 43, 207-211, p. 209), for the normal approximation."""
    from statistics import NormalDist

    normal = NormalDist()
    by_chance = normal.inv_cdf(1 - level / 2) * math.sqrt(differing)
    by_effect = normal.inv_cdf(wanted) * math.sqrt(differing - difference**2)
    return math.ceil(((by_chance + by_effect) / difference) ** 2)


def smallest_difference(
    items: int, differing: float = DIFFERING, wanted: float = POWER, level: float = LEVEL
) -> float | None:
    """Return the smallest difference that a number of questions sees with some power, to a tenth of a point or less.

    None if even the largest possible, all differing answers in favour of one arm, is not seen.
    """
    low, high = 0, math.ceil(1000 * differing)
    if power(items, differing, differing, level) < wanted:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(items, middle / 1000, differing, level) >= wanted else (middle, high)
    return min(high / 1000, differing)


def for_clusters(items: int, per_source: float, correlation: float) -> int:
    """Return how many questions are needed if they come several to a source (Kish 1965, design effect).

    Args:
        items: Needed if all were independent.
        per_source: Questions about one source, on average.
        correlation: Intraclass correlation of the differences within a source, 0 to 1.
    """
    return math.ceil(items * (1 + (per_source - 1) * correlation))


def _require(difference: float, differing: float) -> None:
    if not 0 < difference <= differing <= 1:
        raise UsageError(
            f"Answers that differ on {100 * differing:g} % leave no room for a difference of {100 * difference:g} "
            "points.",
            "Give more than 0 points, and no more than the share of differing answers.",
        )


@lru_cache(maxsize=4096)
def _rejected(differing: int, favoured: float, level: float) -> float:
    """Return the power given how many questions differ: each tail gets half of the level."""
    tail = np.cumsum(_binomial(differing, 0.5)) <= level / 2
    chances = _binomial(differing, favoured)
    return float(chances[tail].sum() + chances[::-1][tail].sum())


@lru_cache(maxsize=4096)
def _binomial(count: int, chance: float) -> NDArray[np.float64]:
    """Return the probabilities of 0 to `count` successes."""
    if chance == 1.0:
        found = np.zeros(count + 1)
        found[-1] = 1.0
        return found
    steps = np.arange(count + 1)
    logs = np.array([math.lgamma(step + 1) for step in steps])
    ways = logs[count] - logs - logs[::-1]
    chances: NDArray[np.float64] = np.exp(ways + steps * math.log(chance) + (count - steps) * math.log1p(-chance))
    return chances
