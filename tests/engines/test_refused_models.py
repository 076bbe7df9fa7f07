"""Models whose caches cannot be moved are refused by name, and others are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unspoken.engines.protocol import Loading
from unspoken.engines.transformers import TransformersEngine, load
from unspoken.errors import ModelNotFound, UnsupportedModel
from unspoken.modelstore import Source


def _refused() -> dict[str, tuple[Any, str]]:
    """Configurations of kinds that keep no movable columns, and the words they are refused with."""
    from types import SimpleNamespace

    import transformers as hf

    def rope(**fields: Any) -> Any:
        return hf.LlamaConfig(rope_parameters={"rope_theta": 10000.0, **fields})

    return {
        "mistral with a window": (hf.MistralConfig(sliding_window=128), "sliding window of 128"),
        "qwen2 with a window": (
            hf.Qwen2Config(use_sliding_window=True, sliding_window=32, max_window_layers=1, num_hidden_layers=2),
            "sliding window of 32",
        ),
        "gemma3": (hf.Gemma3TextConfig(), "sliding window"),
        "layer types": (
            SimpleNamespace(model_type="x", layer_types=["full_attention", "sliding_attention"], sliding_window=64),
            "sliding window of 64",
        ),
        "mla": (hf.DeepseekV3Config(), "compressed latents"),
        "mla by field": (SimpleNamespace(model_type="x", kv_lora_rank=512), "MLA"),
        "m-rope": (
            SimpleNamespace(model_type="x", rope_scaling={"rope_type": "default", "mrope_section": [16, 24, 24]}),
            "M-RoPE",
        ),
        "dynamic": (rope(rope_type="dynamic", factor=2.0), "'dynamic'. changes with the length"),
        "longrope": (
            SimpleNamespace(model_type="phi3", rope_parameters={"rope_type": "longrope"}),
            "'longrope'. changes with the length",
        ),
        "partial by configuration": (hf.PhiConfig(), "only 50% of each head"),
        "partial by rope": (
            SimpleNamespace(model_type="x", rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.25}),
            "only 25% of each head",
        ),
        "hybrid": (hf.Qwen3NextConfig(), "recurrent state"),
        "state space": (SimpleNamespace(model_type="x", mamba_d_state=16), "recurrent state"),
        "two ropes": (
            SimpleNamespace(
                model_type="x",
                rope_parameters={"full_attention": {"rope_type": "default"}, "other": {"rope_type": "default"}},
            ),
            "different rotary embeddings",
        ),
        "encoder-decoder": (hf.T5Config(), "encoder-decoder"),
    }


def test_models_without_movable_columns_are_refused_by_name() -> None:
    from unspoken.engines.describe import refuse_unsupported

    for case, (config, reason) in _refused().items():
        with pytest.raises(UnsupportedModel, match=reason) as caught:
            refuse_unsupported(config)
        assert f"'{config.model_type}'" in caught.value.problem, case
        assert "Use a model with full attention" in caught.value.hint, case


def test_accepted_kinds_are_not_refused(tiny_model: Callable[..., Any]) -> None:
    from unspoken.engines.describe import refuse_unsupported

    for kind in ("llama", "llama3", "yarn", "linear", "mistral", "qwen2", "qwen3"):
        refuse_unsupported(tiny_model(kind).config)


def test_a_model_without_rotary_embedding_is_refused(tiny_tokenizer: Callable[..., Any]) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(UnsupportedModel, match="0 rotary embeddings"):
        TransformersEngine(model, tiny_tokenizer())


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match="cannot be loaded as a model"):
        load(Source(str(tmp_path)), Loading())
    tiny_model("mistral", sliding_window=16).config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="sliding window of 16"):
        load(Source(str(tmp_path)), Loading())
