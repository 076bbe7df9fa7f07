"""Llama 3.1's stretching of RoPE: a tensor in GGUF files, four numbers in Hugging Face's configurations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspoken.errors import UnsupportedModel
from unspoken.ggufheader import HeaderReader

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
    """Return what a configuration has to say of a GGUF file's stretched RoPE; None if it is a plain one.

    transformers reads such files as if it were plain, and then turns keys by other angles than the model was trained
    with.

    Raises:
        UnsupportedModel: If it is stretched in a way that a configuration cannot say, or that is not known here.
    """
    reader = HeaderReader(path)
    held = next((tensor.data for tensor in reader.tensors if tensor.name == TENSOR), None)
    if held is None:
        return _scaled(reader, path.name, theta)
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


def _scaled(reader: HeaderReader, name: str, theta: float) -> dict[str, Any] | None:
    """Return the parameters of linear scaling; a factor without a type is one (llama.cpp, `load_hparams`)."""
    fields = {key.partition(".")[2]: field.contents() for key, field in reader.fields.items() if ".rope." in key}
    # Older files have another name for the factor.
    factor = float(fields.get("rope.scaling.factor") or fields.get("rope.scale_linear") or 0.0)
    kind = fields.get("rope.scaling.type")
    if kind == "none" or (kind is None and factor in (0.0, 1.0)):
        return None
    if kind not in (None, "linear"):
        raise UnsupportedModel(f"{name} scales its RoPE by '{kind}'.", "Give the model as a folder with config.json.")
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor or 1.0}
