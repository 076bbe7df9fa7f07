"""What is added to kept values: nothing they can express themselves, and what they cannot along few directions."""

from __future__ import annotations

import torch

from unspoken.transforms.backfill import backfilled


def test_a_direction_the_kept_values_lack_is_added_by_attention() -> None:
    # Kept values lie along the first axis, discarded ones along the second and third.
    values = torch.zeros(1, 4, 8)
    values[0, 0, 0], values[0, 1, 0], values[0, 2, 1], values[0, 3, 2] = 1.0, 2.0, 3.0, 1.0
    kept, scores = torch.tensor([True, True, False, False]), torch.tensor([0.3, 0.3, 0.1, 0.3])
    # r = (0.1 * 3 e1 + 0.3 * 1 e2) / 0.4; the strongest direction is e1; A_discarded / A_kept = 0.4 / 0.6.
    made = backfilled(values, kept, scores, directions=1)
    expected = values[:, :2].clone()
    expected[..., 1] += 0.75 * 0.4 / 0.6
    assert torch.allclose(made, expected, atol=1e-6)
    both = backfilled(values, kept, scores, directions=2)
    expected[..., 2] += 0.75 * 0.4 / 0.6
    assert torch.allclose(both, expected, atol=1e-6)


def test_nothing_is_added_where_the_kept_values_span_everything_or_nothing_is_left() -> None:
    values = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([True] * 8 + [False] * 4)
    assert torch.allclose(backfilled(values, kept, torch.rand(12), 2), values[:, :8], atol=1e-5)
    everything = torch.ones(12, dtype=torch.bool)
    assert torch.equal(backfilled(values, everything, torch.rand(12), 2), values)
    unattended = torch.tensor([1.0] * 8 + [0.0] * 4)
    assert torch.equal(backfilled(values, kept, unattended, 2), values[:, :8])
