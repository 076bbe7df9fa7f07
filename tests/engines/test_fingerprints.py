"""Weights have one fingerprint wherever they lie, and another as soon as they are trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unspoken.engines.protocol import Engine, Loading, Prompt
from unspoken.engines.transformers import TransformersEngine, load
from unspoken.modelstore import Source

SOURCE = "The old mill is run by Anna. It was calm."
PromptOf = Callable[[Engine, str], Prompt]


@pytest.fixture
def published(tiny_model: Callable[..., Any]) -> nn.Module:
    """A model whose weights are bfloat16 values, as nearly all are published."""
    model: nn.Module = tiny_model()
    _cast(model, torch.bfloat16)
    _cast(model, torch.float32)
    return model


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights, as loading does; `model.to` would round the frequencies of the RoPE with them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _tuned(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> str:
    """The fingerprint of a model with one tensor changed; the model itself stays as it was."""
    from unspoken.engines.describe import weights_fingerprint

    parameter = dict(model.named_parameters())[name]
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(change(before))
        found = weights_fingerprint(model)
        parameter.copy_(before)
    return found


def test_same_weights_have_one_fingerprint_in_any_folder_and_type(
    published: nn.Module, tiny_tokenizer: Callable[..., Any], tmp_path: Path, content: PromptOf
) -> None:
    engine = TransformersEngine(published, tiny_tokenizer(), "published")
    loaded = []
    for folder, dtype in (("a", "float32"), ("b", "bfloat16"), ("c", "float16")):
        _cast(published, getattr(torch, dtype))
        published.save_pretrained(tmp_path / folder)  # type: ignore[operator]
        tiny_tokenizer().save_pretrained(tmp_path / folder)
        _cast(published, torch.float32)
        loaded += [load(Source(str(tmp_path / folder)), Loading(dtype=wanted)) for wanted in ("float32", "bfloat16")]
    assert [each.dtype for each in loaded] == ["float32", "bfloat16"] * 3
    cache = engine.prefill(content(engine, SOURCE))
    for each in loaded:
        assert each.spec.weights == engine.spec.weights
        assert each.spec.architecture == engine.spec.architecture
        assert each.spec.tokenizer == engine.spec.tokenizer
        assert each.logits(content(each, " Who runs the mill?"), cache).isfinite().all()
    apart = (loaded[0].logits(content(engine, SOURCE)) - engine.logits(content(engine, SOURCE))).abs().max()
    assert apart < 1e-4


def test_noise_of_five_per_cent_changes_the_fingerprint(published: nn.Module) -> None:
    from unspoken.engines.describe import weights_fingerprint

    generator = torch.Generator().manual_seed(0)
    for name, parameter in published.named_parameters():
        noise = 1 + 0.05 * torch.randn(parameter.shape, generator=generator)
        assert _tuned(published, name, lambda old, by=noise: old * by) != weights_fingerprint(published), name  # type: ignore[misc]


def test_fine_tuning_one_matrix_changes_the_fingerprint(published: nn.Module) -> None:
    from unspoken.engines.describe import weights_fingerprint

    original, generator = weights_fingerprint(published), torch.Generator().manual_seed(0)
    for name, parameter in published.named_parameters():
        if parameter.dim() == 2:
            # A low-rank update of 2 %, as LoRA makes them.
            up, down = (torch.randn((size, 1), generator=generator) for size in parameter.shape)
            assert _tuned(published, name, lambda old, by=up @ down.T: old + 0.02 * old.std() * by) != original, name  # type: ignore[misc]
    assert weights_fingerprint(published) == original


def test_changing_one_row_of_a_projection_changes_the_fingerprint(published: nn.Module) -> None:
    from unspoken.engines.describe import weights_fingerprint

    original = weights_fingerprint(published)

    def doubled(old: Tensor, row: int) -> Tensor:
        old = old.clone()
        old[row] *= 2
        return old

    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        for row in (0, 17, 31):
            found = _tuned(published, f"model.layers.1.self_attn.{name}.weight", lambda old, at=row: doubled(old, at))  # type: ignore[misc]
            assert found != original, (name, row)
