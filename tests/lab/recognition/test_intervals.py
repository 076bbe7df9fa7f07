"""Intervals over agents and texts against repeated rows and simulated populations; the rule of 30."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from unspoken.errors import UsageError
from unspoken.identity.metrics import Metric, Trials, auc, cllr, eer, min_cllr, min_dcf
from unspoken.lab.recognition import intervals
from unspoken.lab.recognition.intervals import bootstrap, enough_errors, resampled

METRICS: dict[str, Metric] = {"eer": eer, "auc": auc, "cllr": cllr, "min_cllr": min_cllr, "min_dcf": min_dcf(0.05)}


def population(
    seed: int,
    agents: int = 12,
    texts: int = 8,
    gain: float = 2.0,
    shares: tuple[float, float, float, float] = (0, 0, 0, 1),
) -> Trials:
    """Normal scores with variance from enrolled agents, tested agents, texts and single trials, each by its share."""
    rng = np.random.default_rng(seed)
    tested, text, enrolled = (each.ravel() for each in np.indices((agents, texts, agents)))
    parts = [rng.normal(size=size)[index] for size, index in ((agents, enrolled), (agents, tested), (texts, text))]
    parts.append(rng.normal(size=tested.size))
    scores = sum(math.sqrt(share) * part for share, part in zip(shares, parts, strict=True))
    target = enrolled == tested
    return Trials(scores + gain * target, target, enrolled, tested, text)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_resample_is_the_metric_of_rows_repeated_as_their_agents_and_texts_were_drawn(name: str) -> None:
    trials, draws = population(0, agents=6, texts=4), 40
    found = resampled(trials, METRICS[name], draws, seed=3)
    rng = np.random.default_rng(3)
    agents, texts = (rng.multinomial(size, [1 / size] * size, size=draws) for size in (6, 4))
    for draw in range(draws):
        times = []
        for enrolled, tested, text in zip(trials.enrolled, trials.tested, trials.text, strict=True):
            drawn = agents[draw, tested] if enrolled == tested else agents[draw, enrolled] * agents[draw, tested]
            times.append(drawn * texts[draw, text])
        repeated = METRICS[name](np.repeat(trials.scores, times), np.repeat(trials.target, times))
        assert found[draw] == pytest.approx(repeated, abs=1e-12)


def test_names_of_agents_and_texts_do_not_matter() -> None:
    trials = population(1)
    renamed = Trials(trials.scores, trials.target, 3 * trials.enrolled + 100, 3 * trials.tested + 100, trials.text - 50)
    assert (resampled(renamed, eer, 50) == resampled(trials, eer, 50)).all()


def test_how_many_draws_are_computed_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = population(2)
    at_once = resampled(trials, eer, 37)
    monkeypatch.setattr(intervals, "BATCH_WEIGHTS", 3 * trials.scores.size)
    assert (resampled(trials, eer, 37) == at_once).all()


def test_the_same_seed_draws_the_same_agents_for_every_metric_and_condition() -> None:
    trials = population(3)
    assert bootstrap(trials, eer, 100, seed=5) == bootstrap(trials, eer, 100, seed=5)
    assert bootstrap(trials, eer, 100, seed=5) != bootstrap(trials, eer, 100, seed=6)
    # A condition that only moves scores by a monotonic map differs by nothing in any draw.
    mapped = Trials(np.exp(trials.scores), trials.target, trials.enrolled, trials.tested, trials.text)
    assert (resampled(trials, eer, 100) - resampled(mapped, eer, 100) == 0).all()


@pytest.mark.parametrize("name", sorted(METRICS))
def test_an_interval_holds_its_metric_and_a_lower_level_is_narrower(name: str) -> None:
    trials = population(4)
    wide, narrow = bootstrap(trials, METRICS[name], 400), bootstrap(trials, METRICS[name], 400, level=0.5)
    assert wide.mean == narrow.mean == METRICS[name](trials.scores, trials.target)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert wide.low <= wide.mean <= wide.high


@pytest.mark.parametrize("seed", range(4))
def test_permuted_scores_have_an_interval_that_holds_chance(seed: int) -> None:
    trials = population(seed, gain=6.0)
    assert eer(trials.scores, trials.target) < 0.02
    scores = np.random.default_rng(seed).permutation(trials.scores)
    null = Trials(scores, trials.target, trials.enrolled, trials.tested, trials.text)
    for metric in (eer, auc):
        found = bootstrap(null, metric, 400)
        assert found.low < 0.5 < found.high


@pytest.mark.parametrize("shares", [(0.2, 0.2, 0.1, 0.5), (0, 0, 0.3, 0.7), (0, 0, 0, 1)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(shares: tuple[float, float, float, float]) -> None:
    # Whatever the shares, scores of either kind are normal with variance 1, so the population's EER is known.
    truth, hits = ndtr(-1.0), 0
    for seed in range(100):
        found = bootstrap(population(seed, agents=16, texts=10, shares=shares), eer, 150, seed)
        hits += found.low <= truth <= found.high
    # On the wide side, as the method is; percentiles of few agents take some of that back.
    assert hits >= 88


def test_an_interval_that_takes_trials_for_independent_is_too_narrow() -> None:
    shares, truth, hits, widths = (0.3, 0.3, 0.1, 0.3), ndtr(-1.0), 0, []
    for seed in range(60):
        trials = population(seed, agents=16, texts=10, shares=shares)
        count, rng = trials.scores.size, np.random.default_rng(seed)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=150).astype(np.float64)
        low, high = np.quantile(eer(trials.scores, trials.target, weights), [0.025, 0.975])
        hits += low <= truth <= high
        found = bootstrap(trials, eer, 150, seed)
        widths.append((found.high - found.low, high - low))
    assert hits < 0.8 * 60
    clustered, single = np.mean(widths, axis=0)
    assert clustered > 1.6 * single


def test_texts_are_resampled_too() -> None:
    # All variance lies in the text, so that resampling agents alone would leave hardly any.
    found = bootstrap(population(0, texts=10, shares=(0, 0, 0.98, 0.02)), eer, 300)
    assert found.high - found.low > 0.1


def test_without_an_error_an_interval_has_no_width_and_the_rule_of_30_says_so() -> None:
    trials = population(5, gain=50.0)
    found = bootstrap(trials, eer, 200)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not enough_errors(found.mean, min(trials.targets, trials.nontargets))


def test_draws_that_lack_a_kind_are_left_out_while_they_are_few() -> None:
    trials = population(6, agents=4, texts=5)
    values = resampled(trials, eer, 2000)
    # All four draws the same agent: 4 / 4^4 of them.
    assert np.isnan(values).mean() == pytest.approx(4 / 4**4, abs=0.008)
    assert math.isfinite(bootstrap(trials, eer, 2000).high)


@pytest.mark.parametrize("agents", [2, 3])
def test_too_few_agents_for_an_interval_are_refused(agents: int) -> None:
    with pytest.raises(UsageError, match=f"resamples of {agents} agents and 8 texts lack a kind of trials"):
        bootstrap(population(7, agents=agents), eer, 1000)


def test_agents_that_were_never_enrolled_are_resampled_with_the_others() -> None:
    trials = population(8)
    kept = trials.enrolled < 3
    scores, target = trials.scores[kept], trials.target[kept]
    fewer = Trials(scores, target, trials.enrolled[kept], trials.tested[kept], trials.text[kept])
    # Twelve agents are drawn, so that some draws hold none of the three that are enrolled and have no figure.
    agents = np.random.default_rng(0).multinomial(12, [1 / 12] * 12, size=1000)
    none_enrolled = agents[:, :3].sum(axis=1) == 0
    assert 10 < none_enrolled.sum() < 50
    assert (np.isnan(resampled(fewer, eer, 1000)) == none_enrolled).all()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [({"draws": 0}, "0 draws"), ({"level": 0.0}, "level 0.0"), ({"level": 1.0}, "level 1.0"), ({"level": 95.0}, "95")],
)
def test_intervals_of_nothing_are_refused(arguments: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        bootstrap(population(9), eer, **arguments)


@pytest.mark.parametrize(
    ("rate", "trials", "enough"),
    [
        (0.01, 3000, True),
        (0.01, 2999, False),
        (0.3, 100, True),
        (0.1, 299, False),
        (1.0, 30, True),
        (0.0, 10**9, False),
    ],
)
def test_a_rate_is_supported_from_30_errors_on(rate: float, trials: int, enough: bool) -> None:
    assert enough_errors(rate, trials) is enough


@pytest.mark.parametrize("errors", range(30, 200))
def test_thirty_whole_errors_are_never_lost_to_rounding(errors: int) -> None:
    assert enough_errors(30 / errors, errors)
    assert not enough_errors(29 / errors, errors)


@pytest.mark.parametrize(("rate", "trials"), [(-0.1, 10), (1.1, 10), (math.nan, 10), (0.5, -1)])
def test_a_rate_that_is_none_is_refused(rate: float, trials: int) -> None:
    with pytest.raises(UsageError, match="is none"):
        enough_errors(rate, trials)
