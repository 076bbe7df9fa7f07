"""Fingerprints of what a cache depends on, the same whatever engine computes them and however files were packed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from unspoken.spec import fingerprint

SAMPLES_PER_TENSOR = 256
# Text that tokenizers cut differently if they differ in anything but their vocabulary.
PROBE = " Vera's 3 keys: naïve résumé, 12,345.67\n\n\tif x != y:  # 東京 🙂"
# Fields of a configuration that change a cache and that neither the weights' names and shapes nor the RoPE tell.
# A list of what counts, and not of what doesn't: a library adds fields with every version, a cache outlives many.
ARCHITECTURE_FIELDS = (
    "model_type", "num_attention_heads", "hidden_act", "hidden_activation", "rms_norm_eps", "layer_norm_eps",
    "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale",
    "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "scale_emb", "scale_depth",
    "dim_model_base", "num_experts_per_tok", "norm_topk_prob", "clip_qkv", "use_qk_norm",
)  # fmt: skip


class Sampled(NamedTuple):
    """One tensor of a model: its name and shape in transformers' order, and the values at `scattered(count)`."""

    name: str
    shape: tuple[int, ...]
    values: Tensor


def hash_weights(tensors: Iterable[Sampled]) -> str:
    """Hash values sampled from every tensor of a model.

    Samples are taken as bfloat16, because nearly all models were published in it: the same weights
    loaded as float32, bfloat16 or float16 then have the same fingerprint. Values below float16's
    smallest normal number are taken as zero for the same reason. A fine-tune changes some sample of
    some tensor, noise nearly all. Weights kept in a packed quantised type are hashed as they are.
    """
    parts: list[bytes] = []
    for name, shape, values in sorted(tensors, key=lambda tensor: tensor.name):
        parts += [f"{name}{list(shape)}".encode(), _canonical(values)]
    return fingerprint(b"\0".join(parts))


def scattered(count: int) -> Int[Tensor, " sample"]:
    """Return places all over a tensor of some size, the same each time.

    An even stride would often be a multiple of a row and see a single column of a matrix; multiplying by
    Knuth's constant (The Art of Computer Programming, vol. 3, 6.4) scatters the places.
    """
    if count <= SAMPLES_PER_TENSOR:
        return torch.arange(count)
    return torch.arange(SAMPLES_PER_TENSOR) * 2654435761 % count


def hash_architecture(fields: Mapping[str, Any]) -> str:
    """Hash the fields of a configuration that change a cache; numbers to six digits, as float32 files keep them."""
    told = [f"{name}={_told(fields[name])}" for name in ARCHITECTURE_FIELDS if fields.get(name) is not None]
    return fingerprint("\n".join(told))


def hash_tokenizer(tokens: Sequence[str], largest: int, probe: Sequence[int]) -> str:
    """Hash a vocabulary and what it makes of a text.

    Args:
        tokens: The vocabulary in order of its ids: which ids there are.
        largest: The largest id.
        probe: The ids of `PROBE`: how text is cut, whatever library cuts it.
    """
    joined = "\0".join(tokens)
    return fingerprint(f"{joined}\0{largest}\0{list(probe)}")


def _canonical(sample: Tensor) -> bytes:
    if not sample.is_floating_point():
        return sample.contiguous().view(torch.uint8).numpy().tobytes()
    wide = sample.to(torch.float32)
    wide = torch.where(wide.abs() < torch.finfo(torch.float16).tiny, torch.zeros_like(wide), wide)
    return wide.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def _told(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
