"""Fusers of two models that do not exist, small enough to work out by hand and large enough to be packed.

Nothing of the package is imported before a fixture runs, so that `--jaxtyping-packages` can hook in first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from unspoken.fusers.bottleneck import Bottleneck


@pytest.fixture(scope="session")
def drawn_bottleneck() -> Callable[..., Bottleneck]:
    """Make a bottleneck with random numbers in every place, the same for the same seed."""
    import msgspec
    import torch

    from unspoken.fusers.bottleneck import Bottleneck
    from unspoken.fusers.pair import Pair, Side

    pair = Pair(Side("reader", "w1", "a1", "t1", 4, 2, 16), Side("answerer", "w2", "a2", "t2", 3, 1, 32))

    def make(rank: int = 80, width: int = 96, blocks: int = 2, seed: int = 0) -> Bottleneck:
        fuser = Bottleneck(msgspec.to_builtins(pair), rank, width, blocks)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in fuser.state_dict().items():
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.1 + drawn.abs() if name.endswith("_scale") else drawn / max(1, tensor.shape[-1]) ** 0.5)
        return fuser.eval()

    return make


@pytest.fixture
def kept(drawn_bottleneck: Callable[..., Bottleneck], tmp_path: Path) -> Path:
    """A sound folder."""
    path = tmp_path / "fuser"
    drawn_bottleneck().save_pretrained(path)
    return path
