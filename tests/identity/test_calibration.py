"""Calibration and cohort normalisation against closed forms, an independent optimiser and loops."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.special import ndtri

from unspoken.errors import UsageError
from unspoken.identity.calibration import STRENGTH, Calibration, as_norm
from unspoken.identity.metrics import cllr, eer, min_cllr


@pytest.fixture(autouse=True)
def _no_warning_is_hidden() -> Iterator[None]:
    """A fit that does not converge only warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def labelled(targets: Any, nontargets: Any) -> tuple[Any, Any]:
    scores = np.concatenate((np.array(targets, dtype=np.float64), np.array(nontargets, dtype=np.float64)))
    return scores, np.arange(scores.size) < len(targets)


def overlapping(seed: int, targets: int = 60, nontargets: int = 400) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return labelled(rng.normal(1.5, 1.0, targets), rng.normal(0, 1.2, nontargets))


@pytest.mark.parametrize("separation", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("prior", [0.5, 0.05])
def test_normal_scores_get_their_true_ratio(separation: float, prior: float) -> None:
    # ln N(s; d, 1) / N(s; 0, 1) = d s - d^2 / 2, at evenly spaced quantiles, three times as many non-targets.
    targets, nontargets = (ndtri((np.arange(each) + 0.5) / each) for each in (10_000, 30_000))
    found = Calibration.fit(*labelled(targets + separation, nontargets), prior)
    assert found.scale == pytest.approx(separation, rel=5e-3)
    assert found.offset == pytest.approx(-(separation**2) / 2, abs=5e-3)


@pytest.mark.parametrize("prior", [0.5, 0.1, 0.01])
def test_the_fit_is_the_one_an_independent_optimiser_finds(prior: float) -> None:
    scores, target = overlapping(0)
    odds = math.log(prior / (1 - prior))

    def loss(line: Any) -> float:
        ratios = line[0] * scores + line[1] + odds
        right, wrong = np.logaddexp(0, -ratios[target]).mean(), np.logaddexp(0, ratios[~target]).mean()
        return float(prior * right + (1 - prior) * wrong)

    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14, "maxiter": 4000})
    found = Calibration.fit(scores, target, prior)
    assert [found.scale, found.offset] == pytest.approx(best.x, rel=2e-3)


def test_how_many_trials_of_a_kind_there_are_does_not_move_the_fit() -> None:
    scores, target = overlapping(1)
    more = np.concatenate((scores, scores[~target], scores[~target]))
    found = Calibration.fit(more, np.concatenate((target, np.zeros(2 * (~target).sum(), dtype=bool))))
    once = Calibration.fit(scores, target)
    # The penalty is on the slope per standard deviation of all scores, which does move; it is worth some millionths.
    assert (found.scale, found.offset) == pytest.approx((once.scale, once.offset), rel=1e-5)


@pytest.mark.parametrize(("stretch", "shift"), [(1e-4, 0.0), (1e5, -3e6), (0.02, 0.97)])
def test_ratios_do_not_depend_on_the_unit_of_scores(stretch: float, shift: float) -> None:
    scores, target = overlapping(2)
    found = Calibration.fit(stretch * scores + shift, target).llr(stretch * scores + shift)
    assert found == pytest.approx(Calibration.fit(scores, target).llr(scores), rel=1e-5, abs=1e-6)


few = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=15)


@given(few, few)
@settings(max_examples=60)
def test_calibrated_scores_lose_at_most_one_bit_where_they_were_fitted(targets: Any, nontargets: Any) -> None:
    row = labelled(targets, nontargets)
    fit = Calibration.fit(*row)
    lost = cllr(fit.llr(row[0]), row[1])
    # The objective at prior one half is Cllr itself, and a scale of 0 would reach 1 bit.
    assert lost <= 1 + 1e-9
    # No map that keeps the order beats the best one; a scale below 0 does not keep it.
    assert fit.scale < 0 or lost >= min_cllr(*row) - 1e-9
    assert abs(fit.scale) * row[0].std() <= math.sqrt(2 * math.log(2) * STRENGTH)


@pytest.mark.parametrize("gap", [1e-9, 1e-3, 1.0, 1e6])
def test_scores_that_separate_perfectly_get_a_finite_scale(gap: float) -> None:
    scores, target = labelled([2 * gap, 3 * gap], [-gap, 0, gap])
    fit = Calibration.fit(scores, target)
    assert 0 < fit.scale * scores.std() <= math.sqrt(2 * math.log(2) * STRENGTH)
    assert ((fit.llr(scores) > 0) == target).all()
    assert cllr(fit.llr(scores), target) < 0.01


def test_one_close_call_between_far_apart_kinds_stays_within_the_bound() -> None:
    # A gap of a millionth of the spread: without a penalty the scale would be without end.
    scores, target = labelled([1e-6, 1.0, 1.0], [0.0, -1.0, -1.0])
    fit = Calibration.fit(scores, target)
    assert 5 < fit.scale * scores.std() <= math.sqrt(2 * math.log(2) * STRENGTH)


@pytest.mark.parametrize("value", [0.0, 0.1, -7e9])
def test_equal_scores_say_nothing(value: float) -> None:
    fit = Calibration.fit(*labelled([value] * 3, [value] * 7), prior=0.05)
    assert fit.llr(np.array([value, value + 100])).tolist() == [0, 0]


def test_scores_that_are_the_wrong_way_round_are_turned() -> None:
    scores, target = overlapping(3)
    fit, turned = Calibration.fit(scores, target), Calibration.fit(-scores, target)
    assert (turned.scale, turned.offset) == pytest.approx((-fit.scale, fit.offset), rel=1e-6)


def test_a_fit_survives_json() -> None:
    fit = Calibration.fit(*overlapping(4))
    assert msgspec.json.decode(msgspec.json.encode(fit), type=Calibration) == fit
    assert Calibration(2.0, -1.0).llr(np.array([[0.0, 3.0]])).tolist() == [[-1.0, 5.0]]


@pytest.mark.parametrize(
    ("scores", "target", "prior", "problem"),
    [
        ([1.0, 2.0], [True, True], 0.5, "0 non-target"),
        ([1.0, 2.0], [False, False], 0.5, "0 target"),
        ([1.0, math.nan], [True, False], 0.5, "not finite"),
        ([1.0, -math.inf], [True, False], 0.5, "not finite"),
        ([1.0, 2.0], [True], 0.5, "do not go with"),
        ([1.0, 2.0], [True, False], 0.0, "share of targets"),
        ([1.0, 2.0], [True, False], 1.0, "share of targets"),
    ],
)
def test_trials_that_calibrate_nothing_are_refused(scores: Any, target: Any, prior: float, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        Calibration.fit(np.array(scores), np.array(target), prior)


def looped(raw: Any, enrolled: Any, tests: Any, top: int) -> Any:
    normed = np.zeros_like(raw)
    for test in range(raw.shape[0]):
        for agent in range(raw.shape[1]):
            for cohort in (enrolled[agent], tests[test]):
                nearest = sorted(cohort.tolist(), reverse=True)[:top]
                mean = sum(nearest) / top
                spread = math.sqrt(sum((each - mean) ** 2 for each in nearest) / top)
                normed[test, agent] += (raw[test, agent] - mean) / spread / 2
    return normed


@pytest.mark.parametrize("top", [2, 5, 9, None])
def test_normalised_scores_equal_a_loop(top: int | None) -> None:
    rng = np.random.default_rng(0)
    raw, enrolled, tests = rng.normal(size=(6, 4)), rng.normal(size=(4, 9)), rng.normal(size=(6, 9))
    assert as_norm(raw, enrolled, tests, top) == pytest.approx(looped(raw, enrolled, tests, top or 9))


def test_a_normalised_score_is_the_one_worked_by_hand() -> None:
    # Top two against the agent: 3 and 1, mean 2, deviation 1; against the test: 4 and 0, mean 2, deviation 2.
    found = as_norm(np.array([[6.0]]), np.array([[1.0, -9, 3]]), np.array([[0.0, 4, -9]]), top=2)
    assert found.tolist() == [[(4 / 1 + 4 / 2) / 2]]


matrix = arrays(np.float64, (5, 4), elements=st.integers(-9, 9).map(float))


@given(matrix, arrays(np.float64, (4, 6), elements=st.integers(-9, 9).map(float)), st.data())
@settings(max_examples=60)
def test_normalised_scores_have_no_unit_and_treat_both_sides_alike(raw: Any, enrolled: Any, data: Any) -> None:
    tests = data.draw(arrays(np.float64, (5, 6), elements=st.integers(-9, 9).map(float)))
    normed = as_norm(raw, enrolled, tests, top=4)
    assert as_norm(3 * raw + 7, 3 * enrolled + 7, 3 * tests + 7, top=4) == pytest.approx(normed)
    mirrored = as_norm(raw.T, tests, enrolled, top=4).T
    assert mirrored == pytest.approx(normed)
    assert np.isfinite(normed).all()


def test_a_cohort_without_spread_counts_neither_for_nor_against() -> None:
    raw = np.array([[3.0, 5.0]])
    # The first agent's cohort is all alike, the second's not; the test's is alike but for rounding of float32.
    found = as_norm(raw, np.array([[2.0, 2, 2], [1, 3, 2]]), np.array([[0.7, 0.7, 0.7 + 5e-8]]), top=2)
    assert found.tolist() == [[0.0, (5 - 2.5) / 0.5 / 2]]


def test_rounding_errors_are_not_blown_up_to_recognition() -> None:
    # Every score is 0.5 but for noise that follows the agents: nothing to see, and nothing may be seen.
    rng = np.random.default_rng(0)
    noise = 1e-9 * rng.normal(size=(6, 4))
    target = np.zeros((6, 4), dtype=bool)
    target[np.arange(6), np.arange(6) % 4] = True
    normed = as_norm(0.5 + noise + 1e-8 * target, 0.5 + 1e-9 * rng.normal(size=(4, 5)), np.full((6, 5), 0.5))
    assert (normed == 0).all()
    assert eer(normed.ravel(), target.ravel()) == 0.5


def test_normalising_removes_what_one_agent_scores_above_all_others() -> None:
    # Some agents score high with everybody, in the cohort as among the enrolled.
    rng = np.random.default_rng(5)
    offset, cohort_offset = 5 * rng.normal(size=(1, 8)), 5 * rng.normal(size=(1, 30))
    target = np.arange(40)[:, None] % 8 == np.arange(8)
    raw = offset + 2.5 * target + 0.5 * rng.normal(size=(40, 8))
    enrolled, tests = offset.T + 0.5 * rng.normal(size=(8, 30)), cohort_offset + 0.5 * rng.normal(size=(40, 30))
    before, after = (eer(scores.ravel(), target.ravel()) for scores in (raw, as_norm(raw, enrolled, tests)))
    assert before > 0.3
    assert after < 0.1


@pytest.mark.parametrize(
    ("shapes", "top", "problem"),
    [
        (((5, 4), (4, 6), (5, 7)), None, "do not belong together"),
        (((5, 4), (5, 6), (5, 6)), None, "do not belong together"),
        (((5, 4), (4, 6), (4, 6)), None, "do not belong together"),
        (((5,), (4, 6), (5, 6)), None, "do not belong together"),
        (((5, 4), (4, 6), (5, 6)), 1, "at least 2"),
        (((5, 4), (4, 6), (5, 6)), 7, "cohort of 6"),
        (((5, 4), (4, 1), (5, 1)), None, "at least 2"),
        (((5, 4), (4, 0), (5, 0)), None, "at least 2"),
    ],
)
def test_cohorts_that_cannot_normalise_are_refused(shapes: Any, top: int | None, problem: str) -> None:
    raw, enrolled, tests = (np.ones(shape) for shape in shapes)
    with pytest.raises(UsageError, match=problem):
        as_norm(raw, enrolled, tests, top)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_score_that_is_no_number_is_refused_wherever_it_stands(part: int) -> None:
    matrices = [np.ones((5, 4)), np.ones((4, 6)), np.ones((5, 6))]
    matrices[part][1, 2] = math.nan
    with pytest.raises(UsageError, match="1 scores are not finite"):
        as_norm(matrices[0], matrices[1], matrices[2])
