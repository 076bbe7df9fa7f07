"""The fake engine is a model that reads its cache: what cannot be read changes what it says."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from unspoken.cache import KVCache
from unspoken.channels.text import WRITE, WRITE_ASKED
from unspoken.engines import ENGINES
from unspoken.engines.fake import LIKELY, MARKS, UNKNOWN, UNLIKELY, WRITING, FakeEngine, load
from unspoken.engines.protocol import Engine, Limits, Loading, Piece, Prompt, Turn
from unspoken.errors import ContextOverflow, IncompatibleCache, UsageError
from unspoken.modelstore import Source
from unspoken.transforms import Transform
from unspoken.transforms.cast import Cast
from unspoken.transforms.controls import Displace, Noise, Zero
from unspoken.transforms.rope import ApplyRope, Move, RemoveRope

SOURCE = "The old mill is run by Anna. The new mill is run by Bob. The inn is painted red."
QUESTION = "\n\nWho runs the new mill?"
STEM = "The new mill is run by"
PromptOf = Callable[[Engine, str], Prompt]
UNREADABLE: dict[str, Transform] = {"zero": Zero(), "noise": Noise(0), "displaced": Displace(1024), "near": Displace(1)}


def _asked(engine: FakeEngine, question: str, stem: str = "") -> Prompt:
    pieces = [Piece("content", engine.encode(question)), *engine.frame("").after.pieces]
    return Prompt((*pieces, *([Piece("template", engine.encode(stem))] if stem else [])))


def _says(engine: FakeEngine, past: KVCache | None, question: str = QUESTION, stem: str = "") -> str:
    return engine.generate([Turn(_asked(engine, question, stem), past)], Limits())[0].text


def test_text_survives_encoding_and_marks_are_single_tokens(fake: FakeEngine) -> None:
    text = "Vera's keys: naïve, 東京 🙂"
    assert fake.decode(fake.encode(text)) == text
    assert len(fake.encode(text)) == len(text.encode())
    marked = fake.encode(f"a{MARKS[2]}b")
    assert len(marked) == 3
    assert fake.decode(marked) == "ab"


def test_every_token_is_read_back_from_the_cache_after_bfloat16(fake: FakeEngine) -> None:
    ids = tuple(range(fake.spec.vocabulary))
    cache = fake.prefill(Prompt((Piece("content", ids),)), start=900)
    wire = ApplyRope()(Move(3000)(Cast("float32")(Cast("bfloat16")(RemoveRope()(cache)))))
    assert fake._readable(cache) == fake._readable(wire) == list(ids)


def test_cache_continues_as_if_read_together(fake: FakeEngine, content: PromptOf) -> None:
    source, question = content(fake, SOURCE), content(fake, QUESTION)
    joint = fake.logits(source + question)[len(source.token_ids) :]
    assert torch.allclose(fake.logits(question, fake.prefill(source)), joint, atol=1e-5)
    whole, parts = fake.prefill(source + question), fake.prefill(question, fake.prefill(source))
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(whole.layers, parts.layers, strict=True))
    assert whole.manifest.token_ids == parts.manifest.token_ids
    assert [step.args["tokens"] for step in parts.manifest.lineage] == [len(SOURCE), len(QUESTION)]


def test_moved_cache_equals_one_read_at_the_new_positions(fake: FakeEngine, content: PromptOf) -> None:
    source, question = content(fake, SOURCE), content(fake, QUESTION)
    moved, there = Move(700)(fake.prefill(source)), fake.prefill(source, start=700)
    for a, b in zip(moved.layers, there.layers, strict=True):
        assert torch.allclose(a.keys, b.keys, atol=1e-5)
    assert torch.allclose(fake.logits(question, moved), fake.logits(question, there), atol=1e-4)


def test_logits_depend_on_earlier_tokens_and_on_no_later_one(fake: FakeEngine, content: PromptOf) -> None:
    logits = fake.logits(content(fake, SOURCE))
    later, earlier = content(fake, SOURCE[:-1] + "!"), content(fake, "X" + SOURCE[1:])
    assert logits.dtype == torch.float32
    assert logits.shape == (len(SOURCE), fake.spec.vocabulary)
    assert torch.allclose(fake.logits(later)[:-1], logits[:-1], atol=1e-6)
    assert ((fake.logits(earlier) - logits).abs().amax(dim=1) > 1e-4).all()


def test_logits_depend_on_where_a_token_stands(fake: FakeEngine, content: PromptOf) -> None:
    question = content(fake, "?")
    gaps = [fake.logits(question, fake.prefill(content(fake, "ab")), start=start) for start in (2, 3, 9)]
    swapped = fake.logits(question, fake.prefill(content(fake, "ba")))
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations([*gaps, swapped], 2))


@pytest.mark.parametrize("change", sorted(UNREADABLE))
def test_what_is_emptied_or_displaced_cannot_be_read(fake: FakeEngine, content: PromptOf, change: str) -> None:
    cache = fake.prefill(content(fake, SOURCE))
    spoilt = UNREADABLE[change](cache)
    question = content(fake, QUESTION)
    assert (_says(fake, cache), _says(fake, spoilt)) == ("Bob", UNKNOWN)
    assert (fake.logits(question, cache) - fake.logits(question, spoilt)).abs().max() > 1e-3
    assert fake._readable(spoilt) == [None] * len(SOURCE)


def test_it_quotes_the_sentence_that_shares_most_words(fake: FakeEngine, content: PromptOf) -> None:
    cache = fake.prefill(content(fake, SOURCE))
    asked = {
        "Who runs the old mill?": "Anna",
        "Who runs the new mill?": "Bob",
        "What colour is the inn painted?": "red",
    }
    assert {question: _says(fake, cache, question) for question in asked} == asked
    assert _says(fake, cache, "Where is Rome?") == UNKNOWN
    assert _says(fake, None) == UNKNOWN


def test_it_goes_on_from_a_stem(fake: FakeEngine, content: PromptOf) -> None:
    cache = fake.prefill(content(fake, "The new mill is run by Bob and Eve. The old one stands still."))
    assert _says(fake, cache, stem=STEM) == "Bob and Eve"
    assert _says(fake, cache, stem="The boss of the new mill is") == "Eve"


def test_columns_are_read_in_the_order_of_their_positions(fake: FakeEngine, content: PromptOf) -> None:
    first, second = fake.prefill(content(fake, SOURCE[:40])), fake.prefill(content(fake, SOURCE[40:]), start=40)
    assert fake._readable(second.concat(first)) == list(fake.encode(SOURCE))


def test_joint_prompt_is_answered_like_one_on_a_cache(fake: FakeEngine) -> None:
    frame = fake.frame("You are Vera and run the new mill yourself.")
    source = frame.before + Prompt((Piece("content", fake.encode(SOURCE)),))
    limits = Limits()
    on_cache = fake.generate([Turn(_asked(fake, QUESTION), fake.prefill(source))], limits)[0]
    joint = fake.generate([Turn(source + _asked(fake, QUESTION))], limits)[0]
    assert on_cache.text == joint.text == "Bob"
    assert torch.allclose(on_cache.first_logprobs, joint.first_logprobs, atol=1e-4)
    whole = Prompt((*frame.before.pieces, Piece("content", fake.encode(SOURCE + QUESTION)), *frame.after.pieces))
    assert fake.generate([Turn(whole)], limits)[0].text == "Bob"


def test_options_in_the_sentence_are_likely_and_all_others_equally_unlikely(
    fake: FakeEngine, content: PromptOf
) -> None:
    options = (" Anna", " Bob", " Bo", " Carl")
    cache = fake.prefill(content(fake, SOURCE))
    right, blind = (
        fake.generate([Turn(_asked(fake, QUESTION), past, options)], Limits())[0].option_logprobs
        for past in (cache, Zero()(cache))
    )
    assert right == (UNLIKELY, LIKELY, UNLIKELY, UNLIKELY)
    assert blind == (UNLIKELY,) * 4


def test_first_token_distribution_is_proper_and_led_by_the_answer(fake: FakeEngine, content: PromptOf) -> None:
    made = fake.generate([Turn(_asked(fake, QUESTION), fake.prefill(content(fake, SOURCE)))], Limits())[0]
    assert float(made.first_logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert int(made.first_logprobs.argmax()) == made.token_ids[0] == ord("B")
    assert made.tokens_prefilled == len(_asked(fake, QUESTION).token_ids)


def test_answers_end_at_the_limit_or_at_a_stop(fake: FakeEngine, content: PromptOf) -> None:
    past = fake.prefill(content(fake, "The new mill is run by Bob. Smith is away."))
    turn = Turn(_asked(fake, WRITE), past)
    cut = fake.generate([turn], Limits(new_tokens=7))[0]
    assert (cut.text, len(cut.token_ids)) == ("The new", 7)
    stopped = fake.generate([turn], Limits(stop=("\n", ".")))[0]
    assert stopped.text == "The new mill is run by Bob"
    assert fake.decode(stopped.token_ids) == "The new mill is run by Bob."


def test_a_request_to_write_is_answered_with_what_can_be_seen(fake: FakeEngine, content: PromptOf) -> None:
    assert WRITING in WRITE
    assert WRITING in WRITE_ASKED
    cache = fake.prefill(content(fake, SOURCE))
    assert _says(fake, cache, WRITE) == SOURCE[:64]
    assert _says(fake, cache, WRITE_ASKED.format(question="Who runs the new mill?")) == "The new mill is run by Bob."
    assert _says(fake, None, WRITE) == UNKNOWN


def test_another_seed_or_loaded_name_is_another_model(fake: FakeEngine, content: PromptOf) -> None:
    foreign = [FakeEngine(seed=1), load(Source("tiny"), Loading()), load(Source("other"), Loading())]
    assert len({engine.spec.weights for engine in (fake, *foreign)}) == 4
    for engine in foreign:
        with pytest.raises(IncompatibleCache, match="weights is"):
            fake.prefill(content(fake, "?"), engine.prefill(content(engine, "abc")))
    again = ENGINES.load("fake")(Source("tiny"), Loading(dtype="bfloat16"))
    assert again.spec.weights == foreign[1].spec.weights
    assert again.prefill(content(again, "abc")).manifest.dtype == "bfloat16"
    renamed = FakeEngine(name="renamed")
    assert renamed.spec.name == "renamed"
    assert renamed.spec.weights == fake.spec.weights


def test_caches_that_are_not_whole_are_refused(fake: FakeEngine, content: PromptOf) -> None:
    cache, question = fake.prefill(content(fake, "abc")), content(fake, "?")
    uneven = KVCache.build([cache.layers[0], cache.slice(0, 2).layers[1]], fake.spec)
    for bad in (RemoveRope()(cache), KVCache.build(cache.layers[:1], fake.spec), uneven):
        for use in (fake.prefill, fake.logits, lambda prompt, past: fake.generate([Turn(prompt, past)], Limits())):
            with pytest.raises(IncompatibleCache, match=r"Apply RoPE and keep|keeps one position for all layers"):
                use(question, bad)


def test_nothing_to_read_or_to_answer_is_refused(fake: FakeEngine, content: PromptOf) -> None:
    for use in (fake.prefill, fake.logits, lambda prompt: fake.generate([Turn(prompt)], Limits())):
        with pytest.raises(UsageError, match="prompt is empty"):
            use(Prompt(()))
    with pytest.raises(UsageError, match="nothing to answer"):
        fake.generate([], Limits())
    with pytest.raises(UsageError, match="nothing to answer"):
        fake.generate([Turn(content(fake, "?"))], Limits(new_tokens=0))
    with pytest.raises(UsageError, match="element type"):
        FakeEngine(dtype="int3")


def test_more_positions_than_the_context_are_refused(content: PromptOf) -> None:
    small = FakeEngine(context=100)
    full = small.prefill(content(small, "x" * 100))
    with pytest.raises(ContextOverflow, match="101 positions"):
        small.prefill(content(small, "x"), full)
    with pytest.raises(ContextOverflow, match="101 positions"):
        small.logits(content(small, "x"), start=100)
    with pytest.raises(ContextOverflow, match="104 positions"):
        small.generate([Turn(content(small, "x" * 40))], Limits(new_tokens=64))


def test_one_cache_serves_many_turns_unchanged(fake: FakeEngine, content: PromptOf) -> None:
    cache = fake.prefill(content(fake, SOURCE))
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    turns = [Turn(_asked(fake, f"\n\nWho runs the {which} mill?"), cache) for which in ("old", "new", "old")]
    assert [made.text for made in fake.generate(turns, Limits())] == ["Anna", "Bob", "Anna"]
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
