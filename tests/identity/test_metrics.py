"""Metrics of recognition against closed forms, slow counting and examples worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtr, ndtri
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from unspoken.errors import UsageError
from unspoken.identity.metrics import Metric, Trials, auc, cllr, det_points, eer, min_cllr, min_dcf, roc

METRICS: dict[str, Metric] = {
    "eer": eer,
    "auc": auc,
    "cllr": cllr,
    "min_cllr": min_cllr,
    "min_dcf_01": min_dcf(0.01),
    "min_dcf_05": min_dcf(0.05),
}
SEPARATIONS = (0.5, 1.0, 2.0, 3.0)


def labelled(targets: list[float], nontargets: list[float]) -> tuple[Any, Any]:
    scores = np.array([*targets, *nontargets], dtype=np.float64)
    return scores, np.arange(scores.size) < len(targets)


# Few distinct values, so that ties within and between the kinds are the rule.
few = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=15)
trials = st.builds(labelled, few, few)


def gaussians(separation: float, each: int = 20_000) -> tuple[Any, Any]:
    """Log-likelihood ratios of two normal distributions, at evenly spaced quantiles: no sampling error."""
    spread = ndtri((np.arange(each) + 0.5) / each)
    centre = separation**2 / 2
    return labelled(list(centre + separation * spread), list(-centre + separation * spread))


def counted(scores: Any, target: Any, threshold: float) -> tuple[Fraction, Fraction]:
    misses = [score < threshold for score, same in zip(scores, target, strict=True) if same]
    alarms = [score >= threshold for score, same in zip(scores, target, strict=True) if not same]
    return Fraction(sum(misses), len(misses)), Fraction(sum(alarms), len(alarms))


@given(trials)
def test_rates_equal_counting_at_each_threshold(given_trials: tuple[Any, Any]) -> None:
    curve = roc(*given_trials)
    assert list(curve.thresholds) == [*sorted(set(given_trials[0].tolist())), math.inf]
    for threshold, miss, false_alarm in zip(curve.thresholds, curve.miss, curve.false_alarm, strict=True):
        expected = counted(*given_trials, threshold)
        assert (miss, false_alarm) == (float(expected[0]), float(expected[1]))
    assert (curve.miss[0], curve.false_alarm[0], curve.miss[-1], curve.false_alarm[-1]) == (0, 1, 1, 0)


def test_a_row_without_ties_has_the_figures_worked_by_hand() -> None:
    # By rising score: non-target, target, non-target, target. Misses and false alarms at each threshold:
    # (0, 1), (0, 1/2), (1/2, 1/2), (1/2, 0), (1, 0).
    row = labelled([2, 4], [1, 3])
    assert eer(*row) == 0.5
    assert auc(*row) == 0.75
    assert min_dcf(0.5)(*row) == 0.5
    assert min_dcf(0.01)(*row) == 0.5
    assert min_dcf(0.99)(*row) == 0.5
    # A false alarm at half the price of a miss: (0, 1/2) costs 1/8, all refused 1/2, all accepted 1/4.
    assert min_dcf(0.5, 1.0, 0.5)(*row) == 0.5
    # The middle two form one block with half of either kind, at 1 bit for half of the trials.
    assert min_cllr(*row) == pytest.approx(0.5)


def test_a_row_with_a_tie_has_the_figures_worked_by_hand() -> None:
    # Points (0, 1), (0, 1/2), (1/3, 0), (1, 0): the tie at 1 is a slope, crossed after 3/5 of it.
    row = labelled([1, 2, 2], [0, 1])
    assert eer(*row) == pytest.approx(0.2)
    # Of six pairs five are in order and one is a tie.
    assert auc(*row) == pytest.approx(5.5 / 6)
    # Block of the tie: 1/3 of targets, 1/2 of non-targets.
    bits = (1 / 3 * math.log2(5 / 2) + 1 / 2 * math.log2(5 / 3)) / 2
    assert min_cllr(*row) == pytest.approx(bits)
    # A cost of .01/3 for one miss in three, against .01 for refusing everything.
    assert min_dcf(0.01)(*row) == pytest.approx(1 / 3)


def test_cllr_has_the_value_worked_by_hand() -> None:
    # Odds of 3 to 1: a target at ln 3 costs log2(4/3), a non-target at -ln 3 the same, one at ln 3 costs log2 4.
    ratio = math.log(3)
    assert cllr(*labelled([ratio], [-ratio])) == pytest.approx(math.log2(4 / 3))
    assert cllr(*labelled([ratio], [-ratio, ratio])) == pytest.approx((math.log2(4 / 3) * 1.5 + 1) / 2)


@pytest.mark.parametrize(("targets", "nontargets"), [(1, 1), (3, 7), (40, 1000)])
@pytest.mark.parametrize("value", [0.0, -3.5, 1e300])
def test_equal_scores_are_at_chance_in_whatever_order(targets: int, nontargets: int, value: float) -> None:
    scores, target = labelled([value] * targets, [value] * nontargets)
    for order in (target, ~target[::-1]):
        assert eer(scores, order) == 0.5
        assert auc(scores, order) == 0.5
        assert min_dcf(0.01)(scores, order) == pytest.approx(1.0)
        assert min_dcf(0.05)(scores, order) == pytest.approx(1.0)
        assert min_cllr(scores, order) == pytest.approx(1.0)
    assert cllr(0 * scores, target) == 1.0


def test_scores_that_separate_perfectly_have_no_error_at_all() -> None:
    row = labelled([10, 11, 12], [-1, 0])
    assert (eer(*row), auc(*row), min_dcf(0.01)(*row), min_cllr(*row)) == (0, 1, 0, 0)
    assert det_points(*row).miss.size == 0
    wrong = labelled([-1, 0], [10, 11, 12])
    assert (eer(*wrong), auc(*wrong), min_dcf(0.01)(*wrong)) == (1, 0, 1)
    assert min_cllr(*wrong) == pytest.approx(1.0)


@pytest.mark.parametrize("separation", SEPARATIONS)
def test_normal_scores_have_the_closed_forms(separation: float) -> None:
    row = gaussians(separation)
    assert eer(*row) == pytest.approx(ndtr(-separation / 2), abs=2e-4)
    assert auc(*row) == pytest.approx(ndtr(separation / math.sqrt(2)), abs=2e-4)
    for prior in (0.01, 0.05, 0.5):
        # The best threshold on log-likelihood ratios is that of Bayes.
        theta, centre = math.log((1 - prior) / prior), separation**2 / 2
        cost = prior * ndtr((theta - centre) / separation) + (1 - prior) * ndtr(-(theta + centre) / separation)
        assert min_dcf(prior)(*row) == pytest.approx(cost / min(prior, 1 - prior), abs=6e-3)


@pytest.mark.parametrize("separation", SEPARATIONS)
def test_true_log_likelihood_ratios_lose_what_the_integral_says_and_no_calibration_helps(separation: float) -> None:
    def bits(ratio: float) -> float:
        return float(np.logaddexp(0, -ratio) * norm.pdf(ratio, separation**2 / 2, separation) / math.log(2))

    row, expected = gaussians(separation), quad(bits, -40, 60, limit=200)[0]
    assert cllr(*row) == pytest.approx(expected, abs=1e-4)
    assert min_cllr(*row) == pytest.approx(expected, abs=1e-3)
    assert cllr(2 * row[0], row[1]) > expected + 0.01


def test_normal_scores_lie_on_a_straight_line_of_the_det_plane() -> None:
    curve = det_points(*gaussians(2.0))
    inner = (np.abs(curve.miss) < 2) & (np.abs(curve.false_alarm) < 2)
    assert inner.sum() > 1000
    assert curve.miss[inner] + curve.false_alarm[inner] == pytest.approx(-2.0, abs=2e-3)


def test_random_normal_scores_have_the_closed_form_within_their_error() -> None:
    rng = np.random.default_rng(0)
    row = labelled(list(rng.normal(2.0, 1, 50_000)), list(rng.normal(0, 1, 50_000)))
    assert eer(*row) == pytest.approx(ndtr(-1.0), abs=4 * math.sqrt(0.16 * 0.84 / 50_000))


def test_eer_exceeds_one_half_as_often_as_not_where_there_is_nothing_to_see() -> None:
    rng = np.random.default_rng(1)
    target = np.arange(120) < 20
    found = np.array([eer(rng.normal(size=120), target) for _ in range(400)])
    assert 0.4 < (found > 0.5).mean() + (found == 0.5).mean() / 2 < 0.6
    assert found.mean() == pytest.approx(0.5, abs=0.02)


@given(trials)
def test_eer_is_where_the_joined_points_cross(row: tuple[Any, Any]) -> None:
    curve = roc(*row)
    assert eer(*row) == pytest.approx(np.interp(0, curve.miss - curve.false_alarm, curve.miss))


@given(trials)
def test_auc_agrees_with_scikit_learn(row: tuple[Any, Any]) -> None:
    assert auc(*row) == pytest.approx(roc_auc_score(row[1], row[0]))


@given(trials)
def test_min_cllr_is_the_cllr_of_pooled_scores(row: tuple[Any, Any]) -> None:
    scores, target = row
    share = IsotonicRegression(y_min=0, y_max=1).fit_transform(scores, target.astype(float))
    odds = target.sum() / (~target).sum()
    with np.errstate(divide="ignore"):
        ratios = np.log(share / (1 - share) / odds)
    # Infinite ratios stand where one kind is alone, and cost it nothing; 1000 is as good.
    assert min_cllr(scores, target) == pytest.approx(cllr(np.clip(ratios, -1000, 1000), target), abs=1e-9)


@given(trials)
def test_min_dcf_is_the_least_counted_cost(row: tuple[Any, Any]) -> None:
    for prior, c_miss, c_false_alarm in ((0.01, 1.0, 1.0), (0.3, 10.0, 1.0), (0.9, 1.0, 2.0)):
        prices = (prior * c_miss, (1 - prior) * c_false_alarm)
        rates = [counted(*row, threshold) for threshold in [*row[0], math.inf]]
        least = min(prices[0] * miss + prices[1] * alarm for miss, alarm in rates) / min(prices)
        assert min_dcf(prior, c_miss, c_false_alarm)(*row) == pytest.approx(least)


# Of whole numbers to whole numbers, so that no two scores meet by rounding.
RISING: dict[str, Callable[[Any], Any]] = {
    "shifted": lambda scores: scores + 7,
    "stretched": lambda scores: 3 * scores,
    "cubed": lambda scores: scores**3,
    "exponential": np.exp,
    "ranked": lambda scores: np.unique(scores, return_inverse=True)[1].astype(np.float64),
}


@given(trials, st.sampled_from(sorted(RISING)))
def test_maps_that_keep_the_order_change_nothing_but_cllr(row: tuple[Any, Any], name: str) -> None:
    scores, target = row
    for each in ("eer", "auc", "min_cllr", "min_dcf_01", "min_dcf_05"):
        assert METRICS[each](RISING[name](scores), target) == METRICS[each](scores, target)


@given(trials)
def test_swapped_kinds_of_negated_scores_have_the_same_errors(row: tuple[Any, Any]) -> None:
    scores, target = row
    for each in ("eer", "auc", "cllr", "min_cllr"):
        assert METRICS[each](-scores, ~target) == pytest.approx(METRICS[each](scores, target))
    assert min_dcf(0.2)(-scores, ~target) == pytest.approx(min_dcf(0.8)(scores, target))


@given(trials)
def test_cllr_is_never_below_its_minimum_which_is_never_above_one_bit(row: tuple[Any, Any]) -> None:
    assert -1e-12 <= min_cllr(*row) <= min(cllr(*row), 1.0) + 1e-12


@given(trials, st.sampled_from(sorted(METRICS)), st.randoms(use_true_random=False))
def test_a_weight_is_a_trial_given_so_often(row: tuple[Any, Any], name: str, random: Any) -> None:
    scores, target = row
    weights = np.array([[random.choice((0, 1, 2, 5)) for _ in scores] for _ in range(3)], dtype=np.float64)
    assume(all(line[target].any() and line[~target].any() for line in weights))
    found = METRICS[name](scores, target, weights)
    for value, line in zip(found, weights.astype(int), strict=True):
        assert value == pytest.approx(METRICS[name](np.repeat(scores, line), np.repeat(target, line)), abs=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_weights_that_leave_one_kind_out_give_no_figure_and_spoil_no_other(name: str) -> None:
    scores, target = labelled([1, 2], [0, 1])
    found = METRICS[name](scores, target, np.array([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]))
    assert np.isnan(found[:2]).all()
    assert found[2] == METRICS[name](scores, target)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_without_weights_a_metric_is_a_plain_number(name: str) -> None:
    assert type(METRICS[name](*labelled([1, 2], [0, 1]))) is float


@pytest.mark.parametrize(
    ("scores", "target", "problem"),
    [
        ([1.0, math.nan], [True, False], "1 of 2 scores are not finite"),
        ([1.0, math.inf], [True, False], "1 of 2 scores are not finite"),
        ([1.0, 2.0], [True, True], "2 target and 0 non-target"),
        ([1.0, 2.0], [False, False], "0 target and 2 non-target"),
        ([], [], "0 target and 0 non-target"),
        ([1.0, 2.0], [True], "do not go with"),
        ([[1.0, 2.0]], [[True, False]], "do not go with"),
    ],
)
def test_trials_without_a_rate_are_refused_by_everything(scores: Any, target: Any, problem: str) -> None:
    row = (np.array(scores, dtype=np.float64), np.array(target, dtype=np.bool_))
    functions: list[Callable[..., Any]] = [*METRICS.values(), roc, det_points]
    for function in functions:
        with pytest.raises(UsageError, match=problem):
            function(*row)
    index = np.zeros(row[0].shape, dtype=np.int64)
    with pytest.raises(UsageError, match=problem):
        Trials(*row, index, index, index)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [[1.0]], [[1.0, -1.0]], [[1.0, math.nan]]])
def test_weights_that_fit_no_trials_are_refused(weights: Any) -> None:
    with pytest.raises(UsageError, match="how often each of 2 trials counts"):
        eer(*labelled([1], [0]), np.array(weights))


@pytest.mark.parametrize(("arguments", "problem"), [((0.0,), "share"), ((1.0,), "share"), ((0.1, 0.0), "Prices")])
def test_costs_that_weigh_nothing_are_refused(arguments: tuple[float, ...], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        min_dcf(*arguments)


def test_trials_count_their_kinds_and_refuse_a_missing_index() -> None:
    scores, target = labelled([1, 2], [0, 1, 0])
    index = np.arange(5)
    assert (Trials(scores, target, index, index, index).targets, int((~target).sum())) == (2, 3)
    assert Trials(scores, target, index, index, index).nontargets == 3
    with pytest.raises(UsageError, match="'text' has shape"):
        Trials(scores, target, index, index, index[:4])
