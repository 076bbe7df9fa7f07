"""A ridge regression from all of a sender's column to all of a receiver's, in two factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.fusers.normal import NormalEquations


@dataclass(frozen=True)
class LowRank:
    """A linear map on standardised columns, and what they are standardised by.

    Attributes:
        sender_mean: Of each number of the sender's columns.
        sender_scale: Standard deviation of each.
        receiver_mean: Of each number of the receiver's columns.
        receiver_scale: Standard deviation of each.
        down: The first factor.
        up: The second.
    """

    sender_mean: Float[Tensor, " sender"]
    sender_scale: Float[Tensor, " sender"]
    receiver_mean: Float[Tensor, " receiver"]
    receiver_scale: Float[Tensor, " receiver"]
    down: Float[Tensor, "rank sender"]
    up: Float[Tensor, "receiver rank"]


def fit_low_rank(seen: NormalEquations, rank: int, ridge: float = 0.03, seed: int = 0) -> LowRank:
    """Return the reduced-rank ridge regression of the columns seen.

    The ridge solution B is projected onto the leading directions of what it predicts, which is the best map of that
    rank for these columns (Izenman, Journal of Multivariate Analysis 5, 1975; with a ridge: Mukherjee and Zhu,
    Statistical Analysis and Data Mining 4, 2011). With G = L L', these are the right singular vectors of L' B.

    Args:
        seen: Sums over the columns.
        rank: Of the map.
        ridge: Penalty, for inputs of variance one.
        seed: Of the randomised singular value decomposition (Halko, Martinsson and Tropp, SIAM Review 53, 2011).

    Raises:
        UsageError: If there are fewer columns or numbers than the rank, or the penalty is too small for these columns.
    """
    moments = seen.standardised()
    widest = min(*moments.cross.shape, seen.count)
    if not 1 <= rank <= widest:
        raise UsageError(f"A map of rank {rank} cannot be had from {seen.count} columns.", f"Give 1 to {widest}.")
    gram = moments.gram + ridge * torch.eye(len(moments.gram))
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not ridge > 0 or bool(failed):
        raise UsageError(f"With a penalty of {ridge} the regression has no solution.", "Give a larger one, say 0.03.")
    solution = torch.cholesky_solve(moments.cross, factor)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, _, directions = torch.svd_lowrank(factor.T @ solution, rank, niter=2)
    down, up = (solution @ directions).T, directions
    # The narrow numbers are given variance one, so that rounding them costs each alike.
    spread = torch.einsum("ri,ij,rj->r", down, moments.gram, down).clamp(min=1e-12).sqrt()
    return LowRank(
        moments.inputs_mean, moments.inputs_scale, moments.targets_mean, moments.targets_scale,
        (down / spread[:, None]).contiguous(), (up * spread).contiguous(),
    )  # fmt: skip
