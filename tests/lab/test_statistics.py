"""Statistics against oracles that are slow, or worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unspoken.lab.statistics import ClusterBootstrap, geometric, holm, mcnemar, spread, student

CLUSTERS = ["a", "a", "a", "b", "c", "c", "d", "d"]
VALUES = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.5]


def test_resampled_means_equal_a_loop_over_resampled_items() -> None:
    seed, draws = 7, 50
    found = ClusterBootstrap(CLUSTERS, seed, draws).means(VALUES)
    rng = np.random.default_rng(seed)
    names = sorted(set(CLUSTERS))
    for draw in range(draws):
        counts = rng.multinomial(len(names), [1 / len(names)] * len(names))
        items = [
            value
            for name, times in zip(names, counts, strict=True)
            for _ in range(times)
            for value, cluster in zip(VALUES, CLUSTERS, strict=True)
            if cluster == name
        ]
        assert found[draw] == pytest.approx(sum(items) / len(items))


def test_interval_agrees_with_a_bootstrap_that_picks_clusters_one_by_one() -> None:
    rng = np.random.default_rng(0)
    clusters = [f"{at // 4}" for at in range(80)]
    values = (rng.random(80) < np.repeat(rng.random(20), 4)).astype(float).tolist()
    interval = ClusterBootstrap(clusters, 1, 4000).interval(values)
    blocks = [values[at : at + 4] for at in range(0, 80, 4)]
    means = [np.mean([blocks[pick] for pick in rng.integers(0, 20, 20)]) for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert interval.mean == pytest.approx(np.mean(values))
    # Two simulations of 4,000 draws: their quantiles differ by a few thousandths.
    assert interval.low == pytest.approx(low, abs=0.02)
    assert interval.high == pytest.approx(high, abs=0.02)


def test_whole_clusters_make_a_wider_interval_than_single_items() -> None:
    clusters = [f"{at // 10}" for at in range(100)]
    values = [float((at // 10) % 2) for at in range(100)]
    grouped = ClusterBootstrap(clusters, 0).interval(values)
    single = ClusterBootstrap([str(at) for at in range(100)], 0).interval(values)
    assert grouped.high - grouped.low > 2 * (single.high - single.low)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(3), 0
    for trial in range(200):
        truth = rng.random(40) * 0.4 + 0.3
        values = (rng.random((40, 5)) < truth[:, None]).astype(float).ravel().tolist()
        interval = ClusterBootstrap([str(at // 5) for at in range(200)], trial, 400).interval(values)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_same_seed_gives_the_same_resamples_for_every_statistic() -> None:
    first, again, other = ClusterBootstrap(CLUSTERS, 5), ClusterBootstrap(CLUSTERS, 5), ClusterBootstrap(CLUSTERS, 6)
    assert (first.means(VALUES) == again.means(VALUES)).all()
    assert (first.means(VALUES) != other.means(VALUES)).any()
    # Paired: the mean of a difference is the difference of the means, resample by resample.
    doubled = [2 * value for value in VALUES]
    assert first.means(doubled) - first.means(VALUES) == pytest.approx(first.means(VALUES))


def test_a_constant_has_an_interval_of_no_width() -> None:
    interval = ClusterBootstrap(CLUSTERS, 0).interval([0.25] * len(CLUSTERS))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_lower_level_gives_a_narrower_interval() -> None:
    bootstrap = ClusterBootstrap(CLUSTERS, 0)
    wide, narrow = bootstrap.interval(VALUES, 0.95), bootstrap.interval(VALUES, 0.90)
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    assert wide.high - wide.low > narrow.high - narrow.low


def test_spread_takes_percentiles_of_what_is_a_number() -> None:
    resampled = np.array([math.nan, math.inf, *range(101)], dtype=np.float64)
    assert spread(50.0, resampled, 0.9) == spread(50.0, np.arange(101, dtype=np.float64), 0.9)
    interval = spread(50.0, resampled, 0.9)
    assert (interval.low, interval.high) == pytest.approx((5.0, 95.0))
    for undefined in (spread(math.nan, resampled), spread(1.0, np.array([math.nan]))):
        assert all(math.isnan(value) for value in (undefined.mean, undefined.low, undefined.high))


@pytest.mark.parametrize(
    ("only_left", "only_right", "p"),
    # Twice the binomial tail at one half, worked by hand: 2 (1 + 6) / 64, 2 / 64, 2 (1 + 12 + 66) / 4096 ...
    [
        (1, 5, 0.21875),
        (6, 0, 0.03125),
        (10, 2, 0.03857421875),
        (0, 0, 1.0),
        (4, 4, 1.0),
        (1, 0, 1.0),
        (0, 10, 0.001953125),
    ],
)
def test_mcnemar_has_the_known_values(only_left: int, only_right: int, p: float) -> None:
    left = [True] * only_left + [False] * only_right + [True, False, True]
    right = [False] * only_left + [True] * only_right + [True, False, True]
    assert mcnemar(left, right) == p
    assert mcnemar(right, left) == p


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=9))
@settings(max_examples=60)
def test_mcnemar_equals_counting_all_assignments(rows: list[tuple[bool, bool]]) -> None:
    differing = [left for left, right in rows if left != right]
    seen = abs(2 * sum(differing) - len(differing))
    worlds = list(itertools.product((0, 1), repeat=len(differing)))
    extreme = sum(abs(2 * sum(world) - len(differing)) >= seen for world in worlds)
    found = mcnemar([left for left, _ in rows], [right for _, right in rows])
    assert found == pytest.approx(extreme / len(worlds))


def test_mcnemar_refuses_rows_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True], [True, False])


def test_holm_has_the_hand_computed_values() -> None:
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 raised to the one before it.
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(found) == ["a", "b", "c", "d"]
    assert list(found.values()) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    for name, p in p_values.items():
        assert p <= adjusted[name] <= min(1.0, len(p_values) * p) + 1e-12
    ranked = sorted(p_values, key=p_values.__getitem__)
    assert [adjusted[name] for name in ranked] == sorted(adjusted.values())


def test_an_interval_of_single_items_is_that_of_another_library() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the extra identity")
    values = np.random.default_rng(5).exponential(size=120)
    found = ClusterBootstrap([str(at) for at in range(120)], seed=1).interval(values.tolist())
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2))
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.05 * width)


def test_equal_within_a_margin_is_what_two_one_sided_t_tests_say() -> None:
    """Schuirmann 1987: both tests reject at 5 % where the 90 % interval lies within the margin."""
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the extra identity")
    draw, margin, told = np.random.default_rng(11), 0.05, []
    for _ in range(150):
        values = draw.normal(draw.uniform(-0.08, 0.08), 0.3, size=400)
        inner = ClusterBootstrap([str(at) for at in range(400)], seed=1, draws=2000).interval(values.tolist(), 0.90)
        both = max(
            stats.ttest_1samp(values, -margin, alternative="greater").pvalue,
            stats.ttest_1samp(values, margin, alternative="less").pvalue,
        )
        told.append((inner.low > -margin and inner.high < margin, both < 0.05))
    assert sum(ours == theirs for ours, theirs in told) >= 145
    assert 20 < sum(theirs for _, theirs in told) < 130


@pytest.mark.parametrize(("only_left", "only_right"), [(0, 1), (3, 9), (59, 16), (10, 10), (0, 40)])
def test_mcnemar_is_another_librarys_binomial_test(only_left: int, only_right: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the extra identity")
    left = [True] * only_left + [False] * only_right + [True, False] * 5
    right = [False] * only_left + [True] * only_right + [True, False] * 5
    expected = stats.binomtest(only_left, only_left + only_right).pvalue
    assert mcnemar(left, right) == pytest.approx(expected)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_students_t_is_scipys(level: float) -> None:
    for freedom in (*range(1, 12), 31, 200):
        assert student(freedom, level) == pytest.approx(float(stats.t.ppf((1 + level) / 2, freedom)), rel=1e-9)


def test_a_few_ratios_by_hand() -> None:
    # Logarithms 0 and 1: mean 1/2, standard error 1/2, t of one degree of freedom 12.706.
    found = geometric([1.0, math.e])
    assert found.mean == pytest.approx(math.exp(0.5))
    assert found.low == pytest.approx(math.exp(0.5 - 12.7062 / 2), rel=1e-4)
    assert found.high == pytest.approx(math.exp(0.5 + 12.7062 / 2), rel=1e-4)
    single, none = geometric([3.0]), geometric([])
    assert single.mean == pytest.approx(3.0)
    assert all(map(math.isnan, (single.low, single.high, none.mean, none.low)))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_intervals_of_a_few_ratios_cover_as_often_as_they_say(count: int) -> None:
    rng = np.random.default_rng(20261129)
    found = [geometric(row) for row in np.exp(rng.normal(0.7, 0.2, (2000, count))).tolist()]
    covered = np.mean([each.low <= math.exp(0.7) <= each.high for each in found])
    assert covered == pytest.approx(0.95, abs=0.015)
