"""Selection for a need: what is kept, what it costs, and what cannot be asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unspoken.channels import need
from unspoken.channels.protocol import Delivery
from unspoken.channels.scorers import PROBE, SCORERS, STEM, Attention, sentence_of
from unspoken.channels.scorers import Need as Wanted
from unspoken.channels.text import content
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits, Piece, Prompt, Turn
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.session import Agent

SOURCE = "The old mill is run by Anna. It was calm! The station gets its mail from Rome (twice). Done"
QUESTION = "Who runs the old mill?"
Deliver = Callable[..., Delivery]


@pytest.mark.parametrize("scorer", sorted(SCORERS))
@pytest.mark.parametrize("part", [1.0, 0.5, 0.3, 0.05])
def test_each_layer_keeps_its_share_exactly_as_it_was(
    deep: TransformersEngine, deliver: Deliver, scorer: str, part: float
) -> None:
    receiver, read = Agent("vera", deep), (Agent("lyra", deep), SOURCE)
    whole = deliver("kv", receiver, read, question=QUESTION)
    made = deliver(f"need:{scorer}@{part}", receiver, read, question=QUESTION)
    assert whole.past is not None
    assert made.past is not None
    before, many = receiver.prefix.columns, int(part * len(SOURCE) + 1e-9)
    first = min(int(layer.positions[before:].min()) for layer in made.past.layers)
    for mine, everything in zip(made.past.layers, whole.past.layers, strict=True):
        assert mine.columns == before + many
        # Positions keep their gaps; the first column kept in any layer stands right behind the prefix.
        at = mine.positions[before:].long() - first
        assert bool((at.diff() > 0).all())
        offsets = [
            shift
            for shift in range(len(SOURCE) - int(at.max()))
            if torch.equal(mine.values[:, before:], everything.values[:, before + at + shift])
        ]
        assert offsets
    assert first == receiver.prefix.next_position
    assert made.bytes_moved == pytest.approx(whole.bytes_moved * many / len(SOURCE) + len(QUESTION), rel=0.1)


def test_all_columns_are_the_plain_channel(deep: TransformersEngine, deliver: Deliver) -> None:
    receiver, read = Agent("vera", deep), (Agent("lyra", deep), SOURCE)
    plain, all_needed = (deliver(name, receiver, read, question=QUESTION) for name in ("kv", "need@1"))
    assert plain.past is not None
    assert all_needed.past is not None
    for mine, other in zip(all_needed.past.layers, plain.past.layers, strict=True):
        assert torch.equal(mine.values, other.values)
        assert torch.allclose(mine.keys, other.keys, atol=1e-5)


def test_scores_are_shares_of_what_the_question_and_the_senders_own_answer_attend_to(deep: TransformersEngine) -> None:
    lyra = Agent("lyra", deep)
    reading = lyra.read(SOURCE)
    (scores,) = Attention().scores([Wanted(reading, QUESTION)])
    asked = content(lyra, PROBE.format(question=QUESTION))
    stem = Prompt((Piece("template", deep.encode(STEM)),))
    prompt = asked + lyra.frame.after + stem
    (answer,) = deep.generate([Turn(prompt, reading.cache)], Limits(8, (".", "\n")))
    # The slow way: transformers' own attention weights over everything, in one pass.
    ids = [*(reading.cache.manifest.token_ids or ()), *prompt.token_ids, *answer.token_ids]
    deep._model.set_attn_implementation("eager")
    try:
        shown = deep._model(torch.tensor([ids]), output_attentions=True).attentions
    finally:
        deep._model.set_attn_implementation("unspoken_folded")
    before, start = reading.cache.columns, lyra.prefix.columns
    of_question = range(before + 1, before + len(asked.token_ids))
    of_answer = range(before + len(prompt.token_ids) - 1, len(ids))
    for mine, layer in zip(scores, shown, strict=True):
        halves = []
        for run in (of_question, of_answer):
            by_head = layer[0][:, list(run), start:before].mean(dim=1)
            halves.append((by_head / by_head.sum(dim=-1, keepdim=True)).mean(dim=0))
        assert torch.allclose(mine, (halves[0] + halves[1]) / 2, atol=1e-5)
        assert float(mine.sum()) == pytest.approx(1.0, abs=1e-4)


def test_needs_of_one_batch_do_not_meet(deep: TransformersEngine) -> None:
    lyra = Agent("lyra", deep)
    one, other = lyra.read(SOURCE), lyra.read("Rain fell on the inn. Silk is sold there.")
    needs = [Wanted(one, QUESTION), Wanted(other, "What is sold?"), Wanted(one, "From where comes the mail?")]
    together = Attention().scores(needs)
    for each, (reading, question) in zip(together, needs, strict=True):
        alone = Wanted(lyra.read(reading.source), question)
        assert torch.allclose(each, Attention().scores([alone])[0], atol=1e-4)


def test_a_question_is_put_to_a_reading_once(deep: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Agent("lyra", deep).read(SOURCE)
    needs = [Wanted(reading, QUESTION), Wanted(reading, "From where comes the mail?"), Wanted(reading, QUESTION)]
    first = Attention().scores(needs)
    assert first[0] is first[2]
    monkeypatch.setattr(TransformersEngine, "attention", lambda *_: pytest.fail("it was looked at before"))
    again = Attention().scores(needs)
    assert [a is b for a, b in zip(first, again, strict=True)] == [True] * 3


def test_sentences_end_where_they_do(fake: FakeEngine) -> None:
    reading = Agent("lyra", fake).read("A b. C (d)! E 3.5 f?\nG")
    # A sentence ends before the space that follows its mark; a point within a number ends none.
    assert sentence_of(reading).tolist() == [0] * 4 + [1] * 7 + [2] * 10 + [3]


def test_whole_sentences_are_kept_while_they_fit_and_the_best_columns_after_that() -> None:
    # Four sentences of four columns; the second is told best, then the fourth, whose last column stands out.
    scores = torch.full((6, 16), 0.01)
    scores[2:5, 4:8] = 0.2
    scores[2:5, 12:15], scores[2:5, 15] = 0.1, 0.3
    scores[0, 0], scores[5, 1] = 9.0, 9.0  # The first and last layers do not tell which sentence.
    sentences = torch.arange(4).repeat_interleave(4)
    kept = need.chosen(scores, 0.375, sentences)
    assert {len(each) for each in kept} == {6}
    assert all({4, 5, 6, 7} < set(each.tolist()) for each in kept)
    # The rest is each layer's own.
    assert kept[0].tolist()[0] == 0
    assert kept[5].tolist()[0] == 1
    assert kept[3].tolist()[-1] == 15
    assert need.chosen(scores, 0.5, sentences)[3].tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    # A sentence that does not fit is not begun: the best columns of each layer are kept instead.
    assert 15 in need.chosen(scores, 0.13, sentences)[3].tolist()
    # Without sentences, each layer keeps its own.
    alone = need.chosen(scores, 0.0625, None)
    assert alone[0].tolist() == [0]
    assert alone[5].tolist() == [1]
    assert alone[3].tolist() == [15]


@pytest.mark.parametrize(
    ("channel", "question", "message"),
    [
        ("need@0", QUESTION, "'0' is no share"),
        ("need@1.5", QUESTION, "'1.5' is no share"),
        ("need@half", QUESTION, "'half' is no share"),
        ("need:guess@0.3", QUESTION, "no scorer named 'guess'"),
        ("need:atention@0.3", QUESTION, "Did you mean 'attention'"),
        ("need:backfill=x@0.3", QUESTION, "'x' is no number"),
        ("need@0.3+int3", QUESTION, "Did you mean 'int"),
        ("need@0.001", QUESTION, "is none: nothing would be handed over"),
        ("need@0.3", "", "The need is empty"),
        ("need@0.3", " ... ?", "The need is empty"),
        ("need@0.3", "Кто управляет мельницей?", "written in Cyrillic letters, the source in Latin"),
        ("need@0.3", "谁经营磨坊?", "written in Cjk letters"),
    ],
)
def test_what_cannot_be_needed_is_refused(
    deep: TransformersEngine, deliver: Deliver, channel: str, question: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        deliver(channel, Agent("vera", deep), (Agent("lyra", deep), SOURCE), question=question)


def test_scripts_of_one_language_are_one() -> None:
    need.require_sensible("だれが水車を動かしますか", "水車小屋経営")
    need.require_sensible("Wer betreibt die Mühle?", SOURCE)


def test_attention_is_refused_by_engines_without_it_and_other_scorers_are_not(
    fake: FakeEngine, deliver: Deliver
) -> None:
    lyra, vera = Agent("lyra", fake), Agent("vera", fake)
    with pytest.raises(UsageError, match="'need' needs attention weights, and the engine 'fake' does not show them"):
        deliver("need@0.3", vera, (lyra, SOURCE), question=QUESTION)
    made = deliver("need:recency@0.3", vera, (lyra, SOURCE), question=QUESTION)
    assert made.tokens_skipped == int(0.3 * len(SOURCE))


def test_several_senders_each_keep_what_is_needed_of_theirs(deep: TransformersEngine, deliver: Deliver) -> None:
    receiver = Agent("vera", deep)
    read = ((Agent("lyra", deep), SOURCE), (Agent("cc", deep), "Rain fell on the inn. Silk is sold there."))
    made = deliver("need@0.5", receiver, *read, question=QUESTION)
    assert made.tokens_skipped == sum(int(0.5 * len(text)) for _, text in read)


def test_backfill_changes_values_alone(deep: TransformersEngine, deliver: Deliver) -> None:
    receiver, read = Agent("vera", deep), (Agent("lyra", deep), SOURCE)
    plain, filled = (
        deliver(name, receiver, read, question=QUESTION) for name in ("need@0.1+float32", "need:backfill=2@0.1+float32")
    )
    assert plain.past is not None
    assert filled.past is not None
    assert filled.channel == "need:backfill=2@0.1+float32"
    assert plain.bytes_moved == filled.bytes_moved
    changed = 0.0
    for mine, other in zip(filled.past.layers, plain.past.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.positions, other.positions)
        changed = max(changed, float((mine.values - other.values).abs().max()))
    assert changed > 0
