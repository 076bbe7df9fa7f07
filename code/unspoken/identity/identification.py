"""Who of many is it: ranks among enrolled agents, and refusing agents that were never enrolled.

Scores are a matrix `[tests, enrolled]`, one row for each tested cache. Where an agent's own score is equal to others',
its place among them is as likely to be any of theirs: a matrix of equal scores finds 1 of `enrolled` agents by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unspoken.errors import UsageError
from unspoken.identity.metrics import Flags, Floats, Indices

UNKNOWN = -1
FALSE_ALARM = 0.01


@dataclass(frozen=True)
class OpenSet:
    """How often enrolled agents are named, and strangers turned away, at one threshold.

    Attributes:
        dir: Detection and identification rate: the share of known tests whose own agent scores highest of all, at or
            above the threshold.
        false_alarm: Share of unknown tests for which some enrolled agent scores at or above the threshold; none where
            no test is unknown.
        threshold: What scores were held against.
        known: Tests of enrolled agents.
        unknown: Tests of agents that are not enrolled.
    """

    dir: float
    false_alarm: float | None
    threshold: float
    known: int
    unknown: int


def cmc(scores: Floats, truth: Indices) -> Floats:
    """Return the share of tests whose own agent is among the k best, `[enrolled]` for k = 1, 2, ...

    Source: Grother and Phillips 2004, "Models of large population recognition performance": the cumulative match
    characteristic of a closed set.

    Args:
        scores: `[tests, enrolled]`.
        truth: `[tests]`, column of the own agent; every test has one.

    Raises:
        UsageError: If shapes do not fit, a score is not finite, or a test's agent is not enrolled.
    """
    _require(scores, truth)
    if (truth == UNKNOWN).any():
        raise UsageError(
            f"{int((truth == UNKNOWN).sum())} tests are of agents that are not enrolled, so they have no rank.",
            "Leave them out, or use open_set.",
        )
    above, equal = _place(scores, truth)
    ranks = np.arange(1, scores.shape[1] + 1)
    found: Floats = np.clip((ranks - above[:, None]) / equal[:, None], 0, 1).mean(axis=0)
    return found


def rank_one(scores: Floats, truth: Indices) -> float:
    """Return the share of tests whose own agent scores highest; arguments and errors as for `cmc`."""
    return float(cmc(scores, truth)[0])


def open_set_threshold(scores: Floats, truth: Indices, false_alarm: float = FALSE_ALARM) -> float:
    """Return the lowest threshold at which at most this share of unknown tests is taken for somebody.

    It lies just above the highest score of the first unknown test that has to be refused. With fewer than
    `1 / false_alarm` unknown tests all of them are refused.

    Args:
        scores: `[tests, enrolled]`.
        truth: `[tests]`, -1 for agents that are not enrolled; the other tests have no influence.
        false_alarm: Share of unknown tests that may be taken for somebody.

    Raises:
        UsageError: If shapes do not fit, a score is not finite, there is no unknown test, or the share is none.
    """
    _require(scores, truth)
    if not 0 <= false_alarm < 1:
        raise UsageError(f"A share of false alarms of {false_alarm} is none.", "Give one from 0 to below 1.")
    strangers = np.sort(scores[truth == UNKNOWN].max(axis=1))
    if not strangers.size:
        raise UsageError(
            "No test is of an agent that is not enrolled, so no threshold can be chosen.",
            "Leave some agents out when enrolling, or give a threshold that was chosen on other tests.",
        )
    # Rounded first: 0.29 of 100 is 28.999999999999996 in floating point.
    allowed = math.floor(round(false_alarm * strangers.size, 9))
    return float(np.nextafter(strangers[-1 - allowed], np.inf))


def open_set(
    scores: Floats, truth: Indices, false_alarm: float = FALSE_ALARM, threshold: float | None = None
) -> OpenSet:
    """Return how many known tests are named rightly while few strangers are taken for somebody.

    Source: Grother, Ngan and Hanaoka 2019, "FRVT part 2: identification" (NISTIR 8271): a known test is found if its
    own agent is the top candidate, at or above the threshold (1 - FNIR at rank 1); an unknown test is a false alarm if
    any candidate is (FPIR).

    Args:
        scores: `[tests, enrolled]`.
        truth: `[tests]`, column of the own agent, -1 for agents that are not enrolled.
        false_alarm: Where no threshold is given, the share of these unknown tests that may be taken for somebody. The
            threshold then fits the tests it is judged on, which flatters a little.
        threshold: One chosen elsewhere, by `open_set_threshold` on agents and texts of development.

    Raises:
        UsageError: If shapes do not fit, a score is not finite, no test is known, or no threshold can be chosen.
    """
    _require(scores, truth)
    known = truth != UNKNOWN
    if not known.any():
        raise UsageError("No test is of an enrolled agent, so nobody can be found.", "Test enrolled agents as well.")
    least = open_set_threshold(scores, truth, false_alarm) if threshold is None else threshold
    if math.isnan(least):
        raise UsageError("The threshold is no number.", "Give one that open_set_threshold chose.")
    above, equal = _place(scores[known], truth[known])
    own = scores[known, truth[known]]
    named = np.where((above == 0) & (own >= least), 1 / equal, 0.0)
    alarms = scores[~known].max(axis=1) >= least
    return OpenSet(
        dir=float(named.mean()),
        false_alarm=float(alarms.mean()) if alarms.size else None,
        threshold=float(least),
        known=int(known.sum()),
        unknown=int((~known).sum()),
    )


def _place(scores: Floats, truth: Indices) -> tuple[Indices, Indices]:
    """Return how many agents score above a test's own, and how many equal to it, itself included: `[tests]` each."""
    own = scores[np.arange(len(truth)), truth][:, None]
    above: Flags = scores > own
    return above.sum(axis=1), (scores == own).sum(axis=1)


def _require(scores: Floats, truth: Indices) -> None:
    """Refuse a matrix that does not say whom each test is compared with."""
    if scores.ndim != 2 or not scores.size or truth.shape != scores.shape[:1]:
        raise UsageError(
            f"Scores of shape {scores.shape} do not go with agents of shape {truth.shape}.",
            "Give scores as [tests, enrolled], neither of them 0, and one agent for each test.",
        )
    if not np.isfinite(scores).all():
        raise UsageError(f"{int((~np.isfinite(scores)).sum())} scores are not finite.", "Find the caches behind them.")
    if truth.min() < UNKNOWN or truth.max() >= scores.shape[1]:
        raise UsageError(
            f"Tests name agents from {truth.min()} to {truth.max()}, but {scores.shape[1]} are enrolled.",
            f"Give columns of the matrix, or {UNKNOWN} for agents that are not enrolled.",
        )
