"""The receiver in training sees what the receiver in use sees, and judges itself as its definitions say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from unspoken.channels.kv import content_columns
from unspoken.engines.batch import Layout
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.fusers.pair import Side
from unspoken.fusers.rows import as_cache, as_rows
from unspoken.session import Agent
from unspoken.spec import RopeSpec
from unspoken.train.lesson import Asked
from unspoken.train.receiver import Exam, Receiver, answer_loss, attention_loss, guard_loss
from unspoken.transforms.place import place_behind
from unspoken.transforms.rope import angles, rotated, rotation, turn

SOURCE = "The old mill is run by Anna. It was calm."
ASKED = (Asked("Who runs the mill?", "Anna", "The mill is run by"), Asked("How was it?", "quite calm"))


def own_rows(engine: TransformersEngine, name: str = "vera") -> Tensor:
    """The receiver's own columns of the source, position-free."""
    return as_rows(content_columns(Agent(name, engine).read(SOURCE).cache))


def test_columns_are_placed_as_the_channel_places_them(engine: TransformersEngine) -> None:
    vera, receiver = Agent("vera", engine), Receiver("vera", engine)
    rows = torch.randn(17, Side.of(engine.spec).width, generator=torch.Generator().manual_seed(0))
    expected = place_behind(vera.prefix, as_cache(rows, engine.spec, [], "lyra"))
    for (keys, values), layer in zip(receiver.placed(rows), expected.layers, strict=True):
        assert torch.allclose(keys, layer.keys, atol=1e-6)
        assert torch.equal(values, layer.values)
    assert len(receiver.placed(rows)) == engine.spec.layers


def test_gradients_of_placed_columns_reach_the_rows_and_turn_back_as_the_keys_turned(
    tiny_engine: Callable[..., TransformersEngine],
) -> None:
    receiver, spec = Receiver("vera", tiny_engine()), tiny_engine().spec
    rows = torch.randn(5, Side.of(spec).width, requires_grad=True)
    toward = [(torch.randn_like(keys), torch.randn_like(values)) for keys, values in receiver.placed(rows)]
    placed = receiver.placed(rows)
    sum(
        (a * b).sum() for pair, to in zip(placed, toward, strict=True) for a, b in zip(pair, to, strict=True)
    ).backward()  # type: ignore[union-attr]
    # A rotation's gradient is the rotation back: the rows' is what the rows of the turned-back directions are.
    start = Agent("vera", tiny_engine()).prefix.columns
    back = rotation(-angles(torch.arange(start, start + 5), spec.rope))
    halves = [
        half
        for keys, values in toward
        for half in (turn(keys[:, start:].contiguous(), back, spec.rope), values[:, start:])
    ]
    assert rows.grad is not None
    assert torch.allclose(rows.grad, torch.cat([half.transpose(0, 1).flatten(1) for half in halves], 1), atol=1e-5)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_keys_turn_as_everywhere(pairing: str) -> None:
    rope = RopeSpec("default", pairing, (1.0, 0.3, 0.01))  # type: ignore[arg-type]
    keys = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))
    by = rotation(angles(torch.arange(3, 10), rope))
    assert torch.allclose(rotated(keys, by, rope), turn(keys, by, rope), atol=1e-6)
    other = RopeSpec("default", "half" if pairing == "interleaved" else "interleaved", rope.inverse_frequencies)
    assert not torch.allclose(rotated(keys, by, rope), turn(keys, by, other), atol=0.1)


def test_one_pair_turned_by_hand() -> None:
    quarter = torch.tensor([[torch.pi / 2]], dtype=torch.float64)
    rope = RopeSpec("default", "half", (1.0,))
    made = rotated(torch.tensor([[[3.0, 5.0]]]), rotation(quarter), rope)
    assert made[0, 0].tolist() == pytest.approx([-5.0, 3.0], abs=1e-6)


def test_an_exam_laid_out_by_hand(fake: FakeEngine, tiny_engine: Callable[..., TransformersEngine]) -> None:
    engine = tiny_engine()  # Its tokens are bytes.
    receiver, vera = Receiver("vera", engine), Agent("vera", engine)
    start = vera.prefix.columns
    exam = receiver.exam(ASKED, 11)
    prompts = [vera.asked(each.question, each.stem).token_ids for each in ASKED]
    answers = [engine.encode(" Anna."), engine.encode(" quite calm.")]
    assert [len(each) for each in answers] == [6, 12]
    # The last token of an answer is predicted and never read.
    assert exam.layout.token_ids.tolist() == [*prompts[0], *answers[0][:-1], *prompts[1], *answers[1][:-1]]
    assert exam.targets.tolist() == [*answers[0], *answers[1]]
    assert exam.first.tolist() == [0, 6]
    first, second = len(prompts[0]), len(prompts[0]) + 5 + len(prompts[1])
    assert exam.keep.tolist() == [*range(first - 1, first + 5), *range(second - 1, second + 11)]
    for at, token in zip(exam.keep.tolist(), exam.targets.tolist(), strict=True):
        follows = exam.layout.token_ids[at + 1].item() if at + 1 not in (first + 5, second + 11) else token
        assert follows == token
    # Each question stands right behind the columns, and sees them and itself alone.
    sizes = [first + 5, len(prompts[1]) + 11]
    assert exam.layout.positions.tolist() == [start + 11 + at for size in sizes for at in range(size)]
    allowed = exam.layout.allowed
    assert allowed.shape == (sum(sizes), start + 11 + sum(sizes))
    assert bool(allowed[:, : start + 11].all())
    assert allowed[:, start + 11 :].sum().item() == sum(size * (size + 1) // 2 for size in sizes)
    assert not allowed[sizes[0] :, start + 11 : start + 11 + sizes[0]].any()


def test_an_exam_on_own_columns_is_answered_as_after_reading(engine: TransformersEngine) -> None:
    receiver, vera = Receiver("vera", engine), Agent("vera", engine)
    rows = own_rows(engine)
    exam = receiver.exam(ASKED, len(rows))
    found = receiver.logits(receiver.placed(rows), exam)
    cache, expected = vera.read(SOURCE).cache, []
    for each in ASKED:
        prompt, answer = vera.asked(each.question, each.stem), engine.encode(f" {each.answer}.")
        logits = engine.logits(prompt + Prompt((Piece("template", answer[:-1]),)), cache)
        expected.append(logits[len(prompt.token_ids) - 1 :])
    assert torch.allclose(found, torch.cat(expected), atol=1e-3)


def test_the_answers_loss_by_hand() -> None:
    exam = made_exam(targets=[1, 0], first=[0])
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]]) + torch.tensor([[1.0, 2.0], [3.0, 3.0]]).log()
    # Probabilities 2/3 and 1/2 of what should be said.
    assert float(answer_loss(logits, exam)) == pytest.approx(-(torch.tensor([2 / 3, 1 / 2]).log()).mean().item())


def test_answers_count_alike_however_long() -> None:
    exam = made_exam(targets=[1, 0, 1, 1], first=[0, 3])
    right = torch.tensor([0.5, 0.25, 0.5, 0.125])
    logits = torch.stack((1 - right, right), dim=1)
    logits[1] = logits[1].flip(0)
    # Bits of the first answer: (1 + 2 + 1) / 3; of the second: 3.
    assert float(answer_loss(logits.log(), exam)) == pytest.approx((4 / 3 + 3) / 2 * math.log(2))


def test_the_guards_loss_by_hand() -> None:
    exam = made_exam(targets=[0, 0, 0], first=[0, 2])
    logits = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.25, 0.75]]).log() + 7.0
    without = torch.tensor([[0.8, 0.2], [0.25, 0.75]]).log()
    # KL(without || with) = sum p log(p / q) for the first token of each question, the others left out.
    first = 0.8 * torch.tensor(0.8 / 0.5).log().item() + 0.2 * torch.tensor(0.2 / 0.5).log().item()
    assert float(guard_loss(logits, exam, without)) == pytest.approx((first + 0.0) / 2, rel=1e-5)


def test_the_attentions_loss_by_hand() -> None:
    heard, own = (
        [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0]])],
        [torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0]])],
    )
    assert float(attention_loss(heard, own)) == pytest.approx((4 / 17 + 4 / 4) / 2)
    assert float(attention_loss(own, own)) == 0
    assert float(attention_loss([torch.zeros(1, 1)], [torch.zeros(1, 1)])) == 0


def test_own_columns_leave_nothing_to_learn_of_attention(tiny_engine: Callable[..., TransformersEngine]) -> None:
    engine = tiny_engine("qwen2")
    receiver, rows = Receiver("vera", engine), own_rows(engine)
    exam = receiver.exam(ASKED, len(rows))

    def heard(of: Tensor) -> list[Tensor]:
        told: list[Tensor] = []
        receiver.logits(receiver.placed(of), exam, told)
        return told

    again = as_rows(content_columns(receiver.own(SOURCE)))
    assert torch.equal(again, rows)
    assert float(attention_loss(heard(rows), heard(again))) == 0
    assert float(attention_loss(heard(rows + 0.1), heard(again))) > 1e-3


def test_where_nothing_changes_the_guard_loses_nothing(tiny_engine: Callable[..., TransformersEngine]) -> None:
    engine = tiny_engine()
    receiver = Receiver("vera", engine)
    exam = receiver.exam(ASKED, 0)
    with torch.no_grad():
        alone = receiver.logits(receiver.placed(torch.zeros(0, Side.of(engine.spec).width)), exam)
    without = receiver.without(ASKED)
    assert without.shape == (len(ASKED), engine.spec.vocabulary)
    assert torch.allclose(without.exp().sum(-1), torch.ones(2), atol=1e-5)
    assert float(guard_loss(alone, exam, without)) == pytest.approx(0, abs=1e-6)
    rows = own_rows(engine)
    with_them = receiver.exam(ASKED, len(rows))
    assert float(guard_loss(receiver.logits(receiver.placed(rows), with_them), with_them, without)) > 1e-3
    expected = functional.kl_div(
        engine.logits(Agent("vera", engine).asked(ASKED[0].question, ASKED[0].stem), Agent("vera", engine).prefix)[-1]
        .log_softmax(-1), without[0], log_target=True, reduction="sum",
    )  # fmt: skip
    assert float(expected) == pytest.approx(0, abs=1e-6)


def test_a_receiver_that_gradients_do_not_pass_through_is_refused(fake: FakeEngine) -> None:
    with pytest.raises(UsageError, match="cannot be trained with the engine 'fake'"):
        Receiver("vera", fake)


def made_exam(targets: list[int], first: list[int]) -> Exam:
    """An exam of which only targets and first tokens count."""
    nothing = torch.zeros(0, dtype=torch.int64)
    layout = Layout(nothing, nothing, torch.zeros(0, 0, dtype=torch.bool))
    return Exam(layout, torch.arange(len(targets)), torch.tensor(targets), torch.tensor(first))
