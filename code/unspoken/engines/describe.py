"""Describe a transformers model as a `ModelSpec`, or refuse it by name.

Refusals are by what a configuration says; whether a cache of an accepted model really can be split,
moved and continued is for the gate to measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unspoken.engines.fingerprints import (
    PROBE,
    Sampled,
    hash_architecture,
    hash_tokenizer,
    hash_weights,
    scattered,
)
from unspoken.errors import UnsupportedModel
from unspoken.spec import ModelSpec, RopeSpec, fingerprint

# Rules whose frequencies do not depend on the length of the text.
STEADY_ROPE = ("default", "linear", "llama3", "yarn")


def refuse_unsupported(config: Any) -> None:
    """Raise if a cache of this kind of model cannot be moved.

    Raises:
        UnsupportedModel: Naming the feature: sliding window, state or hybrid layers, MLA, M-RoPE,
            RoPE that changes with length or covers part of a head, or no RoPE at all.
    """
    name = str(getattr(config, "model_type", "unknown"))
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    sliding_everywhere = window is not None and getattr(config, "layer_types", None) is None
    rope = _rope_parameters(config)
    kind = str(rope.get("rope_type", "default"))
    partial = float(rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None) or 1.0))
    reasons = {
        "it is an encoder-decoder model": bool(getattr(config, "is_encoder_decoder", False)),
        "it keeps compressed latents instead of keys and values (MLA)": getattr(config, "kv_lora_rank", None)
        is not None,
        "some layers keep a recurrent state instead of columns (hybrid)": bool(
            kinds - {"full_attention", "sliding_attention"}
        )
        or any(
            getattr(config, field, None) is not None for field in ("mamba_d_state", "ssm_cfg", "linear_num_key_heads")
        ),
        f"its layers forget columns outside a sliding window of {window}": "sliding_attention" in kinds
        or sliding_everywhere,
        "its positions have several dimensions (M-RoPE)": "mrope_section" in rope or kind == "mrope",
        "its layers use different rotary embeddings": any(isinstance(value, dict) for value in rope.values()),
        f"its RoPE ('{kind}') changes with the length of the text": kind not in STEADY_ROPE,
        f"its RoPE turns only {partial:.0%} of each head": partial != 1.0,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModel(
                f"Caches of '{name}' models cannot be handed over: {reason}.",
                "Use a model with full attention and one RoPE, such as Llama, Mistral (v0.2 on), Qwen2.5 or Qwen3.",
            )


def describe(model: nn.Module, tokenizer: Any, template: str, name: str) -> ModelSpec:
    """Return what a cache of this model depends on.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        template: Its chat template rendered around marks, see `unspoken.engines.chat`.
        name: For display.

    Raises:
        UnsupportedModel: If a cache of this kind of model cannot be moved.
    """
    config: Any = model.config
    refuse_unsupported(config)
    heads = config.num_attention_heads
    return ModelSpec(
        name=name,
        family=str(config.model_type),
        layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocabulary=int(config.vocab_size),
        context=int(config.max_position_embeddings),
        rope=_rope(model),
        weights=weights_fingerprint(model),
        architecture=hash_architecture(config.to_dict()),
        tokenizer=_tokenizer(tokenizer),
        chat_template=fingerprint(template),
    )


def weights_fingerprint(model: nn.Module) -> str:
    """Hash values sampled from every tensor of a model, see `unspoken.engines.fingerprints`."""
    return hash_weights(_sampled(model))


def _sampled(model: nn.Module) -> Iterator[Sampled]:
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        yield Sampled(name, tuple(parameter.shape), flat[scattered(flat.numel()).to(flat.device)].cpu())


def _tokenizer(tokenizer: Any) -> str:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    probe = tokenizer.encode(PROBE, add_special_tokens=False)
    return hash_tokenizer(sorted(vocabulary, key=vocabulary.__getitem__), max(vocabulary.values()), probe)


def _rope_parameters(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})


def _rope(model: nn.Module) -> RopeSpec:
    modules = [each for each in model.modules() if hasattr(each, "inv_freq")]
    if len(modules) != 1:
        raise UnsupportedModel(
            f"The model has {len(modules)} rotary embeddings, expected one for all layers.",
            "Use a model with full attention and one RoPE, such as Llama, Mistral (v0.2 on), Qwen2.5 or Qwen3.",
        )
    rotary: Any = modules[0]
    frequencies: Float[Tensor, " pairs"] = rotary.inv_freq.detach().to("cpu", torch.float32)
    return RopeSpec(
        kind=str(_rope_parameters(model.config).get("rope_type", "default")),
        pairing="half",  # The few that pair 2i with 2i + 1 (Cohere, Helium) fail the gate, and are refused by it.
        inverse_frequencies=tuple(frequencies.tolist()),
        attention_scaling=float(getattr(rotary, "attention_scaling", 1.0)),
    )
