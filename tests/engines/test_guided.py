"""Reading on top of columns with a graph behind it: the same answers, and gradients that say how they would change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unspoken.cache import KVCache
from unspoken.engines.batch import Layout, Row, lay_out
from unspoken.engines.fake import FakeEngine
from unspoken.engines.guided import Guiding, guiding
from unspoken.engines.protocol import Engine, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError

SOURCE = "The old mill is run by Anna."
QUESTIONS = (" Who runs the mill?", " What?", " Where is it, and who says so?")
PromptOf = Callable[[Engine, str], Prompt]
Columns = list[tuple[Tensor, Tensor]]


def columns(cache: KVCache, grad: bool = False) -> Columns:
    """A cache's columns as leaves of a graph."""
    return [
        (layer.keys.clone().requires_grad_(grad), layer.values.clone().requires_grad_(grad)) for layer in cache.layers
    ]


def asked(prompts: list[Prompt], past: int) -> Layout:
    """Prompts side by side, each on top of all columns."""
    return lay_out([Row(range(past), each.token_ids, (), past) for each in prompts], past)


def test_answers_are_the_engines_own(engine: TransformersEngine, content: PromptOf) -> None:
    cache = engine.prefill(content(engine, SOURCE))
    prompts = [content(engine, each) for each in QUESTIONS]
    layout = asked(prompts, cache.columns)
    found = engine.guided(columns(cache), layout, torch.arange(len(layout.token_ids)))
    at = 0
    for prompt in prompts:  # None has seen another.
        own = engine.logits(prompt, cache)
        assert torch.allclose(found[at : at + len(own)], own, atol=1e-4)
        assert float((own - engine.logits(prompt)).abs().max()) > 0.1
        at += len(own)
    assert (at, found.dtype) == (len(found), torch.float32)
    kept = torch.tensor([7, 2, 20])
    assert torch.allclose(engine.guided(columns(cache), layout, kept), found[kept], atol=1e-5)


def test_gradients_are_how_answers_change(tiny_model: Callable[..., nn.Module], tiny_tokenizer: Any) -> None:
    engine = TransformersEngine(tiny_model("qwen3").double(), tiny_tokenizer(), "double")
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    past, layout = 6, lay_out([Row(range(6), tuple(range(40, 49)), (), 6), Row(range(3), (7, 8), (), 3)], 6)
    start = [(drawn(2, past, 16), drawn(2, past, 16)) for _ in range(2)]
    toward = [(drawn(2, past, 16), drawn(2, past, 16)) for _ in range(2)]
    keep, weights = torch.tensor([2, 8, 10]), drawn(3, 300)

    def judged(by: float) -> Tensor:
        at = [
            (keys + by * to_keys, values + by * to_values)
            for (keys, values), (to_keys, to_values) in zip(start, toward, strict=True)
        ]
        return (engine.guided(at, layout, keep).double() * weights).sum()

    leaves = [each.requires_grad_() for pair in start for each in pair]
    judged(0.0).backward()
    slope = sum(float((leaf.grad * to).sum()) for leaf, to in zip(leaves, [t for p in toward for t in p], strict=True))
    with torch.no_grad():
        measured = float(judged(1e-3) - judged(-1e-3)) / 2e-3
    assert slope == pytest.approx(measured, rel=1e-3)
    assert abs(slope) > 1


def test_gradients_reach_every_column_that_is_seen_and_no_weight(engine: TransformersEngine, content: PromptOf) -> None:
    cache = engine.prefill(content(engine, SOURCE))
    past, ids = columns(cache, grad=True), content(engine, QUESTIONS[0]).token_ids
    layout = lay_out([Row(range(5, cache.columns), ids, (), cache.columns)], cache.columns)
    heard: list[Tensor] = []
    made = engine.guided(past, layout, torch.tensor([len(ids) - 1]), heard)
    (made.square().mean() + sum(each.square().mean() for each in heard)).backward()
    for keys, values in past:
        for leaf in (keys, values):
            assert leaf.grad is not None
            moved = leaf.grad.abs().sum(dim=(0, 2))
            assert not moved[:5].any()  # What the mask hides has no part in the answer.
            assert bool((moved[5:] > 0).all())
    assert all(each.grad is None and not each.requires_grad for each in engine._model.parameters())
    # Columns that were given are not written to.
    assert torch.equal(past[0][0], cache.layers[0].keys)


def test_what_is_heard_is_each_layers_attention(engine: TransformersEngine, content: PromptOf) -> None:
    cache = engine.prefill(content(engine, SOURCE))
    layout = asked([content(engine, QUESTIONS[1])], cache.columns)
    heard: list[Tensor] = []
    engine.guided(columns(cache), layout, torch.tensor([0]), heard)
    assert len(heard) == engine.spec.layers
    assert all(each.shape == (len(layout.token_ids), 64) for each in heard)
    # The first layer's, worked out from its own weights.
    layer = engine._model.model.layers[0]
    with torch.no_grad():
        residual = engine._model.model.embed_tokens(layout.token_ids)[None]
        turn = engine._model.model.rotary_emb(residual, layout.positions[None])
        hidden = layer.input_layernorm(residual)[0]
        new = len(hidden)
        project = layer.self_attn
        norms = (getattr(project, "q_norm", nn.Identity()), getattr(project, "k_norm", nn.Identity()))
        query = norms[0](project.q_proj(hidden).view(new, 4, 16)).transpose(0, 1)
        keys = norms[1](project.k_proj(hidden).view(new, 2, 16)).transpose(0, 1)
        values = project.v_proj(hidden).view(new, 2, 16).transpose(0, 1)
        query, keys = (_turned(each, turn[0][0], turn[1][0]) for each in (query, keys))
        keys = torch.cat((cache.layers[0].keys, keys), dim=1).repeat_interleave(2, dim=0)
        values = torch.cat((cache.layers[0].values, values), dim=1).repeat_interleave(2, dim=0)
        scores = (query @ keys.transpose(1, 2) * project.scaling).masked_fill(~layout.allowed, -torch.inf)
        mixed = (scores.softmax(-1) @ values).transpose(0, 1).reshape(new, 64)
        assert torch.allclose(heard[0], project.o_proj(mixed), atol=1e-5)
    # Nothing listens any more.
    engine.logits(content(engine, SOURCE))
    assert len(heard) == engine.spec.layers


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def test_what_is_heard_is_let_go_of_after_an_error(tiny_engine: Callable[..., TransformersEngine]) -> None:
    engine = tiny_engine()
    heard: list[Tensor] = []
    with pytest.raises((RuntimeError, IndexError, TypeError)):
        engine.guided([(torch.zeros(2, 3, 16),) * 2] * 2, lay_out([Row(range(9), (1,), (), 9)], 9), torch.tensor([0]),
                      heard)  # fmt: skip
    assert not any(layer.self_attn._forward_hooks for layer in engine._model.model.layers)


def test_engines_without_gradients_are_refused(fake: FakeEngine, tiny_engine: Callable[..., Any]) -> None:
    assert isinstance(guiding(tiny_engine()), Guiding)
    with pytest.raises(UsageError, match="cannot be trained with the engine 'fake'"):
        guiding(fake)
