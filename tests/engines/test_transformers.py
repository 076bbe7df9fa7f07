"""Reading from a cache is exactly reading the text: measured against the model called plainly, without any cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.engines import transformers as module
from unspoken.engines.protocol import Engine, Limits, Loading, Piece, Prompt, Turn
from unspoken.engines.transformers import TransformersEngine, load
from unspoken.errors import ContextOverflow, IncompatibleCache, UsageError
from unspoken.manifest import compare
from unspoken.modelstore import Source
from unspoken.transforms.cast import Cast
from unspoken.transforms.controls import Zero
from unspoken.transforms.rope import Move, RemoveRope

SOURCE = "The old mill is run by Anna. It was calm."
OTHER = "Bob left the harbour on Monday."
QUESTION = " Who runs the mill?"
OPTIONS = (" Anna", " Bob", "X")
BOUND = 1e-4
PromptOf = Callable[[Engine, str], Prompt]


@torch.inference_mode()
def _plain(engine: TransformersEngine, ids: Sequence[int], start: int = 0) -> Tensor:
    """Logits of the bare model, which reads everything at once and keeps no cache."""
    positions = torch.arange(start, start + len(ids))[None]
    output = engine._model(input_ids=torch.tensor([list(ids)]), position_ids=positions, use_cache=False)
    logits: Tensor = output.logits[0]
    return logits


def _plain_greedy(engine: TransformersEngine, ids: Sequence[int], count: int) -> tuple[int, ...]:
    made = list(ids)
    for _ in range(count):
        made.append(int(_plain(engine, made)[-1].argmax()))
    return tuple(made[len(ids) :])


def _apart(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


def _caches_apart(left: KVCache, right: KVCache) -> float:
    pairs = zip(left.layers, right.layers, strict=True)
    return max(_apart(a, b) for mine, other in pairs for a, b in ((mine.keys, other.keys), (mine.values, other.values)))


def test_question_on_a_cache_equals_reading_both_together(engine: TransformersEngine, content: PromptOf) -> None:
    source, question = content(engine, SOURCE), content(engine, QUESTION)
    joint = _plain(engine, (source + question).token_ids)
    cache = engine.prefill(source)
    assert _apart(engine.logits(question, cache), joint[len(SOURCE) :]) < BOUND
    # The bound means something: without the cache the answer is another.
    assert _apart(engine.logits(question), joint[len(SOURCE) :]) > 100 * BOUND
    assert _apart(engine.logits(source + question), joint) < BOUND


def test_greedy_tokens_on_a_cache_are_those_of_the_joint_text(engine: TransformersEngine, content: PromptOf) -> None:
    source, question = content(engine, SOURCE), content(engine, QUESTION)
    expected = _plain_greedy(engine, (source + question).token_ids, 8)
    made = engine.generate([Turn(question, engine.prefill(source))], Limits(8))[0]
    assert made.token_ids == expected
    assert engine.generate([Turn(source + question)], Limits(8))[0].token_ids == expected
    assert made.tokens_prefilled == len(QUESTION)


def test_cache_of_two_readings_equals_the_cache_of_one(engine: TransformersEngine, content: PromptOf) -> None:
    source, question = content(engine, SOURCE), content(engine, QUESTION)
    parts, whole = engine.prefill(question, engine.prefill(source)), engine.prefill(source + question)
    assert _caches_apart(parts, whole) < BOUND
    assert parts.positions.tolist() == whole.positions.tolist() == list(range(len(SOURCE + QUESTION)))
    assert parts.manifest.token_ids == whole.manifest.token_ids
    assert [step.args["tokens"] for step in parts.manifest.lineage] == [len(SOURCE), len(QUESTION)]
    assert parts.manifest.engines() == {"transformers"}


def test_moved_cache_answers_like_one_read_there(engine: TransformersEngine, content: PromptOf) -> None:
    source, question = content(engine, SOURCE), content(engine, QUESTION)
    moved, there = Move(37)(engine.prefill(source)), engine.prefill(source, start=37)
    assert _apart(engine.logits(question, moved), engine.logits(question, there)) < BOUND


def test_a_prompt_is_read_at_the_position_it_is_given(engine: TransformersEngine, content: PromptOf) -> None:
    prompt = content(engine, SOURCE)
    # RoPE is relative: a lone prompt has the same logits anywhere, so a gap after a past shows the position.
    past, gap = content(engine, OTHER), 60
    ids = (*past.token_ids, *prompt.token_ids)
    positions = torch.tensor([[*range(len(OTHER)), *range(gap, gap + len(SOURCE))]])
    # Without a mask, transformers takes a gap in the positions for the border of two packed texts.
    mask = torch.full((1, 1, len(ids), len(ids)), torch.finfo(torch.float32).min).triu(1)
    with torch.inference_mode():
        output = engine._model(torch.tensor([ids]), attention_mask=mask, position_ids=positions, use_cache=False)
    joint = output.logits[0]
    cache = engine.prefill(past)
    assert _apart(engine.logits(prompt, cache, start=gap), joint[len(OTHER) :]) < BOUND
    assert _apart(engine.logits(prompt, cache), joint[len(OTHER) :]) > 10 * BOUND
    grown = engine.prefill(prompt, cache, start=gap)
    assert grown.positions.tolist() == positions[0].tolist()
    assert grown.next_position == gap + len(SOURCE)


def test_reading_in_chunks_changes_nothing(
    engine: TransformersEngine, content: PromptOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, question = content(engine, SOURCE), content(engine, QUESTION)
    whole, past = engine.prefill(source), engine.prefill(content(engine, OTHER))
    logits, grown = engine.logits(question + source, past), engine.prefill(source, past)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert _caches_apart(engine.prefill(source), whole) < BOUND
    assert _caches_apart(engine.prefill(source, past), grown) < BOUND
    assert _apart(engine.logits(question + source, past), logits) < BOUND


def _turns(engine: TransformersEngine, content: PromptOf) -> list[Turn]:
    first, second = engine.prefill(content(engine, SOURCE)), engine.prefill(content(engine, OTHER), start=12)
    return [
        Turn(content(engine, QUESTION), first, OPTIONS),
        Turn(content(engine, " When did Bob leave?"), second, (" Monday",)),
        Turn(content(engine, "Nothing stands before this."), None, OPTIONS),
        Turn(content(engine, " And the calm?"), first),
        Turn(content(engine, "?"), second, OPTIONS[::-1]),
    ]


@pytest.mark.parametrize("pack", [24, 2])
def test_a_pack_of_turns_answers_as_each_turn_alone(
    engine: TransformersEngine, content: PromptOf, monkeypatch: pytest.MonkeyPatch, pack: int
) -> None:
    monkeypatch.setattr(module, "PACK", pack)
    turns = _turns(engine, content)
    together = engine.generate(turns, Limits(5))
    for turn, packed in zip(turns, together, strict=True):
        (alone,) = engine.generate([turn], Limits(5))
        assert packed.token_ids == alone.token_ids
        assert packed.text == alone.text
        assert packed.option_logprobs == pytest.approx(alone.option_logprobs, abs=BOUND)
        assert _apart(packed.first_logprobs, alone.first_logprobs) < BOUND
        assert packed.tokens_prefilled == alone.tokens_prefilled == len(turn.prompt.token_ids)


def test_option_log_probabilities_are_those_of_the_joint_text(engine: TransformersEngine, content: PromptOf) -> None:
    source, question = content(engine, SOURCE), content(engine, QUESTION)
    (made,) = engine.generate([Turn(question, engine.prefill(source), OPTIONS)], Limits(1))
    before = (source + question).token_ids
    for option, found in zip(OPTIONS, made.option_logprobs, strict=True):
        ids = engine.encode(option)
        logprobs = _plain(engine, (*before, *ids)).log_softmax(dim=-1)
        oracle = sum(float(logprobs[len(before) - 1 + at, token]) for at, token in enumerate(ids))
        assert found == pytest.approx(oracle, abs=BOUND)
    assert _apart(made.first_logprobs, _plain(engine, before)[-1].log_softmax(dim=-1)) < BOUND
    assert float(made.first_logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_forks_of_one_cache_answer_like_fresh_caches_and_leave_it_alone(
    engine: TransformersEngine, content: PromptOf
) -> None:
    source = content(engine, SOURCE)
    cache = engine.prefill(source)
    before = [(layer.keys.clone(), layer.values.clone(), layer.positions.clone()) for layer in cache.layers]
    asked = [content(engine, f" Question {number}?") for number in range(6)]
    forked = engine.generate([Turn(prompt, cache, OPTIONS) for prompt in asked], Limits(4))
    fresh = engine.generate([Turn(prompt, engine.prefill(source), OPTIONS) for prompt in asked], Limits(4))
    engine.prefill(asked[0], cache)
    engine.logits(asked[1], cache)
    for one, other in zip(forked, fresh, strict=True):
        assert one.token_ids == other.token_ids
        assert one.option_logprobs == pytest.approx(other.option_logprobs, abs=BOUND)
    for layer, (keys, values, positions) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert torch.equal(layer.positions, positions)


def test_changing_the_last_token_leaves_earlier_logits(engine: TransformersEngine, content: PromptOf) -> None:
    cache = engine.prefill(content(engine, SOURCE))
    one, other = (engine.logits(content(engine, f"{QUESTION[:-1]}{end}"), cache) for end in "?!")
    assert _apart(one[:-1], other[:-1]) < BOUND
    assert _apart(one[-1:], other[-1:]) > BOUND


def test_a_prefilled_cache_says_what_its_columns_are(tiny_engine: Callable[..., TransformersEngine]) -> None:
    engine = tiny_engine()
    prompt = Prompt((Piece("sink", (5,)), Piece("content", (6, 7))))
    cache = engine.prefill(prompt)
    assert [(span.kind, span.start, span.stop) for span in cache.manifest.spans] == [("sink", 0, 1), ("content", 1, 3)]
    longer = engine.prefill(prompt, cache.labelled(sender="lyra"))
    assert [span.start for span in longer.manifest.spans] == [0, 1, 3, 4]
    assert (longer.manifest.sender, longer.manifest.dtype) == ("lyra", "float32")
    assert all(layer.keys.is_contiguous() and layer.keys.shape == (2, 6, 16) for layer in longer.layers)
    assert engine.prefill(prompt, cache.without_tokens()).manifest.token_ids is None


def test_description_holds_the_sizes_and_frequencies(tiny_engine: Callable[..., TransformersEngine]) -> None:
    for kind in ("llama", "mistral", "qwen2", "qwen3", "linear"):
        spec = tiny_engine(kind).spec
        assert (spec.layers, spec.kv_heads, spec.head_dim, spec.vocabulary, spec.context) == (2, 2, 16, 300, 512)
        # RoFormer, arXiv 2104.09864, eq. 15; linear scaling divides positions by its factor.
        factor = 4.0 if kind == "linear" else 1.0
        expected = [10000.0 ** (-pair / 8) / factor for pair in range(8)]
        assert spec.rope.inverse_frequencies == pytest.approx(expected, rel=1e-6)
        assert spec.rope.attention_scaling == 1.0
    ropes = [tiny_engine(kind).spec.rope for kind in ("llama", "llama3", "yarn", "linear")]
    assert [rope.kind for rope in ropes] == ["default", "llama3", "yarn", "linear"]
    assert len({rope.inverse_frequencies for rope in ropes}) == 4


def test_generation_ends_before_the_models_end_token(
    tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], content: PromptOf
) -> None:
    model = tiny_model()
    engine = TransformersEngine(model, tiny_tokenizer())
    turn = Turn(content(engine, SOURCE))
    made = engine.generate([turn], Limits(12))[0].token_ids
    end = next(token for token in made[1:] if token != made[0])
    model.generation_config.eos_token_id = [end, 299]
    assert engine.generate([turn], Limits(12))[0].token_ids == made[: made.index(end)]


def test_text_is_cut_at_the_first_stop(tiny_engine: Callable[..., TransformersEngine], content: PromptOf) -> None:
    engine = tiny_engine()
    turn = Turn(content(engine, SOURCE))
    full = engine.generate([turn], Limits(40))[0]
    stop = next(letter for letter in full.text[1:] if letter.isascii() and letter not in full.text[:1])
    (cut,) = engine.generate([turn], Limits(40, (stop, "never")))
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.token_ids == full.token_ids[: len(cut.token_ids)]
    assert stop in engine.decode(cut.token_ids)
    assert stop not in engine.decode(cut.token_ids[:-1])


def test_more_positions_than_the_context_are_refused(
    tiny_engine: Callable[..., TransformersEngine], content: PromptOf
) -> None:
    engine = tiny_engine()
    full, one = content(engine, "x" * 512), content(engine, "x")
    past = engine.prefill(full)
    for use in (lambda: engine.prefill(one, past), lambda: engine.logits(one, past)):
        with pytest.raises(ContextOverflow, match="513 positions"):
            use()
    with pytest.raises(ContextOverflow, match="513 positions"):
        engine.prefill(one, start=512)
    with pytest.raises(ContextOverflow, match="520 positions"):
        engine.generate([Turn(content(engine, "x" * 500))], Limits(20))


def test_nothing_to_read_or_to_answer_is_refused(
    tiny_engine: Callable[..., TransformersEngine], content: PromptOf
) -> None:
    engine = tiny_engine()
    for use in (engine.prefill, engine.logits, lambda prompt: engine.generate([Turn(prompt)], Limits())):
        with pytest.raises(UsageError, match="prompt is empty"):
            use(Prompt(()))
    for turns, limits in (([], Limits()), ([Turn(content(engine, "?"))], Limits(0))):
        with pytest.raises(UsageError, match="nothing to answer"):
            engine.generate(turns, limits)


def test_another_models_cache_is_refused(tiny_engine: Callable[..., TransformersEngine], content: PromptOf) -> None:
    engine = tiny_engine()
    foreign = {"weights": tiny_engine("llama", 1), "rope": tiny_engine("llama3"), "family": tiny_engine("qwen2")}
    for field, maker in foreign.items():
        cache = maker.prefill(content(maker, SOURCE))
        for use in (
            engine.prefill,
            engine.logits,
            lambda prompt, past: engine.generate([Turn(prompt, past)], Limits()),
        ):
            with pytest.raises(IncompatibleCache, match=f"{field} is"):
                use(content(engine, QUESTION), cache)


def test_caches_that_are_not_whole_are_refused(
    tiny_engine: Callable[..., TransformersEngine], content: PromptOf
) -> None:
    engine = tiny_engine()
    cache = engine.prefill(content(engine, SOURCE))
    for bad in (RemoveRope()(cache), KVCache.build(cache.layers[:1], engine.spec)):
        with pytest.raises(IncompatibleCache, match="Apply RoPE and keep"):
            engine.logits(content(engine, QUESTION), bad)


def test_a_narrow_cache_is_widened_when_it_is_injected(
    tiny_engine: Callable[..., TransformersEngine], content: PromptOf
) -> None:
    engine = tiny_engine()
    cache, question = engine.prefill(content(engine, SOURCE)), content(engine, QUESTION)
    narrow = Cast("bfloat16")(cache)
    assert torch.equal(engine.logits(question, narrow), engine.logits(question, Cast("float32")(narrow)))
    assert engine.prefill(question, narrow).manifest.dtype == "float32"
    exact, emptied = engine.logits(question, cache), engine.logits(question, Zero()(cache))
    assert _apart(engine.logits(question, narrow), exact) < 0.2 * _apart(emptied, exact)


def test_a_loaded_model_computes_what_the_model_given_by_hand_does(
    tiny_engine: Callable[..., TransformersEngine], content: PromptOf, tmp_path: Path
) -> None:
    # A model that is loaded gets this package's own attention function, one given by hand keeps transformers'.
    for kind in ("llama", "yarn"):
        engine = tiny_engine(kind)
        engine._model.save_pretrained(tmp_path / kind)
        engine._tokenizer.save_pretrained(tmp_path / kind)
        loaded = load(Source(str(tmp_path / kind)), Loading())
        assert compare(loaded.spec, engine.spec) == []
        pairs = list(zip(_turns(loaded, content), _turns(engine, content), strict=True))
        for mine, theirs in pairs:
            assert _apart(loaded.logits(mine.prompt, mine.past), engine.logits(theirs.prompt, theirs.past)) < BOUND
        answers = loaded.generate([mine for mine, _ in pairs], Limits(5))
        expected = engine.generate([theirs for _, theirs in pairs], Limits(5))
        assert [each.token_ids for each in answers] == [each.token_ids for each in expected]
