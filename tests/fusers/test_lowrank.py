"""The reduced-rank regression against its definition: ridge at full rank, the best map of its rank below."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.fusers.lowrank import LowRank, fit_low_rank
from unspoken.fusers.normal import NormalEquations

COLUMNS, INPUTS, TARGETS = 600, 12, 9


def drawn(rank: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Columns far from zero, and targets that are a map of some rank of them, with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(COLUMNS, INPUTS, generator=generator) @ torch.randn(INPUTS, INPUTS, generator=generator)
    planted = torch.randn(INPUTS, rank, generator=generator) @ torch.randn(rank, TARGETS, generator=generator)
    y = x @ planted + noise * torch.randn(COLUMNS, TARGETS, generator=generator)
    return x + 30, y * torch.logspace(-1, 1, TARGETS) - 50


def seen(x: Tensor, y: Tensor) -> NormalEquations:
    """The sums over columns."""
    sums = NormalEquations(x.shape[1], y.shape[1])
    sums.add(x, y)
    return sums


def through(made: LowRank, x: Tensor) -> Tensor:
    """What the map makes of columns."""
    inner = ((x - made.sender_mean) / made.sender_scale) @ made.down.T
    return inner @ made.up.T * made.receiver_scale + made.receiver_mean


def standardised(values: Tensor) -> NDArray[np.float64]:
    """Columns with mean zero and deviation one."""
    wide = values.double().numpy()
    standard: NDArray[np.float64] = (wide - wide.mean(0)) / wide.std(0)
    return standard


def ridge_of(x: Tensor, y: Tensor, penalty: float) -> NDArray[np.float64]:
    """Ridge by its definition, in float64: (X'X / n + penalty)^-1 X'Y / n on standardised columns."""
    a, b = standardised(x), standardised(y)
    made: NDArray[np.float64] = np.linalg.solve(a.T @ a / len(a) + penalty * np.eye(INPUTS), a.T @ b / len(a))
    return made


@pytest.mark.parametrize("penalty", [0.003, 0.3])
def test_at_full_rank_it_is_ridge_regression(penalty: float) -> None:
    x, y = drawn(TARGETS, 1.0)
    made = fit_low_rank(seen(x, y), TARGETS, penalty)
    found = (made.up @ made.down).T.double().numpy()
    assert np.abs(found - ridge_of(x, y, penalty)).max() < 1e-4
    # A penalty ten times as large is another map: the bound tells them apart.
    assert np.abs(found - ridge_of(x, y, 10 * penalty)).max() > 1e-3


def best_of(a: NDArray[np.float64], full: NDArray[np.float64], penalty: float, rank: int) -> NDArray[np.float64]:
    """The best map of a rank: the ridge solution on the leading right singular vectors of what it predicts.

    Source of the oracle: Mukherjee and Zhu 2011, section 2, who count the penalty in as further rows of data.
    """
    augmented = np.vstack((a / np.sqrt(len(a)), np.sqrt(penalty) * np.eye(INPUTS)))
    leading = np.linalg.svd(augmented @ full)[2][:rank].T
    best: NDArray[np.float64] = full @ leading @ leading.T
    return best


def test_below_it_is_the_best_map_of_its_rank() -> None:
    x, y = drawn(3, 0.02, seed=1)  # Three directions stand out, as they do not in noise.
    penalty = 0.01
    made = fit_low_rank(seen(x, y), 3, penalty)
    found = (made.up @ made.down).T.double().numpy()
    best = best_of(standardised(x), ridge_of(x, y, penalty), penalty, 3)
    assert np.linalg.matrix_rank(found, tol=1e-4) == 3
    assert np.abs(found - best).max() < 1e-3
    assert np.abs(found - best_of(standardised(x), ridge_of(x, y, penalty), penalty, 2)).max() > 0.05


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_where_no_direction_stands_out_its_loss_is_nearly_the_least(rank: int) -> None:
    x, y = drawn(TARGETS, 0.5, seed=1)
    penalty = 0.1
    a, b, full = standardised(x), standardised(y), ridge_of(x, y, penalty)

    def loss(of: NDArray[np.float64]) -> float:
        return float(((a @ of - b) ** 2).sum() / len(a) + penalty * (of**2).sum())

    made = fit_low_rank(seen(x, y), rank, penalty)
    found, least = loss((made.up @ made.down).T.double().numpy()), loss(best_of(a, full, penalty, rank))
    # The singular vectors are those of a randomised algorithm, near the best but not the best.
    assert least - 1e-5 < found < least + 0.05 * (least - loss(full))


def test_a_planted_map_of_low_rank_is_recovered() -> None:
    x, y = drawn(2, 0.0, seed=2)
    made = fit_low_rank(seen(x, y), 2, 1e-5)
    assert made.down.shape == (2, INPUTS)
    assert made.up.shape == (TARGETS, 2)
    error = (through(made, x) - y).square().mean(0) / y.var(0)
    assert float(error.max()) < 1e-4
    # One direction fewer does not do.
    fewer = (through(fit_low_rank(seen(x, y), 1, 1e-5), x) - y).square().mean(0) / y.var(0)
    assert float(fewer.max()) > 0.05


def test_the_narrow_numbers_have_variance_one() -> None:
    x, y = drawn(TARGETS, 1.0, seed=3)
    made = fit_low_rank(seen(x, y), 4)
    inner = ((x - made.sender_mean) / made.sender_scale) @ made.down.T
    assert torch.allclose(inner.std(0, correction=0), torch.ones(4), atol=1e-3)
    assert torch.allclose(inner.mean(0), torch.zeros(4), atol=1e-3)


def test_the_same_seed_gives_the_same_map_and_leaves_torchs_own_draws_alone() -> None:
    sums = seen(*drawn(TARGETS, 1.0, seed=4))
    torch.manual_seed(7)
    first = fit_low_rank(sums, 4, seed=1)
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), after)
    second = fit_low_rank(sums, 4, seed=1)
    assert torch.equal(first.down, second.down)
    assert torch.equal(first.up, second.up)


@pytest.mark.parametrize(("columns", "rank", "most"), [(COLUMNS, 0, 9), (COLUMNS, 10, 9), (5, 6, 5)])
def test_ranks_that_cannot_be_had_are_refused(columns: int, rank: int, most: int) -> None:
    x, y = drawn(3, 1.0)
    with pytest.raises(UsageError, match=f"rank {rank} cannot be had from {columns} columns") as told:
        fit_low_rank(seen(x[:columns], y[:columns]), rank)
    assert told.value.hint == f"Give 1 to {most}."


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_without_a_penalty_there_is_no_map(penalty: float) -> None:
    x, y = drawn(3, 1.0)
    x[:, 1] = x[:, 0]  # Two inputs that say the same have no solution without one.
    with pytest.raises(UsageError, match="the regression has no solution"):
        fit_low_rank(seen(x, y), 2, penalty)
