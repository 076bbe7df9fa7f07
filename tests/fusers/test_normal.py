"""Sums taken in column by column are those of all columns at once, as numpy computes them in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.fusers.normal import FLOOR, Moments, NormalEquations

COLUMNS, INPUTS, TARGETS = 400, 7, 5


def drawn(columns: int = COLUMNS, seed: int = 0, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    """Correlated inputs and targets, with spreads of their own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(columns, INPUTS, generator=generator) * torch.logspace(-1, 1, INPUTS)
    y = x @ torch.randn(INPUTS, TARGETS, generator=generator) + torch.randn(columns, TARGETS, generator=generator)
    offsets = torch.randn(INPUTS + TARGETS, generator=generator)
    return x + mean * offsets[:INPUTS], y + mean * offsets[INPUTS:]


def taken(x: Tensor, y: Tensor, *cuts: int) -> Moments:
    """The moments, the columns taken in in some runs."""
    seen = NormalEquations(x.shape[1], y.shape[1])
    for start, stop in zip((0, *cuts), (*cuts, len(x)), strict=True):
        seen.add(x[start:stop], y[start:stop])
    assert seen.count == len(x)
    return seen.standardised()


def expected(x: Tensor, y: Tensor) -> tuple[NDArray[np.float64], ...]:
    """Means, deviations and correlations by numpy."""
    a, b = x.double().numpy(), y.double().numpy()
    together = np.corrcoef(a, b, rowvar=False)
    return a.mean(0), a.std(0), b.mean(0), b.std(0), together[:INPUTS, :INPUTS], together[:INPUTS, INPUTS:]


def apart(found: Moments, wanted: tuple[NDArray[np.float64], ...]) -> float:
    """The largest difference, means against deviations."""
    made = (found.inputs_mean, found.inputs_scale, found.targets_mean, found.targets_scale, found.gram, found.cross)
    in_mean, in_scale, out_mean, out_scale = (made[at].double().numpy() - wanted[at] for at in range(4))
    relative = [in_mean / wanted[1], in_scale / wanted[1], out_mean / wanted[3], out_scale / wanted[3]]
    relative += [made[at].double().numpy() - wanted[at] for at in (4, 5)]
    return max(float(np.abs(each).max()) for each in relative)


def test_moments_are_numpys() -> None:
    x, y = drawn()
    assert apart(taken(x, y), expected(x, y)) < 1e-5
    assert taken(x, y).gram.dtype == torch.float32


@given(st.lists(st.integers(0, COLUMNS), max_size=6))
def test_columns_may_come_in_any_runs(cuts: list[int]) -> None:
    x, y = drawn(seed=1)
    assert apart(taken(x, y, *sorted(cuts)), expected(x, y)) < 1e-5


@pytest.mark.parametrize("mean", [1e2, 1e3])
def test_means_far_from_zero_do_not_cost_digits(mean: float) -> None:
    x, y = drawn(seed=2, mean=mean)
    # What float32 holds of columns this far from zero is all there is to know: the oracle sees the same numbers.
    assert apart(taken(x, y, 50, 51, 200), expected(x, y)) < 2e-4
    # The bound means something: sums of the numbers as they are have lost it.
    plain = x.T @ x / len(x) - torch.outer(x.mean(0), x.mean(0))
    scales = plain.diagonal().clamp(min=1e-8).sqrt()
    assert float(
        (plain / torch.outer(scales, scales)).double().sub(torch.from_numpy(expected(x, y)[4])).abs().max()
    ) > (2e-3)


def test_columns_seen_before_far_from_the_first_count_as_much() -> None:
    x, y = drawn(seed=3)
    x[100:] += 30  # The mean of the first columns is not that of all.
    assert apart(taken(x, y, 100), expected(x, y)) < 1e-3


def test_numbers_that_never_change_have_the_floor_for_a_deviation() -> None:
    x, y = drawn(seed=4)
    x[:, 2], y[:, 1] = 5.0, -3.0
    found = taken(x, y)
    assert found.inputs_scale[2] == found.targets_scale[1] == pytest.approx(FLOOR)
    assert (found.inputs_mean[2], found.targets_mean[1]) == (5.0, -3.0)
    assert not found.gram[2].any()
    assert not found.gram[:, 2].any()
    assert not found.cross[2].any()
    assert not found.cross[:, 1].any()


@pytest.mark.parametrize("columns", [0, 1])
def test_fewer_than_two_columns_fit_nothing(columns: int) -> None:
    x, y = drawn(columns)
    seen = NormalEquations(INPUTS, TARGETS)
    seen.add(x, y)
    with pytest.raises(UsageError, match=f"cannot be fitted to {columns} columns"):
        seen.standardised()


def test_no_columns_change_nothing() -> None:
    x, y = drawn(seed=5)
    seen = NormalEquations(INPUTS, TARGETS)
    for part in (slice(0, 0), slice(0, 10), slice(10, 10), slice(10, None)):
        seen.add(x[part], y[part])
    assert apart(seen.standardised(), expected(x, y)) < 1e-5
