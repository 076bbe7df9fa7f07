"""Identification among many agents, against examples worked by hand and slow counting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unspoken.errors import UsageError
from unspoken.identity.identification import cmc, open_set, open_set_threshold, rank_one

# Three enrolled agents. The own agent of each test: first, tied first, second, third.
SCORES = np.array([[9.0, 1, 2], [5, 5, 1], [3, 2, 1], [7, 8, 6]])
TRUTH = np.array([0, 1, 1, 2])


def test_ranks_are_those_worked_by_hand_and_a_tie_is_shared() -> None:
    # At rank 1: one whole and half of the tie. At rank 2 the tie is complete, and the third test is found.
    assert cmc(SCORES, TRUTH).tolist() == [1.5 / 4, 3 / 4, 1.0]
    assert rank_one(SCORES, TRUTH) == 0.375


@pytest.mark.parametrize("enrolled", [1, 2, 7])
def test_equal_scores_find_as_many_as_guessing(enrolled: int) -> None:
    scores, truth = np.zeros((5, enrolled)), np.arange(5) % enrolled
    assert cmc(scores, truth) == pytest.approx(np.arange(1, enrolled + 1) / enrolled)
    assert open_set(scores, truth, threshold=0.0).dir == pytest.approx(1 / enrolled)


@given(
    arrays(np.float64, (6, 4), elements=st.integers(0, 5).map(float)),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
)
def test_ranks_equal_the_average_over_all_ways_to_break_ties(scores: Any, truth: list[int]) -> None:
    found = cmc(scores, np.array(truth))
    expected = np.zeros(4)
    for row, own in zip(scores, truth, strict=True):
        above, equal = int((row > row[own]).sum()), int((row == row[own]).sum())
        for place in range(above, above + equal):
            expected[place:] += 1 / equal / len(truth)
    assert found == pytest.approx(expected)
    assert (np.diff(found) >= -1e-12).all()


def test_open_set_has_the_figures_worked_by_hand() -> None:
    # Highest scores of four strangers: 1, 2, 3, 6. At one false alarm in four the threshold lies just above 3.
    scores = np.array([[5.0, 0], [0, 3], [3.5, 4], [0, 7], [1, 0], [2, 2], [0, 3], [6, 1]])
    truth = np.array([0, 1, 0, 1, -1, -1, -1, -1])
    found = open_set(scores, truth, false_alarm=0.25)
    assert found.threshold == np.nextafter(3.0, 4)
    # The second is the top candidate, but not above the threshold; the third is above it, but not the top candidate.
    assert (found.dir, found.false_alarm, found.known, found.unknown) == (0.5, 0.25, 4, 4)
    # At 1 % none of four strangers may pass, so the threshold lies above 6.
    strict = open_set(scores, truth)
    assert (strict.dir, strict.false_alarm) == (0.25, 0.0)


@given(
    st.lists(st.integers(0, 9).map(float), min_size=1, max_size=30), st.sampled_from([0.0, 0.01, 0.1, 0.29, 0.5, 0.99])
)
def test_the_threshold_is_the_lowest_that_keeps_false_alarms(highest: list[float], allowed: float) -> None:
    scores = np.array(highest)[:, None]
    threshold = open_set_threshold(scores, np.full(len(highest), -1), allowed)
    assert (scores >= threshold).mean() <= allowed + 1e-12
    # One representable number lower, and a stranger too many is let in.
    assert (scores >= np.nextafter(threshold, -math.inf)).mean() > allowed


def test_a_share_that_floating_point_rounds_down_is_used_in_full() -> None:
    scores = np.arange(100.0)[:, None]
    assert (scores >= open_set_threshold(scores, np.full(100, -1), 0.29)).sum() == 29


def test_a_threshold_chosen_on_other_tests_is_used_as_it_is() -> None:
    scores, truth = np.array([[2.0, 0], [0, 4], [3, 0]]), np.array([0, 1, -1])
    found = open_set(scores, truth, threshold=3.0)
    # At the threshold is above it.
    assert (found.dir, found.false_alarm, found.threshold) == (0.5, 1.0, 3.0)
    alone = open_set(scores[:2], truth[:2], threshold=1.0)
    assert (alone.dir, alone.false_alarm, alone.unknown) == (1.0, None, 0)


def test_strangers_have_no_influence_but_by_the_threshold() -> None:
    rng = np.random.default_rng(0)
    known, truth = rng.normal(size=(50, 6)), rng.integers(0, 6, 50)
    known[np.arange(50), truth] += 2
    strangers = rng.normal(size=(40, 6))
    both = open_set(np.concatenate((known, strangers)), np.append(truth, np.full(40, -1)), 0.1)
    assert both.dir == open_set(known, truth, threshold=both.threshold).dir
    assert 0 < both.dir < rank_one(known, truth)
    assert both.false_alarm == 0.1


@pytest.mark.parametrize(
    ("scores", "truth", "problem"),
    [
        ([[1.0, math.nan]], [0], "1 scores are not finite"),
        ([[1.0, 2.0]], [0, 1], "do not go with"),
        ([1.0, 2.0], [0, 1], "do not go with"),
        (np.zeros((0, 3)), [], "do not go with"),
        ([[1.0, 2.0]], [2], "2 are enrolled"),
        ([[1.0, 2.0]], [-2], "2 are enrolled"),
    ],
)
def test_matrices_that_name_nobody_are_refused(scores: Any, truth: Any, problem: str) -> None:
    for function in (cmc, rank_one, open_set_threshold, open_set):
        with pytest.raises(UsageError, match=problem):
            function(np.array(scores, dtype=np.float64), np.array(truth, dtype=np.int64))


def test_what_cannot_be_chosen_or_counted_is_refused() -> None:
    scores, known, unknown = np.zeros((2, 3)), np.array([0, 1]), np.array([-1, -1])
    with pytest.raises(UsageError, match="no rank"):
        cmc(scores, np.array([0, -1]))
    with pytest.raises(UsageError, match="no threshold can be chosen"):
        open_set(scores, known)
    with pytest.raises(UsageError, match="nobody can be found"):
        open_set(scores, unknown)
    with pytest.raises(UsageError, match="no number"):
        open_set(scores, known, threshold=math.nan)
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(UsageError, match="share of false alarms"):
            open_set_threshold(scores, unknown, share)
