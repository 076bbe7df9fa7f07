"""From raw scores to ones that can be compared and believed: cohort normalisation, and log-likelihood ratios."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from unspoken.errors import UsageError
from unspoken.identity.libraries import learning_libraries
from unspoken.identity.metrics import Flags, Floats, require_prior, require_scores

# Inverse of the penalty on the squared slope. At a slope of 2 per standard deviation the penalty moves it by some
# millionths; where nothing else bounds it, it does (see `Calibration.fit`).
STRENGTH = 1e6
# Features are float32: a spread below this share of the scores themselves is rounding and no difference of agents.
LEAST_SPREAD = 1e-6


class Calibration(msgspec.Struct, frozen=True):
    """How scores become log-likelihood ratios: `scale * score + offset`, in natural logarithms.

    Attributes:
        scale: Below 0 where higher scores spoke for different agents.
        offset: The log-likelihood ratio of a score of 0.
    """

    scale: float
    offset: float

    @classmethod
    def fit(cls, scores: Floats, target: Flags, prior: float = 0.5) -> Calibration:
        """Fit a calibration to trials of other agents than those it is to be used on.

        Logistic regression whose trials are weighted so that targets make up the share `prior`; its log odds less
        those of the prior are log-likelihood ratios. Source: Brümmer and du Preez 2006, and van Leeuwen and Brümmer
        2007, "An introduction to application-independent evaluation of speaker recognition systems".

        Scores that separate perfectly would call for an infinite scale. A small penalty on the squared slope keeps it
        finite: with a scale of 0 the loss is at most ln 2, so the penalty cannot exceed that, and the slope stays at
        or below sqrt(2 ln 2 * 1e6), some 1,200 per standard deviation of the scores. Such a calibration says that no
        error was seen, not how rare errors are. Scores that are all equal get the log-likelihood ratio 0.

        Args:
            scores: `[trials]`.
            target: `[trials]`.
            prior: Share of targets to fit for; one near that of later decisions fits best there.

        Raises:
            UsageError: If lengths differ, a score is not finite, one of the two kinds of trials is missing, or the
                prior does not lie between 0 and 1.
        """
        # Imported here: it takes half a second, and sets environment variables and warning filters.
        with learning_libraries():
            from sklearn.linear_model import LogisticRegression

        require_scores(scores, target)
        require_prior(prior)
        centre, spread = float(scores.mean()), float(scores.std())
        # Equal scores have a spread of rounding errors at most, and nothing to fit a slope to.
        if spread <= np.finfo(np.float64).eps * abs(centre):
            return cls(0.0, 0.0)
        weights = np.where(target, prior / target.sum(), (1 - prior) / (~target).sum())
        # Standardised, so that the penalty means the same for cosines and for sums over a thousand columns.
        model = LogisticRegression(C=STRENGTH, solver="newton-cholesky", tol=1e-10, max_iter=1000)
        model.fit(((scores - centre) / spread)[:, None], target, sample_weight=weights)
        slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
        offset = intercept - math.log(prior / (1 - prior))
        return cls(slope / spread, offset - slope * centre / spread)

    def llr(self, scores: Floats) -> Floats:
        """Return log-likelihood ratios in natural logarithms, above 0 where the same agent is more likely.

        Args:
            scores: Of any shape.
        """
        ratios: Floats = self.scale * scores + self.offset
        return ratios


def as_norm(raw: Floats, enrolled_vs_cohort: Floats, tests_vs_cohort: Floats, top: int | None = None) -> Floats:
    """Return scores relative to how agents and tests score against a cohort of others: 0 is an average stranger.

    The mean of two standardised scores: against the `top` cohort agents nearest to the enrolled agent, and against
    those nearest to the tested cache. Source: Matejka, Novotny, Plchot, Burget, Sanchez and Cernocky 2017, "Analysis of
    score normalization in multilingual speaker recognition" (adaptive S-norm 1); with the whole cohort it is S-norm
    (Kenny 2010, "Bayesian speaker verification with heavy-tailed priors").

    A cohort that scores the same throughout cannot tell whether a score is high. That side then counts as 0, neither
    for nor against, rather than blowing rounding errors up to evidence.

    Args:
        raw: `[tests, enrolled]`.
        enrolled_vs_cohort: `[enrolled, cohort]`; agents of the cohort are neither enrolled nor tested.
        tests_vs_cohort: `[tests, cohort]`.
        top: How many of the highest cohort scores to use, at least 2; by default all.

    Raises:
        UsageError: If shapes do not fit, a score is not finite, or fewer than 2 or more than all scores are to be used.
    """
    _require_cohort(raw, enrolled_vs_cohort, tests_vs_cohort)
    cohort = enrolled_vs_cohort.shape[1]
    used = cohort if top is None else top
    if not 2 <= used <= cohort:
        raise UsageError(
            f"{used} scores of a cohort of {cohort} are to be used, but a spread needs at least 2 of them.",
            "Give a larger cohort, or a 'top' from 2 to its size.",
        )
    by_test = _standardised(raw, tests_vs_cohort, used)
    by_enrolled = _standardised(raw.T, enrolled_vs_cohort, used).T
    normed: Floats = (by_test + by_enrolled) / 2
    return normed


def _standardised(raw: Floats, cohort: Floats, top: int) -> Floats:
    """Return each row of `raw` less the mean of the row's top cohort scores, over their standard deviation."""
    nearest = np.sort(cohort, axis=1)[:, -top:]
    mean, spread = nearest.mean(axis=1), nearest.std(axis=1)
    tells = spread > LEAST_SPREAD * np.abs(nearest).max(axis=1)
    return np.where(tells[:, None], (raw - mean[:, None]) / np.where(tells, spread, 1.0)[:, None], 0.0)


def _require_cohort(raw: Floats, enrolled: Floats, tests: Floats) -> None:
    """Refuse matrices that do not belong to the same agents, tests and cohort."""
    fits = raw.ndim == enrolled.ndim == tests.ndim == 2 and tests.shape[0] == raw.shape[0]
    if not (fits and enrolled.shape[0] == raw.shape[1] and enrolled.shape[1] == tests.shape[1]):
        raise UsageError(
            f"Scores {raw.shape}, enrolled against cohort {enrolled.shape} and tests against cohort {tests.shape} "
            "do not belong together.",
            "Give [tests, enrolled], [enrolled, cohort] and [tests, cohort].",
        )
    wrong = sum(int((~np.isfinite(part)).sum()) for part in (raw, enrolled, tests))
    if wrong:
        raise UsageError(f"{wrong} scores are not finite.", "Find the caches behind them.")
