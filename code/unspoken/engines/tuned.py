"""Relatives of a model to try things on, made without training: a copy with low-rank changes, or with noise."""

from __future__ import annotations

import torch
from torch import nn

from unspoken.engines.protocol import Engine
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError


def low_rank_copy(engine: TransformersEngine, size: float, rank: int = 8, seed: int = 0) -> TransformersEngine:
    """Return an engine on a copy of a model, every projection W of it changed to W + B A, as LoRA changes it.

    B and A are random (LoRA, arXiv 2106.09685, section 4.1, trains them), and B A is scaled to `size` times W's norm.
    It stands in for a fine-tune: its columns differ from the model's as those of one would, and it needs no data.

    Args:
        engine: The model that is copied; it takes as much memory again.
        size: Frobenius norm of the change against that of the weights it changes.
        rank: Of the change.
        seed: Of the random matrices.

    Raises:
        UsageError: If size or rank is not above 0.
    """
    if not size > 0 or rank < 1:
        raise UsageError(
            f"A change of size {size} and rank {rank} is none.", "Give a size above 0 and a rank of 1 or more."
        )
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def change(model: nn.Module) -> None:
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                rows, columns = weight.shape
                up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
                by = (up @ down).to(weight.device, weight.dtype)
                weight.add_(by * (size * weight.norm() / by.norm()))

    return engine.changed(change, f"{engine.spec.name}, changed by {size:g} in rank {rank}")


def noisy_copy(engine: Engine, share: float, seed: int = 0) -> TransformersEngine:
    """Return an engine on a copy of a model with Gaussian noise on every projection, a share of its own deviation.

    Args:
        engine: The model that is copied, on the transformers engine; it takes as much memory again.
        share: Standard deviation of the noise against that of the weight matrix it is added to.
        seed: Of the noise.

    Raises:
        UsageError: If the share is not above 0, or the engine's weights cannot be changed.
    """
    if not share > 0:
        raise UsageError(f"Noise of {share} of the weights is none.", "Give a share above 0.")
    if not isinstance(engine, TransformersEngine):
        raise UsageError(f"The weights of the engine '{engine.name}' cannot be changed.", "Use transformers.")
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def change(model: nn.Module) -> None:
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise.to(weight.device, weight.dtype) * (share * weight.std()))

    return engine.changed(change, f"{engine.spec.name}, with {share:.0%} noise")
