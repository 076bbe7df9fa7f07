"""Many turns answered at once are each answered alone, options are scored as by hand, and forks disturb nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.engines.llamacpp import engine as module
from unspoken.engines.llamacpp.engine import PACK, LlamaCppEngine
from unspoken.engines.protocol import Engine, Generation, Limits, Piece, Prompt, Turn
from unspoken.errors import ContextOverflow, IncompatibleCache, UsageError

Engines = Callable[..., Any]
PromptOf = Callable[[Engine, str], Prompt]
SOURCE = "The old mill is run by Anna. It was calm."
OTHER = "Bob left the harbour on Monday."
QUESTION = " Who runs the mill?"
OPTIONS = (" Anna", " Bob", "X")
# Log-probabilities are as exact as logits, see `test_engine.py`; many tokens computed together are rounded otherwise
# than one alone. Measured: 0.004.
ROUNDING = 0.03


def apart(left: Tensor, right: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((left - right).abs().max())


def turns(engine: LlamaCppEngine, content: PromptOf, count: int = 5) -> list[Turn]:
    """Turns on two pasts and on none, with options and without."""
    first, second = engine.prefill(content(engine, SOURCE)), engine.prefill(content(engine, OTHER), start=12)
    pasts: tuple[KVCache | None, ...] = (first, second, None)
    options = (OPTIONS, (" Monday",), (), OPTIONS[::-1])
    return [
        Turn(content(engine, f" Question {at}: {'why ' * (at % 4)}?"), pasts[at % 3], options[at % 4])
        for at in range(count)
    ]


def agree(engine: Engine, turn: Turn, found: Sequence[int], expected: Sequence[int]) -> None:
    """See that two greedy answers are the same, but for what may follow two tokens that rounding cannot tell apart."""
    at = len(common(found, expected))
    if tuple(found) == tuple(expected):
        return
    assert at < min(len(found), len(expected)), (found, expected)
    read = turn.prompt + Prompt((Piece("content", tuple(expected[:at])),))
    logits = engine.logits(read, turn.past)[-1]
    assert abs(float(logits[found[at]] - logits[expected[at]])) < ROUNDING, (found, expected)
    assert float(logits.max() - logits[found[at]]) < ROUNDING, (found, expected)


def common(left: Sequence[int], right: Sequence[int]) -> Sequence[int]:
    """The tokens with which both begin."""
    same = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return left[:same]


def alike(engine: Engine, turn: Turn, left: Generation, right: Generation) -> None:
    """See that two answers to a turn are the same one."""
    agree(engine, turn, left.token_ids, right.token_ids)
    assert left.option_logprobs == pytest.approx(right.option_logprobs, abs=ROUNDING)
    assert apart(left.first_logprobs, right.first_logprobs) < ROUNDING
    assert left.tokens_prefilled == right.tokens_prefilled == len(turn.prompt.token_ids)
    assert left.text == engine.decode(left.token_ids)


def test_greedy_tokens_on_a_cache_are_those_of_the_joint_text_and_of_transformers(
    kind: str, tiny_llama: Engines, tiny_hf: Engines, content: PromptOf
) -> None:
    ours, theirs = tiny_llama(kind), tiny_hf(kind)
    source, question = content(ours, SOURCE), content(ours, QUESTION)
    joint = Turn(source + question)
    made = ours.generate([Turn(question, ours.prefill(source))], Limits(8))[0]
    agree(ours, joint, ours.generate([joint], Limits(8))[0].token_ids, made.token_ids)
    agree(theirs, joint, theirs.generate([joint], Limits(8))[0].token_ids, made.token_ids)
    assert made.text == theirs.decode(made.token_ids)
    assert len(made.token_ids) == 8
    assert made.tokens_prefilled == len(QUESTION)
    assert 0 < made.seconds_first_token <= made.seconds_total


@pytest.mark.parametrize("count", [5, PACK + 3])
def test_a_pack_of_turns_answers_as_each_turn_alone(count: int, tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama("llama", context=100_000)
    asked = turns(engine, content, count)
    together = engine.generate(asked, Limits(5))
    assert len(together) == count
    for turn, packed in zip(asked, together, strict=True):
        (alone,) = engine.generate([turn], Limits(5))
        alike(engine, turn, packed, alone)


def test_turns_that_do_not_fit_together_are_answered_one_after_the_other(
    tiny_llama: Engines, content: PromptOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide, narrow = tiny_llama(), tiny_llama("llama", context=150)
    asked, packs = turns(wide, content, 12), []
    whole, limits = LlamaCppEngine._generate_pack, Limits(6)

    def counted(self: LlamaCppEngine, some: Any, *rest: Any) -> Any:
        packs.append(len(some))
        return whole(self, some, *rest)

    monkeypatch.setattr(LlamaCppEngine, "_generate_pack", counted)
    made = narrow.generate(asked, limits)
    assert sum(packs) == 12
    assert len(packs) > 3
    assert max(packs) > 1
    packs.clear()
    for turn, one, other in zip(asked, made, wide.generate(asked, limits), strict=True):
        alike(wide, turn, one, other)
    assert len(packs) < 4


def test_what_a_turn_needs_is_what_fits_and_one_column_less_does_not(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama("llama", context=150)
    past = engine.prefill(content(engine, "x" * 90))
    for turn, needed in (
        (Turn(content(engine, "y" * 40), past), 130),
        (Turn(content(engine, "y" * 130)), 130),
        (Turn(content(engine, "y" * 30), past, ("o" * 6, "o" * 6)), 130),
    ):
        assert len(engine.generate([turn], Limits(150 - needed))[0].token_ids) <= 150 - needed
        with pytest.raises(ContextOverflow, match="needs 151 columns; the context of 'tiny' has 150") as error:
            engine.generate([turn], Limits(151 - needed))
        assert "--context" in error.value.hint


def test_a_past_shared_by_turns_is_put_in_once(
    tiny_llama: Engines, content: PromptOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, put = tiny_llama(), []
    first, second = engine.prefill(content(engine, SOURCE)), engine.prefill(content(engine, OTHER))
    whole = LlamaCppEngine.put
    monkeypatch.setattr(LlamaCppEngine, "put", lambda self, *what: (put.append(what[0]), whole(self, *what))[1])
    asked = [Turn(content(engine, f" {at}?"), past) for at, past in enumerate((first, second, first, first))]
    engine.generate(asked, Limits(2))
    assert put == [first, second]


def test_forks_of_one_cache_answer_like_fresh_caches_and_leave_it_alone(
    kind: str, tiny_llama: Engines, content: PromptOf
) -> None:
    engine = tiny_llama(kind)
    source = content(engine, SOURCE)
    cache = engine.prefill(source)
    before = [(layer.keys.clone(), layer.values.clone(), layer.positions.clone()) for layer in cache.layers]
    asked = [Turn(content(engine, f" Question {number}?"), cache, OPTIONS) for number in range(6)]
    forked = engine.generate(asked, Limits(4))
    for turn, one in zip(asked, forked, strict=True):
        (other,) = engine.generate([replace(turn, past=engine.prefill(source))], Limits(4))
        alike(engine, turn, one, other)
    for layer, (keys, values, positions) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert torch.equal(layer.positions, positions)


def test_option_log_probabilities_are_those_of_the_joint_text(
    kind: str, tiny_llama: Engines, tiny_hf: Engines, content: PromptOf
) -> None:
    ours, theirs = tiny_llama(kind), tiny_hf(kind)
    source, question = content(ours, SOURCE), content(ours, QUESTION)
    (made,) = ours.generate([Turn(question, ours.prefill(source), OPTIONS)], Limits(1))
    before = source + question
    for engine in (ours, theirs):
        for option, found in zip(OPTIONS, made.option_logprobs, strict=True):
            ids = engine.encode(option)
            logprobs = engine.logits(before + content(engine, option)).log_softmax(dim=-1)
            oracle = sum(float(logprobs[len(before.token_ids) - 1 + at, token]) for at, token in enumerate(ids))
            assert found == pytest.approx(oracle, abs=ROUNDING * len(ids))
        first = engine.logits(before)[-1].log_softmax(dim=-1)
        assert apart(made.first_logprobs, first) < ROUNDING
    assert float(made.first_logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_more_options_than_sequences_are_scored_like_few(
    tiny_llama: Engines, content: PromptOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_llama()
    past, question = engine.prefill(content(engine, SOURCE)), content(engine, QUESTION)
    many = tuple(f"{letter}{number}" for letter in "abcdefghij" for number in range(10))
    turn = Turn(question, past, many)
    (together,) = engine.generate([turn], Limits(3))
    monkeypatch.setattr(module, "OPTIONS_AT_ONCE", 7)
    (in_parts,) = engine.generate([turn], Limits(3))
    alike(engine, turn, in_parts, together)
    for some in (many[:3], many[50:51], many[-3:]):
        (few,) = engine.generate([Turn(question, past, some)], Limits(3))
        start = many.index(some[0])
        assert few.option_logprobs == pytest.approx(together.option_logprobs[start : start + len(some)], abs=ROUNDING)


def test_scoring_options_does_not_change_the_answer(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    past, question = engine.prefill(content(engine, SOURCE)), content(engine, QUESTION)
    (bare,) = engine.generate([Turn(question, past)], Limits(6))
    (scored,) = engine.generate([Turn(question, past, OPTIONS)], Limits(6))
    assert bare.token_ids == scored.token_ids
    assert torch.equal(bare.first_logprobs, scored.first_logprobs)
    assert bare.option_logprobs == ()


def test_the_pieces_heard_are_each_turns_text(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama("llama", context=200)
    asked = turns(engine, content, 9)
    heard: dict[int, list[str]] = {}
    made = engine.generate(asked, Limits(7), lambda at, text: heard.setdefault(at, []).append(text))
    assert ["".join(heard.get(at, [])) for at in range(9)] == [each.text for each in made]
    assert any(len(pieces) > 1 for pieces in heard.values())


def test_text_is_cut_at_the_first_stop_and_what_is_heard_with_it(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    turn = Turn(content(engine, SOURCE))
    full = engine.generate([turn], Limits(40))[0]
    stop = next(letter for letter in full.text[1:] if letter.isascii() and letter not in full.text[:1])
    heard: list[str] = []
    (cut,) = engine.generate([turn], Limits(40, (stop, "never")), lambda _, text: heard.append(text))
    assert cut.text == "".join(heard) == full.text[: full.text.index(stop)]
    assert cut.token_ids == full.token_ids[: len(cut.token_ids)]
    assert stop in engine.decode(cut.token_ids)
    assert stop not in engine.decode(cut.token_ids[:-1])


def test_generation_ends_before_the_models_end_token(
    tiny_llama: Engines, content: PromptOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_llama()
    assert 257 in engine._ends  # <|im_end|>, which the file names.
    turn = Turn(content(engine, SOURCE))
    made = engine.generate([turn], Limits(12))[0].token_ids
    end = next(token for token in made[1:] if token != made[0])
    monkeypatch.setattr(engine, "_ends", frozenset({end, 1}))
    (cut,) = engine.generate([turn], Limits(12))
    assert cut.token_ids == made[: made.index(end)]
    assert cut.text == engine.decode(cut.token_ids)


def test_answers_that_end_at_different_tokens_leave_the_others_as_they_are(
    tiny_llama: Engines, content: PromptOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_llama()
    asked = turns(engine, content, 8)
    alone = [engine.generate([turn], Limits(10))[0].token_ids for turn in asked]
    ends = frozenset(ids[at % 5] for at, ids in enumerate(alone[::2]))
    monkeypatch.setattr(engine, "_ends", ends)
    made = engine.generate(asked, Limits(10))
    expected = [ids[: next((at for at, token in enumerate(ids) if token in ends), 10)] for ids in alone]
    for turn, one, ids, whole in zip(asked, made, expected, alone, strict=True):
        if one.token_ids != ids:
            agree(engine, turn, one.token_ids, whole)
        assert not ends & set(one.token_ids)
    assert len({len(each.token_ids) for each in made}) > 2


def test_drawn_answers_are_the_same_for_a_seed_alone_and_in_a_pack(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    asked = turns(engine, content, 6)
    limits = Limits(12, temperature=1.0, top_p=0.9, seed=4)
    made = engine.generate(asked, limits)
    assert [each.token_ids for each in engine.generate(asked, limits)] == [each.token_ids for each in made]
    other = engine.generate(asked, Limits(12, temperature=1.0, top_p=0.9, seed=5))
    greedy = engine.generate(asked, Limits(12))
    assert [each.token_ids for each in other] != [each.token_ids for each in made]
    assert [each.token_ids for each in greedy] != [each.token_ids for each in made]
    same = sum(
        len(common(packed.token_ids, engine.generate([turn], limits)[0].token_ids))
        for turn, packed in zip(asked, made, strict=True)
    )
    # A pack is rounded otherwise than a turn alone: now and then a draw close to the edge falls on the other side.
    assert same > sum(len(each.token_ids) for each in made) / 2


def test_drawn_answers_are_those_that_transformers_draws(
    tiny_llama: Engines, tiny_hf: Engines, content: PromptOf
) -> None:
    limits, same = Limits(10, temperature=0.8, seed=1), 0
    for kind in ("llama", "qwen2", "qwen3"):
        turn = Turn(content(tiny_hf(kind), SOURCE))
        mine, other = (make(kind).generate([turn], limits)[0].token_ids for make in (tiny_llama, tiny_hf))
        same += len(common(mine, other))
    # Logits differ by rounding, so that one generator's draws nearly always fall on the same token.
    assert same > 15


def test_nothing_to_answer_is_refused(tiny_llama: Engines, content: PromptOf) -> None:
    engine = tiny_llama()
    turn = Turn(content(engine, "?"))
    for asked, limits in (([], Limits()), ([turn], Limits(0))):
        with pytest.raises(UsageError, match="nothing to answer"):
            engine.generate(asked, limits)
    with pytest.raises(UsageError, match="The prompt is empty"):
        engine.generate([turn, Turn(Prompt(()))], Limits())
    with pytest.raises(UsageError, match="An option is empty"):
        engine.generate([Turn(content(engine, "?"), None, ("a", ""))], Limits())
    with pytest.raises(ContextOverflow, match="513 positions"):
        engine.generate([Turn(content(engine, "x" * 493))], Limits(20))


def test_another_models_cache_is_refused_in_a_pack(tiny_llama: Engines, content: PromptOf) -> None:
    engine, other = tiny_llama(), tiny_llama("llama", seed=1)
    asked = [Turn(content(engine, "?")), Turn(content(engine, "?"), other.prefill(content(other, SOURCE)))]
    with pytest.raises(IncompatibleCache, match="weights is"):
        engine.generate(asked, Limits(2))
    assert engine.generate(asked[:1], Limits(2))
