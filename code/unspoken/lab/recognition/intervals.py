"""How far error rates of recognition can be trusted: intervals over agents and texts, and the rule of 30.

Trials are not independent. An agent that resembles another fails in all its trials, and a text that says little fails
for all agents, so 20,000 trials of 12 agents are nearer to 12 observations than to 20,000.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from unspoken.errors import UsageError
from unspoken.identity.metrics import Floats, Indices, Metric, Trials
from unspoken.lab.statistics import Interval, spread

DRAWS = 1000
ENOUGH_ERRORS = 30
# At 5 agents 1 draw in 600 picks one agent only and has no non-target trials; at 3 agents it is 1 in 9.
UNDEFINED_SHARE = 0.05
# Weights of one batch: 16 MB of float64, so that a batch stays near the processor.
BATCH_WEIGHTS = 2_000_000


def bootstrap(trials: Trials, statistic: Metric, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
    """Return a metric with its percentile interval over agents and texts that might have been chosen instead.

    An interval cannot hold errors of a kind that never occurred: where no error was seen it has no width, and
    `enough_errors` says that the rate is not supported. Metrics that are minima, `min_dcf` and `min_cllr`, find their
    minimum in each resample anew and come out a little low; their intervals lie low with them.

    Args:
        trials: The trials.
        statistic: `eer`, `cllr`, `min_dcf(0.01)` or another metric.
        draws: Number of resamples.
        seed: Of the resampling; part of the run record.
        level: Share of intervals that are to hold the true value.

    Raises:
        UsageError: If there are too few agents, no draws, or the level does not lie between 0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(f"An interval at level {level} is none.", "Give a level between 0 and 1, for example 0.95.")
    values = resampled(trials, statistic, draws, seed)
    return spread(statistic(trials.scores, trials.target), values, level)


def resampled(trials: Trials, statistic: Metric, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Return a metric under each resample of agents and texts, `[draws]`.

    Agents and, independently, texts are drawn with replacement, as many as there are. A trial counts as often as the
    things it is made of were drawn together: a comparison of two agents count[enrolled] * count[tested] *
    count[text] times, one of an agent with itself count[agent] * count[text] times. That is the product-weight
    ("pigeonhole") bootstrap of crossed factors (Owen 2007, "The pigeonhole bootstrap"), with agents as one factor
    that stands on both sides, as people do in a network (Snijders and Borgatti 1999). Poh and Bengio 2007
    ("Performance generalization in biometric authentication using joint user-specific and sample bootstraps") and the
    two-layer bootstrap of NIST also draw users first, but then draw each user's samples within; here all agents read
    the same texts, so texts are drawn once for all. It errs on the wide side (Owen 2007). Texts of
    enrolment are not resampled: intervals hold for the enrolment at hand.

    Draws with one kind of trials only have no figure and are NaN. The same seed draws the same agents and texts for
    every metric and for all trials of the same agents and texts, so that differences are paired.

    Args:
        trials: The trials.
        statistic: The metric.
        draws: Number of resamples.
        seed: Of the resampling.

    Raises:
        UsageError: If there are no draws, or so few agents that more than 1 draw in 20 has no figure.
    """
    if draws < 1:
        raise UsageError(f"{draws} draws give no interval.", "Give at least 1; 1000 are usual.")
    values = [statistic(trials.scores, trials.target, weights) for weights in _resamples(trials, draws, seed)]
    found = np.concatenate(values)
    undefined = int(np.isnan(found).sum())
    if undefined > UNDEFINED_SHARE * draws:
        agents, texts = np.union1d(trials.enrolled, trials.tested), np.unique(trials.text)
        raise UsageError(
            f"{undefined} of {draws} resamples of {agents.size} agents and {texts.size} texts lack a kind of trials.",
            "Test at least 5 agents, each against itself and others on several texts.",
        )
    return found


def enough_errors(rate: float, trials: int) -> bool:
    """Tell whether a rate rests on at least 30 errors, below which it should not be quoted without that warning.

    Source: Doddington, Przybocki, Martin and Reynolds 2000, "The NIST speaker recognition evaluation": with 30 errors
    the true rate lies within 30 % of the observed one with a confidence of 90 %, if trials are independent. Since they
    are not, this is the least to ask; the interval is by `bootstrap`.

    Args:
        rate: Share of trials that are errors, 0 to 1.
        trials: Trials that could have been this error: targets for misses, non-targets for false alarms, and the
            fewer of both for an EER.

    Raises:
        UsageError: If the rate does not lie from 0 to 1, or there are fewer than 0 trials.
    """
    if not 0 <= rate <= 1 or trials < 0:
        raise UsageError(
            f"A rate of {rate} among {trials} trials is none.", "Give a rate from 0 to 1, and how many trials it is of."
        )
    # Rounded first: 0.29 of 100 trials are 28.999999999999996 errors in floating point.
    return round(rate * trials, 6) >= ENOUGH_ERRORS


def _resamples(trials: Trials, draws: int, seed: int) -> Iterator[Floats]:
    """Yield how often each trial counts, `[batch, trials]`, in as many batches as `draws` resamples need."""
    agents, sides = np.unique(np.stack((trials.enrolled, trials.tested)), return_inverse=True)
    texts, text = np.unique(trials.text, return_inverse=True)
    enrolled, tested = sides.reshape(2, -1)
    rng = np.random.default_rng(seed)
    agent_counts, text_counts = (_counts(rng, each.size, draws) for each in (agents, texts))
    for batch in np.array_split(np.arange(draws), math.ceil(draws * trials.scores.size / BATCH_WEIGHTS)):
        pairs = _together(agent_counts[batch], enrolled, tested)
        yield pairs * np.take(text_counts[batch], text, axis=1)


def _counts(rng: np.random.Generator, things: int, draws: int) -> Floats:
    """Return how often each of some things is drawn, `[draws, things]`."""
    return rng.multinomial(things, np.full(things, 1 / things), size=draws).astype(np.float64)


def _together(counts: Floats, enrolled: Indices, tested: Indices) -> Floats:
    """Return how often each trial's agents are drawn together, `[draws, trials]`."""
    other = np.where(enrolled == tested, 1.0, np.take(counts, tested, axis=1))
    both: Floats = np.take(counts, enrolled, axis=1) * other
    return both
