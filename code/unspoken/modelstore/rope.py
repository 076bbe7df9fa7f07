"""Llama 3.1's stretching of RoPE: a tensor in GGUF files, four numbers in Hugging Face's configurations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspoken.errors import UnsupportedModel

TENSOR = "rope_freqs.weight"


@dataclass(frozen=True)
class RopeFactors:
    """Llama 3.1's stretching of long wavelengths, as its config.json gives it."""

    factor: float
    low: float
    high: float
    original: int


def rope_divisors(head_dim: int, theta: float, factors: RopeFactors) -> NDArray[np.float32]:
    """Return what Llama 3.1 divides each pair's frequency by.

    Wavelengths shorter than `original / high` are left, those longer than `original / low` are stretched by
    `factor`, and between them the inverse goes over from one to the other in a straight line (Llama 3.1's
    reference code, `apply_scaling`).
    """
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = factors.original * frequencies / (2 * np.pi)
    smooth = np.clip((turns - factors.low) / (factors.high - factors.low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factors.factor + smooth)).astype("<f4")


# As published: Llama 3.1 and 3.2.
PUBLISHED = (RopeFactors(8.0, 1.0, 4.0, 8192), RopeFactors(32.0, 1.0, 4.0, 8192))


def rope_parameters(path: Path, head_dim: int, theta: float) -> dict[str, Any] | None:
    """Return what a configuration has to say for a GGUF file that holds such divisors; None if it holds none.

    transformers reads such files without them, and then turns keys by other angles than the model was trained with.

    Raises:
        UnsupportedModel: If the divisors are none of the published ones.
    """
    from unspoken.ggufheader import HeaderReader

    held = next((tensor.data for tensor in HeaderReader(path).tensors if tensor.name == TENSOR), None)
    if held is None:
        return None
    for factors in PUBLISHED:
        expected = rope_divisors(head_dim, theta, factors)
        if expected.shape == held.shape and np.allclose(held, expected, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": factors.factor,
                "low_freq_factor": factors.low,
                "high_freq_factor": factors.high,
                "original_max_position_embeddings": factors.original,
            }
    raise UnsupportedModel(
        f"{path.name} divides its RoPE's frequencies by numbers that transformers cannot be told.",
        "Use --engine llamacpp for it.",
    )
