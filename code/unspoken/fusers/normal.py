"""What a linear regression needs to know of columns: sums that grow with their width, never with their number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.errors import UsageError

# Numbers that hardly change are divided by this instead of their deviation.
FLOOR = 1e-4


@dataclass(frozen=True)
class Moments:
    """Means, deviations and correlations, in float32.

    Attributes:
        inputs_mean: Mean of each input.
        inputs_scale: Standard deviation of each.
        targets_mean: Mean of each target.
        targets_scale: Standard deviation of each.
        gram: Correlations of the inputs with each other.
        cross: Correlations of the inputs with the targets.
    """

    inputs_mean: Float[Tensor, " inputs"]
    inputs_scale: Float[Tensor, " inputs"]
    targets_mean: Float[Tensor, " targets"]
    targets_scale: Float[Tensor, " targets"]
    gram: Float[Tensor, "inputs inputs"]
    cross: Float[Tensor, "inputs targets"]


class NormalEquations:
    """The sums behind a regression, over all columns seen so far: X'X, X'Y and the means.

    Source: the normal equations of least squares, with the penalty of Hoerl and Kennard (Technometrics 12, 1970) added
    where they are solved. Columns are taken relative to the first ones seen: keys have coordinates whose mean is a
    hundred times their spread, and differences keep the digits that matter in float32.

    Args:
        inputs: Numbers of an input row.
        targets: Numbers of a target row.
    """

    def __init__(self, inputs: int, targets: int) -> None:
        self.count = 0
        self._sums = torch.zeros(inputs, dtype=torch.float64), torch.zeros(targets, dtype=torch.float64)
        self._squares = torch.zeros(targets, dtype=torch.float64)
        self._gram, self._cross = torch.zeros(inputs, inputs), torch.zeros(inputs, targets)
        self._origin: tuple[Tensor, Tensor] | None = None

    def add(self, inputs: Float[Tensor, "columns inputs"], targets: Float[Tensor, "columns targets"]) -> None:
        """Take in some columns, which need not be kept."""
        if not len(inputs):
            return
        if self._origin is None:
            self._origin = inputs.mean(0), targets.mean(0)
        x, y = inputs - self._origin[0], targets - self._origin[1]
        self.count += len(x)
        self._sums[0].add_(x.sum(0))
        self._sums[1].add_(y.sum(0))
        self._squares.add_(y.square().sum(0))
        self._gram.addmm_(x.T, x)
        self._cross.addmm_(x.T, y)

    def standardised(self) -> Moments:
        """Return means, deviations and correlations of what was seen.

        Raises:
            UsageError: If fewer than two columns were.
        """
        if self._origin is None or self.count < 2:
            raise UsageError(f"A map cannot be fitted to {self.count} columns.", "Give more text to calibrate on.")
        means = [(total / self.count).to(torch.float32) for total in self._sums]
        gram = self._gram / self.count - torch.outer(means[0], means[0])
        cross = self._cross / self.count - torch.outer(means[0], means[1])
        scales = gram.diagonal().clamp(min=0).sqrt().clamp(min=FLOOR), _deviation(self._squares, means[1], self.count)
        gram /= torch.outer(scales[0], scales[0])
        cross /= torch.outer(scales[0], scales[1])
        return Moments(self._origin[0] + means[0], scales[0], self._origin[1] + means[1], scales[1], gram, cross)


def _deviation(squares: Tensor, mean: Tensor, count: int) -> Float[Tensor, " targets"]:
    variance = (squares / count).to(torch.float32) - mean.square()
    return variance.clamp(min=0).sqrt().clamp(min=FLOOR)
