"""What cannot be read, or not be gone on from, is refused before anything is computed, and a closed engine says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.protocol import Engine, Limits, Onset, Piece, Prompt, Turn
from unspoken.errors import ContextOverflow, IncompatibleCache, UsageError
from unspoken.transforms.rope import RemoveRope

Engines = Callable[..., Any]
PromptOf = Callable[[Engine, str], Prompt]
SOURCE = "The old mill is run by Anna. It was calm."
QUESTION = " Who runs the mill?"
# As in `test_engine.py`.
ROUNDING = 0.03


def apart(left: Tensor, right: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((left - right).abs().max())


def test_a_start_that_leaves_a_gap_after_a_past_is_refused(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    prompt, past = content(engine, QUESTION), engine.prefill(content(engine, SOURCE))
    after = len(SOURCE)
    for use in (engine.prefill, engine.logits):
        with pytest.raises(
            UsageError, match=f"goes on at position {after}, right after the past; asked for was {after + 9}"
        ):
            use(prompt, past, start=after + 9)
        with pytest.raises(
            UsageError, match=f"cannot start at position {after - 1}: the columns before it end at {after}"
        ):
            use(prompt, past, start=after - 1)
    assert torch.equal(engine.logits(prompt, past, start=after), engine.logits(prompt, past))
    assert engine.prefill(prompt, start=60).positions.tolist() == list(range(60, 60 + len(QUESTION)))


def test_nothing_to_read_is_refused(tiny_llama: Engines) -> None:
    engine = tiny_llama()
    for use in (engine.prefill, engine.logits):
        with pytest.raises(UsageError, match="The prompt is empty"):
            use(Prompt(()))


def test_tokens_of_another_model_are_refused(tiny_llama: Engines) -> None:
    engine = tiny_llama()
    for token in (258, -1):
        with pytest.raises(UsageError, match=r"llama\.cpp refused 2 tokens"):
            engine.logits(Prompt((Piece("content", (1, token)),)))


def test_more_columns_than_there_are_cells_are_refused(tiny_llama: Engines, content: PromptOf) -> None:
    narrow, wide = tiny_llama("llama", context=200), tiny_llama()
    fits, past = content(narrow, "x" * 200), wide.prefill(content(wide, "x" * 190))
    assert narrow.logits(fits).shape == (200, 258)
    for use in (narrow.prefill, narrow.logits):
        with pytest.raises(ContextOverflow, match="needs 201 columns; the context of 'tiny' has 200") as error:
            use(content(narrow, "x" * 201))
        with pytest.raises(ContextOverflow, match="needs 201 columns"):
            use(content(narrow, "x" * 11), past)
    assert "--context" in error.value.hint
    assert narrow.logits(content(narrow, "x" * 10), past).shape == (10, 258)


def test_more_positions_than_the_model_has_are_refused(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    with pytest.raises(ContextOverflow, match="513 positions; 'tiny' was made for 512"):
        engine.prefill(content(engine, "x"), start=512)
    with pytest.raises(ContextOverflow, match="513 positions"):
        engine.logits(content(engine, "x" * 513))


@pytest.mark.parametrize("context", [1, 64, 127, 129])
def test_a_context_smaller_than_its_batches_reads_all_the_same(
    context: int, tiny_llama: Engines, content: PromptOf
) -> None:
    engine, wide = tiny_llama("llama", context=context), tiny_llama()
    prompt = content(engine, (SOURCE * 4)[:context])
    assert apart(engine.logits(prompt), wide.logits(prompt)) < ROUNDING
    with pytest.raises(ContextOverflow, match=f"needs {context + 1} columns"):
        engine.logits(content(engine, "x" * (context + 1)))


def test_a_context_larger_than_the_model_was_made_for_is_that_of_the_model(tiny_llama: Engines) -> None:
    assert tiny_llama("llama", context=100_000)._context.cells == 512


def test_another_models_cache_is_refused(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    for field, maker in {
        "weights": tiny_llama("llama", seed=1), "rope": tiny_llama("llama3"), "family": tiny_llama("qwen2")
    }.items():  # fmt: skip
        cache = maker.prefill(content(maker, SOURCE))
        for use in (engine.prefill, engine.logits):
            with pytest.raises(IncompatibleCache, match=f"{field} is"):
                use(content(engine, QUESTION), cache)


def test_caches_that_are_not_whole_are_refused(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    cache = engine.prefill(content(engine, SOURCE))
    uneven = KVCache.build([cache.layers[0], cache.slice(0, 2).layers[1]], engine.spec)
    for bad in (RemoveRope()(cache), KVCache.build(cache.layers[:1], engine.spec)):
        with pytest.raises(IncompatibleCache, match="Apply RoPE and keep"):
            engine.logits(content(engine, QUESTION), bad)
    with pytest.raises(IncompatibleCache, match="all layers hold as many"):
        engine.logits(content(engine, QUESTION), uneven)


def test_a_past_whose_layers_differ_is_answered_on_but_not_read_on(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    cache = engine.prefill(content(engine, SOURCE))
    second = cache.layers[1]
    elsewhere = KVLayer(1, second.keys, second.values, second.positions + 1)
    different = KVCache.build([cache.layers[0], elsewhere], engine.spec)
    assert engine.logits(content(engine, QUESTION), different).isfinite().all()
    with pytest.raises(IncompatibleCache, match="keeps one position for all layers"):
        engine.prefill(content(engine, QUESTION), different)


def test_what_is_not_read_in_order_is_refused(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    for onset in (Onset(position=40), Onset(lookahead=2)):
        with pytest.raises(UsageError, match="cannot read a prompt at another position"):
            engine.generate([Turn(content(engine, QUESTION), onset=onset)], Limits(2))


def test_closing_is_final_and_twice_does_no_harm(
    tiny_gguf: Callable[..., Any], libllama: object, content: PromptOf
) -> None:
    from unspoken.engines.llamacpp import load
    from unspoken.engines.protocol import Loading

    from .tiny import File

    engine = load(File(tiny_gguf()), Loading(threads=1))
    cache = engine.prefill(content(engine, SOURCE))
    kept, prompt = cache.layers[0].keys.clone(), content(engine, QUESTION)
    engine.close()
    engine.close()
    assert torch.equal(cache.layers[0].keys, kept)
    assert engine.spec.name == "tiny"
    for use in (lambda: engine.logits(prompt), lambda: engine.encode("x"), lambda: engine.put(cache), engine.take):
        with pytest.raises(UsageError, match="The engine is closed"):
            use()
    again = load(File(tiny_gguf()), Loading(threads=1))
    assert again.logits(prompt, cache).isfinite().all()
    again.close()
