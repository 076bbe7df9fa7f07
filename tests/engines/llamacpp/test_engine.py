"""What llama.cpp reads is what transformers reads of the same weights, and a cache is exactly what it had read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.llamacpp.engine import LlamaCppEngine
from unspoken.engines.protocol import Engine, Piece, Prompt, Stateful
from unspoken.transforms.cast import Cast
from unspoken.transforms.controls import Zero
from unspoken.transforms.rope import Move

from .tiny import WIDE

Engines = Callable[..., Any]
PromptOf = Callable[[Engine, str], Prompt]
SOURCE = "The old mill is run by Anna. It was calm."
QUESTION = " Who runs the mill?"
# llama.cpp's flash attention takes queries, keys and values as float16 whatever the cache is, and sums partly in it: of
# numbers around 3 a step is 0.002, and a few of them add up. Measured: 0.0036 to 0.0063 for the kinds here. A wrong
# position or order of a head's coordinates changes logits by 1.5 and more.
ROUNDING = 0.03
# What does not go through the attention is float32 on both sides. Measured: 1.3e-6.
FINE = 1e-5
ALL_KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")


def apart(left: Tensor, right: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((left.float() - right.float()).abs().max())


def equal(left: KVCache, right: KVCache) -> bool:
    """Whether two caches hold the same bits at the same positions."""
    return all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) and torch.equal(a.positions, b.positions)
        for a, b in zip(left.layers, right.layers, strict=True)
    )


def straight(engine: LlamaCppEngine, *prompts: Prompt) -> list[Tensor]:
    """Logits of prompts read one after the other, the columns staying where llama.cpp has them."""
    context, start, found = engine._context, 0, []
    context.clear()
    for prompt in prompts:
        ids = np.array(prompt.token_ids, np.int32)
        positions = np.arange(start, start + len(ids), dtype=np.int32)
        found.append(torch.from_numpy(context.decode(ids, positions, np.zeros_like(ids), np.ones(len(ids), bool))))
        start += len(ids)
    return found


def test_logits_are_those_of_transformers(kind: str, tiny_llama: Engines, tiny_hf: Engines, content: PromptOf) -> None:
    ours, theirs = tiny_llama(kind), tiny_hf(kind)
    prompt = content(theirs, SOURCE + QUESTION)
    expected = theirs.logits(prompt)
    assert apart(ours.logits(prompt), expected) < ROUNDING
    assert apart(tiny_llama(kind, seed=1).logits(prompt), expected) > 10 * ROUNDING


def test_nothing_but_the_attention_is_rounded(
    kind: str, tiny_llama: Engines, tiny_hf: Engines, content: PromptOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A single token attends to itself alone: what comes out of its attention is its value, which is rounded to float16.
    ours, theirs = tiny_llama(kind), tiny_hf(kind)
    one = content(theirs, "T")
    assert apart(ours.logits(one), theirs.logits(one)) > FINE
    for layer in theirs._model.model.layers:
        monkeypatch.setattr(layer.self_attn.v_proj, "forward", _halved(layer.self_attn.v_proj))
    assert apart(ours.logits(one), theirs.logits(one)) < FINE


def _halved(projection: Any) -> Callable[[Tensor], Tensor]:
    forward = projection.forward
    return lambda states: forward(states).half().float()


def test_keys_and_values_are_those_of_transformers_in_its_order(
    kind: str, tiny_llama: Engines, tiny_hf: Engines, content: PromptOf
) -> None:
    ours, theirs = tiny_llama(kind), tiny_hf(kind)
    prompt = content(theirs, SOURCE)
    for start in (None, 37):
        mine, other = ours.prefill(prompt, start=start), theirs.prefill(prompt, start=start)
        assert mine.positions.tolist() == other.positions.tolist()
        first, expected = mine.layers[0], other.layers[0]
        # The first layer's come before any attention: turned, reordered and saved, they are the very same numbers.
        assert apart(first.keys, expected.keys) < FINE
        assert apart(first.values, expected.values) < FINE
        halves = first.keys.unflatten(-1, (2, 8)).transpose(-1, -2).flatten(-2)
        assert apart(halves, expected.keys) > 1  # In the other order they are not.
        for layer, wanted in zip(mine.layers[1:], other.layers[1:], strict=True):
            assert apart(layer.keys, wanted.keys) < ROUNDING
            assert apart(layer.values, wanted.values) < ROUNDING


def test_a_prefilled_cache_says_what_its_columns_are(tiny_llama: Engines) -> None:
    engine = tiny_llama()
    prompt = Prompt((Piece("sink", (5,)), Piece("content", (6, 7))))
    cache = engine.prefill(prompt)
    assert [(span.kind, span.start, span.stop) for span in cache.manifest.spans] == [("sink", 0, 1), ("content", 1, 3)]
    longer = engine.prefill(prompt, cache.labelled(sender="lyra"))
    assert [span.start for span in longer.manifest.spans] == [0, 1, 3, 4]
    assert (longer.manifest.sender, longer.manifest.dtype, longer.manifest.rope) == ("lyra", "float32", "applied")
    assert [step.args for step in longer.manifest.lineage] == [{"tokens": 3, "engine": "llamacpp"}] * 2
    assert longer.manifest.engines() == {"llamacpp"}
    assert longer.manifest.token_ids == (5, 6, 7, 5, 6, 7)
    assert all(layer.keys.is_contiguous() and layer.keys.shape == (2, 6, 16) for layer in longer.layers)
    assert engine.prefill(prompt, cache.without_tokens()).manifest.token_ids is None


@pytest.mark.parametrize("kv_type", ALL_KINDS)
def test_going_on_from_a_cache_is_going_on_where_it_was_bit_for_bit(
    kv_type: str, tiny_llama: Engines, content: PromptOf
) -> None:
    for kind in ("llama", "qwen3"):
        engine = tiny_llama(kind, kv_type, **WIDE)
        source, question = content(engine, SOURCE), content(engine, QUESTION)
        expected = straight(engine, source, question)[1]
        cache = engine.prefill(source)
        assert torch.equal(engine.logits(question, cache), expected)
        assert not torch.equal(engine.logits(question), expected)
        grown = engine.prefill(question, cache)
        straight(engine, source, question)
        there = KVCache(tuple(engine.take()), grown.manifest)
        assert equal(grown, there)


@pytest.mark.parametrize("kv_type", ALL_KINDS)
def test_a_cache_that_is_put_back_is_the_same_cache(kv_type: str, tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama("llama", kv_type, **WIDE)
    assert isinstance(engine, Stateful)
    cache = engine.prefill(content(engine, SOURCE), start=3)
    engine.prefill(content(engine, QUESTION))
    engine.put(cache, 5)
    assert equal(KVCache(tuple(engine.take(5)), cache.manifest), cache)
    assert cache.manifest.dtype == engine.dtype


def test_a_cache_stays_as_it_is_whatever_the_engine_reads_next(tiny_llama: Engines, content: PromptOf) -> None:
    # One column, or one head, lies in memory alike as cells and as columns: a view would be mistaken for a copy.
    for changes in (WIDE, WIDE | {"num_key_value_heads": 1}):
        for kind, kv_type in (("llama", "f16"), ("qwen3", "f16"), ("qwen3", "f32"), ("qwen3", "q8_0")):
            engine = tiny_llama(kind, kv_type, **changes)
            for text in ("T", SOURCE):
                cache = engine.prefill(content(engine, text))
                before = [(layer.keys.clone(), layer.values.clone(), layer.positions.clone()) for layer in cache.layers]
                grown = engine.prefill(content(engine, QUESTION), cache)
                engine.logits(content(engine, SOURCE * 2), grown)
                kept = KVCache(
                    tuple(KVLayer(at, *parts) for at, parts in enumerate(before)), cache.manifest
                )  # fmt: skip
                assert equal(cache, kept)


def test_prefill_and_question_are_the_joint_text(kind: str, tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama(kind)
    source, question = content(engine, SOURCE), content(engine, QUESTION)
    joint = engine.logits(source + question)[len(SOURCE) :]
    cache = engine.prefill(source)
    assert apart(engine.logits(question, cache), joint) < ROUNDING
    assert apart(engine.logits(question), joint) > 10 * ROUNDING
    parts, whole = engine.prefill(question, cache), engine.prefill(source + question)
    assert parts.positions.tolist() == whole.positions.tolist() == list(range(len(SOURCE + QUESTION)))
    assert parts.manifest.token_ids == whole.manifest.token_ids
    for one, other in zip(parts.layers, whole.layers, strict=True):
        assert apart(one.keys, other.keys) < ROUNDING
        assert apart(one.values, other.values) < ROUNDING


def test_moved_cache_answers_like_one_read_there(kind: str, tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama(kind)
    source, question = content(engine, SOURCE), content(engine, QUESTION)
    cache, there = engine.prefill(source), engine.prefill(source, start=37)
    expected = engine.logits(question, there)
    assert apart(engine.logits(question, Move(37)(cache)), expected) < ROUNDING
    # Columns that only claim to be there are noticed.
    claimed = KVCache(
        tuple(KVLayer(each.index, each.keys, each.values, each.positions + 37) for each in cache.layers), cache.manifest
    )
    assert apart(engine.logits(question, claimed), expected) > 10 * ROUNDING


def test_a_cache_with_gaps_goes_on_as_in_transformers(tiny_llama: Engines, tiny_hf: Engines, content: PromptOf) -> None:
    ours, theirs = tiny_llama(), tiny_hf()
    question = content(ours, QUESTION)
    parts = theirs.prefill(content(theirs, SOURCE))
    with_gap = parts.slice(0, 5).concat(parts.slice(30, 41))
    assert with_gap.positions.tolist() == [*range(5), *range(30, 41)]
    assert apart(ours.logits(question, with_gap), theirs.logits(question, with_gap)) < ROUNDING
    grown = ours.prefill(question, with_gap)
    assert grown.positions.tolist() == [*range(5), *range(30, 41 + len(QUESTION))]


def test_a_cache_of_zeros_is_taken_and_changes_what_is_read(tiny_llama: Engines, content: PromptOf) -> None:
    for kv_type in ALL_KINDS:
        engine = tiny_llama("llama", kv_type, **WIDE)
        source, question = content(engine, SOURCE), content(engine, QUESTION)
        cache = engine.prefill(source)
        emptied = engine.logits(question, Zero()(cache))
        assert emptied.isfinite().all()
        assert apart(emptied, engine.logits(question, cache)) > 10 * ROUNDING


def test_reading_in_chunks_changes_nothing(tiny_llama: Engines, content: PromptOf) -> None:
    # A context of 200 columns computes 200 tokens at a time, one of 128 or less 128.
    wide, narrow = tiny_llama(), tiny_llama("llama", context=200)
    prompt = content(wide, (SOURCE + QUESTION) * 3)
    assert narrow._context._chunk == 200
    whole = straight(wide, prompt)[0]
    narrow._context._chunk = 128
    try:
        assert apart(narrow.logits(prompt), whole) < ROUNDING
        one, other = narrow.prefill(prompt), wide.prefill(prompt)
    finally:
        narrow._context._chunk = 200
    assert one.positions.tolist() == other.positions.tolist()
    assert all(apart(a.keys, b.keys) < ROUNDING for a, b in zip(one.layers, other.layers, strict=True))


def test_changing_the_last_token_leaves_earlier_logits(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    cache = engine.prefill(content(engine, SOURCE))
    one, other = (engine.logits(content(engine, f"{QUESTION[:-1]}{end}"), cache) for end in "?!")
    assert torch.equal(one[:-1], other[:-1])
    assert not torch.equal(one[-1:], other[-1:])


def test_one_call_leaves_nothing_for_the_next(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    prompt = content(engine, QUESTION)
    before = engine.logits(prompt)
    engine.prefill(content(engine, SOURCE * 3))
    assert torch.equal(engine.logits(prompt), before)


def test_a_cache_of_another_element_type_is_cast_when_it_is_put_in(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama("llama", "f16")
    cache, question = tiny_llama().prefill(content(engine, SOURCE)), content(engine, QUESTION)
    for dtype in ("float32", "bfloat16"):
        given = Cast(dtype)(cache)
        assert torch.equal(engine.logits(question, given), engine.logits(question, Cast("float16")(given)))
