"""How well scores tell an agent's caches from those of others: EER, minimum cost, Cllr, AUC, DET curve.

A trial compares one cache with one enrolled agent; a higher score says more strongly that it is that agent's. Trials
whose cache is the enrolled agent's are *target* trials, all others *non-target*. At a threshold, *misses* are target
trials below it and *false alarms* non-target trials at or above it.

Equal scores cannot be told apart by any threshold, so they are one step of the curve. Scores that are all equal
therefore have an EER and an AUC of 0.5, and a minimum cost and a minimum Cllr of 1, whatever the order of trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Protocol, TypeAlias, cast, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from unspoken.errors import UsageError
from unspoken.identity.libraries import learning_libraries

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]
Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trials:
    """Comparisons of caches with enrolled agents, one entry each.

    Attributes:
        scores: `[trials]`; higher for the same agent, finite.
        target: `[trials]`; whether the cache is the enrolled agent's.
        enrolled: `[trials]`; index of the enrolled agent.
        tested: `[trials]`; index of the agent whose cache is tested.
        text: `[trials]`; index of the text of the tested cache.

    Raises:
        UsageError: If lengths differ, a score is not finite, or one of the two kinds of trials is missing.
    """

    scores: Floats
    target: Flags
    enrolled: Indices
    tested: Indices
    text: Indices

    def __post_init__(self) -> None:
        require_scores(self.scores, self.target)
        for name in ("enrolled", "tested", "text"):
            if getattr(self, name).shape != self.scores.shape:
                raise UsageError(
                    f"'{name}' has shape {getattr(self, name).shape}, the scores have {self.scores.shape}.",
                    "Give one entry for each trial.",
                )

    @property
    def targets(self) -> int:
        """Return the number of target trials."""
        return int(self.target.sum())

    @property
    def nontargets(self) -> int:
        """Return the number of non-target trials."""
        return int((~self.target).sum())


@runtime_checkable
class Metric(Protocol):
    """A figure of scores: one number, or one for each row of weights.

    Weights `[draws, trials]` say how often each trial counts; a weight of 2 is the same as the trial given twice.
    A row under which targets or non-targets have no weight at all has no figure, and gives NaN.
    """

    @overload
    def __call__(self, scores: Floats, target: Flags) -> float: ...

    @overload
    def __call__(self, scores: Floats, target: Flags, weights: Floats) -> Floats: ...


@dataclass(frozen=True, eq=False)
class Roc:
    """Error rates at every threshold that makes a difference, from accepting all trials to accepting none.

    Attributes:
        thresholds: `[points]`, rising: each distinct score, and infinity. Scores at or above one are accepted.
        miss: `[points]`, rising from 0 to 1.
        false_alarm: `[points]`, falling from 1 to 0.
    """

    thresholds: Floats
    miss: Floats
    false_alarm: Floats


@dataclass(frozen=True, eq=False)
class Det:
    """A DET curve: error rates on axes on which normally distributed scores lie on straight lines.

    Attributes:
        miss: `[points]`, as quantiles of the standard normal distribution.
        false_alarm: `[points]`, likewise.
    """

    miss: Floats
    false_alarm: Floats


def require_scores(scores: Floats, target: Flags) -> None:
    """Refuse scores that no rate can be counted from.

    Raises:
        UsageError: If lengths differ, a score is not finite, or one of the two kinds of trials is missing.
    """
    if scores.ndim != 1 or target.shape != scores.shape:
        raise UsageError(
            f"Scores of shape {scores.shape} do not go with target marks of shape {target.shape}.",
            "Give two rows of the same length.",
        )
    wrong = int((~np.isfinite(scores)).sum())
    if wrong:
        raise UsageError(
            f"{wrong} of {scores.size} scores are not finite.",
            "Find the caches behind them; a trial cannot be skipped.",
        )
    targets = int(target.sum())
    if not 0 < targets < scores.size:
        raise UsageError(
            f"{targets} target and {scores.size - targets} non-target trials: error rates need both kinds.",
            "Test each enrolled agent with caches of its own and with caches of others.",
        )


def require_prior(prior: float) -> None:
    """Refuse a share of targets that is none.

    Raises:
        UsageError: If it does not lie between 0 and 1.
    """
    if not 0 < prior < 1:
        raise UsageError(f"A share of targets of {prior} is none.", "Give one between 0 and 1, for example 0.01.")


def roc(scores: Floats, target: Flags) -> Roc:
    """Return the misses and false alarms at every distinct threshold.

    Args:
        scores: `[trials]`.
        target: `[trials]`.

    Raises:
        UsageError: If lengths differ, a score is not finite, or one of the two kinds of trials is missing.
    """
    require_scores(scores, target)
    miss, false_alarm = _rates(scores, target, np.ones((1, scores.size)))
    return Roc(np.append(np.unique(scores), np.inf), miss[0], false_alarm[0])


def det_points(scores: Floats, target: Flags) -> Det:
    """Return the DET curve, for drawing.

    Points at which a rate is 0 or 1 lie infinitely far out and are left out: scores that separate perfectly have none.

    Source: Martin, Doddington, Kamm, Ordowski and Przybocki 1997, "The DET curve in assessment of detection task
    performance": both axes by the inverse of the normal distribution function.

    Raises:
        UsageError: If lengths differ, a score is not finite, or one of the two kinds of trials is missing.
    """
    # Here and not above: scipy takes a while to import, and sets warning filters.
    with learning_libraries():
        from scipy.special import ndtri

    curve = roc(scores, target)
    miss, false_alarm = ndtri(curve.miss), ndtri(curve.false_alarm)
    drawn = np.isfinite(miss) & np.isfinite(false_alarm)
    return Det(miss[drawn], false_alarm[drawn])


def metric(of: Callable[[Floats, Flags, Floats], Floats]) -> Metric:
    """Make a metric of a function that wants weights: checks what it is given, and gives a number without weights."""

    @wraps(of)
    def checked(scores: Floats, target: Flags, weights: Floats | None = None) -> float | Floats:
        require_scores(scores, target)
        if weights is None:
            return float(of(scores, target, np.ones((1, scores.size)))[0])
        if weights.ndim != 2 or weights.shape[1] != scores.size or not (np.isfinite(weights) & (weights >= 0)).all():
            raise UsageError(
                f"Weights of shape {weights.shape} do not say how often each of {scores.size} trials counts.",
                "Give rows of one finite weight for each trial, none below 0.",
            )
        # A row without one kind of trials divides 0 by 0: it has no figure, and NaN says so.
        with np.errstate(invalid="ignore"):
            return of(scores, target, weights)

    return cast(Metric, checked)


@metric
def eer(scores: Floats, target: Flags, weights: Floats) -> Floats:
    """Return the equal error rate: the error where misses are as frequent as false alarms, 0.5 at chance.

    Neighbouring points of the ROC are joined by straight lines, and the line that crosses miss = false alarm is taken
    there. The other custom, the crossing of the curve's convex hull (Brümmer's bosaris), never exceeds 0.5 and for
    samples without information lies below it. Conditions in which there is nothing to see could then not be
    told from conditions with a little to see, and those are what the evidence rests on.

    Raises:
        UsageError: If lengths differ, a score or weight is unsound, or one of the two kinds of trials is missing.
    """
    miss, false_alarm = _rates(scores, target, weights)
    difference = miss - false_alarm
    # The difference rises from -1 to 1; after is the first point at which it is no longer negative.
    after = np.maximum((difference >= 0).argmax(axis=1), 1)[:, None]
    before_at, after_at = (np.take_along_axis(difference, at, axis=1) for at in (after - 1, after))
    share = -before_at / (after_at - before_at)
    low, high = (np.take_along_axis(miss, at, axis=1) for at in (after - 1, after))
    crossing: Floats = (low + share * (high - low))[:, 0]
    return crossing


@metric
def auc(scores: Floats, target: Flags, weights: Floats) -> Floats:
    """Return the chance that a target trial scores above a non-target trial, equal scores counting half.

    Source: Hanley and McNeil 1982: the area under the ROC, by trapezia.

    Raises:
        UsageError: If lengths differ, a score or weight is unsound, or one of the two kinds of trials is missing.
    """
    miss, false_alarm = _rates(scores, target, weights)
    hits = 1 - (miss[:, :-1] + miss[:, 1:]) / 2
    area: Floats = (hits * (false_alarm[:, :-1] - false_alarm[:, 1:])).sum(axis=1)
    return area


def min_dcf(prior: float, c_miss: float = 1.0, c_false_alarm: float = 1.0) -> Metric:
    """Return the metric of the lowest cost that any threshold reaches, 1 for decisions without looking.

    Source: NIST speaker recognition evaluations: DCF(t) = p c_miss miss(t) + (1 - p) c_fa fa(t), divided by the cost
    of always accepting or always refusing, whichever is lower.

    Args:
        prior: Share of target trials where decisions are made, p; not their share among the trials at hand.
        c_miss: Price of a miss.
        c_false_alarm: Price of a false alarm.

    Raises:
        UsageError: If the prior does not lie between 0 and 1, or a price is not positive.
    """
    require_prior(prior)
    if not (0 < c_miss < math.inf and 0 < c_false_alarm < math.inf):
        raise UsageError(
            f"Prices of {c_miss} for a miss and {c_false_alarm} for a false alarm leave nothing to weigh.",
            "Give two prices above 0.",
        )
    missed, alarmed = prior * c_miss, (1 - prior) * c_false_alarm

    @metric
    def cost(scores: Floats, target: Flags, weights: Floats) -> Floats:
        miss, false_alarm = _rates(scores, target, weights)
        lowest: Floats = (missed * miss + alarmed * false_alarm).min(axis=1) / min(missed, alarmed)
        return lowest

    return cost


@metric
def cllr(scores: Floats, target: Flags, weights: Floats) -> Floats:
    """Return how many bits scores lose when believed as log-likelihood ratios: 0 perfect, 1 knows nothing.

    It exceeds 1 where scores mislead. Raw similarities are no log-likelihood ratios: calibrate them first.

    Source: Brümmer and du Preez 2006, "Application-independent evaluation of speaker detection": half the sum of the
    mean of log2(1 + e^-s) over targets and the mean of log2(1 + e^s) over non-targets, s in natural logarithms.

    Raises:
        UsageError: If lengths differ, a score or weight is unsound, or one of the two kinds of trials is missing.
    """
    # In base 2 throughout, so that s = 0 costs one bit exactly.
    bits = np.logaddexp2(0.0, np.where(target, -scores, scores) * math.log2(math.e))
    misses, alarms = (weights[:, kind] @ bits[kind] / weights[:, kind].sum(axis=1) for kind in (target, ~target))
    lost: Floats = (misses + alarms) / 2
    return lost


@metric
def min_cllr(scores: Floats, target: Flags, weights: Floats) -> Floats:
    """Return the Cllr after the best calibration that keeps the order of scores: what they could tell at best.

    Cllr less this is what bad calibration costs. The calibration is made on the trials it is judged on, so that noise
    gets a little less than 1 bit.

    Source: Brümmer and du Preez 2006: calibration by pooling adjacent violators. Pooling gives blocks of neighbouring
    scores; of all targets a block holds the share t, of non-targets n, and its log-likelihood ratio is ln(t / n).
    Put into Cllr, targets cost log2((t + n) / t) and non-targets log2((t + n) / n).

    Raises:
        UsageError: If lengths differ, a score or weight is unsound, or one of the two kinds of trials is missing.
    """
    miss, false_alarm = _rates(scores, target, weights)
    steps = zip(np.diff(miss, axis=1), -np.diff(false_alarm, axis=1), strict=True)
    return np.array([_least_bits(targets, nontargets) for targets, nontargets in steps], dtype=np.float64)


def _least_bits(targets: Floats, nontargets: Floats) -> float:
    """Return the minimum Cllr of shares `[points]` of targets and non-targets by rising score."""
    with learning_libraries():
        from scipy.optimize import isotonic_regression
        from scipy.special import entr

    both = targets + nontargets
    if not np.isfinite(both).all():
        return math.nan
    seen = both > 0
    starts = isotonic_regression(targets[seen] / both[seen], weights=both[seen]).blocks[:-1]
    t, n = (np.add.reduceat(share[seen], starts) for share in (targets, nontargets))
    # entr(x) = -x ln x is 0 at 0: a block of targets alone costs nothing, though its ratio is infinite.
    return float((entr(t) + entr(n) - entr(t + n)).sum() / (2 * math.log(2)))


def _rates(scores: Floats, target: Flags, weights: Floats) -> tuple[Floats, Floats]:
    """Return misses and false alarms `[draws, points]`, points as in `Roc`, for weights `[draws, trials]`."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    # The last trial of each run of equal scores: sums are read off there, so that a run is one step.
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), scores.size - 1)
    weighted = weights[:, order]
    below = []
    for kind in (target[order], ~target[order]):
        sums = np.zeros((len(weights), last.size + 1))
        sums[:, 1:] = np.cumsum(weighted * kind, axis=1)[:, last]
        below.append(sums)
    miss = below[0] / below[0][:, -1:]
    false_alarm = (below[1][:, -1:] - below[1]) / below[1][:, -1:]
    return miss, false_alarm
