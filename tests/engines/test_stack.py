"""Layers run by themselves give what the whole model gives, and layers may hold different columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.capabilities import attentive, layered
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Engine, Graft, Limits, Onset, Prompt, Turn
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache, UsageError

Engines = Callable[..., TransformersEngine]
PromptOf = Callable[[Engine, str], Prompt]
SOURCE = "The old mill is run by Anna. It was calm."
QUESTION = " Who runs the mill?"
KINDS = ("llama", "llama3", "yarn", "mistral", "qwen2", "qwen3")


def apart(left: Tensor, right: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((left - right).abs().max())


def one_by_one(engine: TransformersEngine, ids: Sequence[int], past: KVCache) -> Tensor:
    """The logits of tokens on a cache, layer by layer and token by token: each layer has its own columns and mask."""
    layers, lines = list(past.layers), []
    for at, token in enumerate(ids):
        residual, position = engine.embed([token]), torch.tensor([past.next_position + at])
        for index, layer in enumerate(layers):
            residual, (layers[index],) = engine.through(residual, [layer], torch.tensor([layer.columns]), position)
        lines.append(engine.finish(residual) @ engine.unembeddings().T.detach())
    return torch.cat(lines)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_run_by_themselves_read_as_the_model_does(tiny_engine: Engines, content: PromptOf, kind: str) -> None:
    engine = tiny_engine(kind)
    past, question = engine.prefill(content(engine, SOURCE)), content(engine, QUESTION)
    ids = question.token_ids
    at = torch.arange(past.columns, past.columns + len(ids))
    residuals, layers = engine.through(engine.embed(ids), past.layers, at, at)
    whole = engine.prefill(question, past)
    assert apart(engine.finish(residuals) @ engine.unembeddings().T.detach(), engine.logits(question, past)) < 1e-4
    for mine, theirs in zip(layers, whole.layers, strict=True):
        assert apart(mine.keys, theirs.keys) < 1e-5
        assert apart(mine.values, theirs.values) < 1e-5
        assert torch.equal(mine.positions, theirs.positions)
    assert past.columns == len(content(engine, SOURCE).token_ids)


def test_columns_are_replaced_where_they_stand(tiny_engine: Engines, content: PromptOf) -> None:
    engine = tiny_engine()
    cache = engine.prefill(content(engine, SOURCE))
    spoilt = [KVLayer(e.index, e.keys.clone(), e.values.clone(), e.positions) for e in cache.layers]
    at = torch.tensor([3, 7, 8])
    for layer in spoilt:
        layer.keys[:, at], layer.values[:, at] = 0, 0
    ids = [cache.manifest.token_ids[i] for i in at.tolist()]  # type: ignore[index]
    _, mended = engine.through(engine.embed(ids), spoilt, at, at)
    # The first spoilt column is mended exactly: nothing before it was spoilt. The next sees it mended.
    for mine, right in zip(mended, cache.layers, strict=True):
        assert apart(mine.keys, right.keys) < 1e-5
        assert apart(mine.values, right.values) < 1e-5
    assert float(spoilt[0].keys[:, at].abs().max()) == 0


def uneven(cache: KVCache, kept: Sequence[Sequence[int]]) -> KVCache:
    """The cache with only some columns in each layer."""
    layers = []
    for layer, columns in zip(cache.layers, kept, strict=True):
        at = torch.tensor(columns, dtype=torch.int64)
        layers.append(KVLayer(layer.index, layer.keys[:, at], layer.values[:, at], layer.positions[at]))
    return KVCache.build(layers, cache.spec)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [([0, 1, 2, 3, 5, 8, 13, 40], [0, 4]), ([0, 2, 4], [1, 3, 40]), ([], [7, 40])])
def test_layers_with_different_columns_each_have_their_own_mask(
    tiny_engine: Engines, content: PromptOf, kind: str, kept: tuple[list[int], list[int]]
) -> None:
    engine = tiny_engine(kind)
    cache, question = engine.prefill(content(engine, SOURCE)), content(engine, QUESTION)
    short = uneven(cache, kept)
    expected = one_by_one(engine, question.token_ids, short)
    assert apart(engine.logits(question, short), expected) < 1e-4
    read = engine.prefill(question, short)
    assert [layer.columns - len(question.token_ids) for layer in read.layers] == [len(each) for each in kept]
    # In one pack with a whole cache, before it and after it, each turn sees its own columns.
    turns = [Turn(question, cache), Turn(question, short), Turn(question, cache)]
    made = engine.generate(turns, Limits(4))
    (alone,) = engine.generate([turns[1]], Limits(4))
    assert made[1].token_ids == alone.token_ids
    assert apart(made[1].first_logprobs, expected[-1].log_softmax(dim=-1)) < 1e-4
    assert made[0].token_ids == made[2].token_ids


def test_a_lookahead_lets_the_future_leak_and_only_where_columns_are_missing(
    tiny_engine: Engines, content: PromptOf
) -> None:
    engine = tiny_engine()
    cache = engine.prefill(content(engine, SOURCE))
    question, other = content(engine, QUESTION), content(engine, QUESTION[:-1] + "!")
    short = uneven(cache, (list(range(40)), [0]))

    def leaked(past: KVCache, lookahead: int) -> float:
        first, second = (engine.logits(each, past, lookahead=lookahead)[:-1] for each in (question, other))
        return apart(first, second)

    assert leaked(short, 0) < 1e-5
    assert leaked(short, 40) > 1e-3
    assert leaked(cache, 40) < 1e-5
    answered = engine.generate([Turn(question, short, onset=Onset(lookahead=40))], Limits(2))[0]
    expected = engine.logits(question, short, lookahead=40)[-1].log_softmax(dim=-1)
    assert apart(answered.first_logprobs, expected) < 1e-4


def test_a_graft_replaces_the_last_residual_of_its_own_turn(tiny_engine: Engines, content: PromptOf) -> None:
    engine = tiny_engine()
    cache, question = engine.prefill(content(engine, SOURCE)), content(engine, QUESTION)
    residual = torch.linspace(-1, 1, engine.embeddings().shape[1])
    turns = [Turn(question, cache), Turn(question, cache, onset=Onset(graft=Graft(1, residual)))]
    plain, grafted = engine.generate(turns, Limits(2))
    assert apart(plain.first_logprobs, engine.logits(question, cache)[-1].log_softmax(dim=-1)) < 1e-4
    # The slow way: everything but the last residual as it was, then the last layer alone.
    ids = question.token_ids
    at = torch.arange(cache.columns, cache.columns + len(ids))
    residuals, _ = engine.through(engine.embed(ids), cache.layers[:1], at, at)
    residuals = torch.cat((residuals[:-1], residual[None]))
    last, _ = engine.through(residuals, cache.layers[1:], at, at)
    expected = (engine.finish(last[-1:]) @ engine.unembeddings().T.detach())[0].log_softmax(dim=-1)
    assert apart(grafted.first_logprobs, expected) < 1e-4
    (again,) = engine.generate([turns[0]], Limits(2))
    assert apart(again.first_logprobs, plain.first_logprobs) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_what_transformers_own_slow_function_shows(
    tiny_engine: Engines, tiny_model: Callable[..., Any], content: PromptOf, kind: str
) -> None:
    engine = tiny_engine(kind)
    past, question = engine.prefill(content(engine, SOURCE)), content(engine, QUESTION)
    shown = engine.attention(question, past, probes=4)
    ids = torch.tensor([[*(past.manifest.token_ids or ()), *question.token_ids]])
    model = tiny_model(kind)  # One of its own: the engine's is used by other tests.
    model.set_attn_implementation("eager")
    expected = model(ids, output_attentions=True).attentions
    assert len(shown) == len(expected)
    for mine, theirs in zip(shown, expected, strict=True):
        assert mine.shape == (4, 4, past.columns)
        assert apart(mine, theirs[0, :, -4:, : past.columns]) < 1e-5


def test_a_model_of_ours_can_still_be_used_as_transformers_does(tiny_engine: Engines, content: PromptOf) -> None:
    engine = tiny_engine()
    ids = torch.tensor([content(engine, SOURCE).token_ids])
    assert apart(engine._model(ids).logits[0], engine.logits(content(engine, SOURCE))) < 1e-4


def test_what_an_engine_cannot_show_is_refused(tiny_engine: Engines, fake: FakeEngine, content: PromptOf) -> None:
    with pytest.raises(UsageError, match="'latent' needs single layers, and the engine 'fake' does not show them"):
        layered(fake, "latent")
    with pytest.raises(UsageError, match="'need' needs attention weights"):
        attentive(fake, "need")
    engine = tiny_engine()
    assert layered(engine, "latent") is engine
    assert attentive(engine, "need") is engine
    cache = engine.prefill(content(engine, SOURCE))
    with pytest.raises(IncompatibleCache, match="all layers hold as many"):
        engine.attention(content(engine, QUESTION), uneven(cache, ([0, 1], [0])), 2)
    with pytest.raises(UsageError, match="cannot be run one after the other"):
        engine.through(engine.embed([1]), cache.layers[::-1], torch.tensor([0]), torch.tensor([0]))
