"""How many questions an experiment takes: against published figures, and against the test itself, simulated."""

from __future__ import annotations

import numpy as np
import pytest

from unspoken.errors import UsageError
from unspoken.lab.power import connor, for_clusters, items_needed, power, smallest_difference
from unspoken.lab.statistics import mcnemar


def test_the_example_in_the_manual_of_gpower_comes_out() -> None:
    # Faul et al. 2007, G*Power 3, McNemar: odds ratio 0.25, 40 % discordant, 50 pairs, one-sided at 5 %: 0.839343. Here
    # both sides have 5 %, of which the far one adds nothing.
    assert power(50, 0.24, 0.40, level=0.10) == pytest.approx(0.839343, abs=5e-5)


def test_connors_formula_gives_what_others_compute_by_it() -> None:
    # Connor 1987, with discordant shares of 45 and 5 %: 23 pairs (worked in the calculators that cite it).
    assert connor(0.40, 0.50) == 23
    # 620 pairs for 5 points, as arXiv 2607.26773 has it, are those of arms that differ on a fifth of the answers.
    assert connor(0.05, 0.198) == pytest.approx(620, abs=3)


@pytest.mark.parametrize(
    ("items", "difference", "differing"), [(60, 0.20, 0.30), (200, 0.08, 0.20), (624, 0.0501, 0.12)]
)
def test_the_test_itself_rejects_as_often_as_is_said(items: int, difference: float, differing: float) -> None:
    rng = np.random.default_rng(7)
    plus, minus = (differing + difference) / 2, (differing - difference) / 2
    seen, runs = 0, 1500
    for _ in range(runs):
        drawn = rng.choice(3, size=items, p=[plus, minus, 1 - differing])
        seen += mcnemar([bool(each == 0) for each in drawn], [bool(each == 1) for each in drawn]) <= 0.05
    expected = power(items, difference, differing)
    assert seen / runs == pytest.approx(expected, abs=4 * (expected * (1 - expected) / runs) ** 0.5)


def test_the_number_needed_is_enough_and_no_more_than_it_takes() -> None:
    for difference, differing in ((0.05, 0.20), (0.10, 0.30), (0.20, 0.20)):
        needed = items_needed(difference, differing)
        assert power(needed, difference, differing) >= 0.80
        assert power(needed - 1, difference, differing) < 0.80


def test_the_smallest_difference_is_what_so_many_questions_see() -> None:
    least = smallest_difference(620)
    assert least is not None
    assert power(620, least) >= 0.80 > power(620, least - 0.001)
    assert smallest_difference(3) is None


def test_questions_about_one_source_count_for_less() -> None:
    assert for_clusters(500, 1.0, 0.5) == 500
    assert for_clusters(500, 6.0, 0.0) == 500
    assert for_clusters(500, 6.0, 1.0) == 3000


@pytest.mark.parametrize(("difference", "differing"), [(0.0, 0.2), (0.3, 0.2), (0.1, 1.5)])
def test_what_is_impossible_is_refused(difference: float, differing: float) -> None:
    with pytest.raises(UsageError, match="leave no room"):
        power(100, difference, differing)


def test_differences_too_small_for_any_experiment_are_told() -> None:
    with pytest.raises(UsageError, match="More than 20000 questions"):
        items_needed(0.002)
