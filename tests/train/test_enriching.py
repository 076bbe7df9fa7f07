"""C2C's fusers are taught by what the receiver answers with both readings, and answer as they were taught."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.channels.fused import sent_rows
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Delivery, Request
from unspoken.channels.text import content
from unspoken.engines.protocol import Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache
from unspoken.fusers import load_fuser
from unspoken.fusers.c2c_kept import C2C
from unspoken.fusers.pair import Pair
from unspoken.manifest import Step
from unspoken.session import Agent, Session
from unspoken.train.config import Choices, Training
from unspoken.train.lesson import Asked, Lesson
from unspoken.train.loop import Course, Progress, losses, train
from unspoken.train.receiver import Receiver
from unspoken.train.store import AGENTS, Store
from unspoken.train.teaching import Enriching, Teaching, receivers

LESSONS = (
    Lesson("Anna runs the mill.", (Asked("Who runs it?", "Anna", "It is"), Asked("What is run?", "the old mill"))),
    Lesson("Bob left at 9.", (Asked("When?", "at 9"),)),
    Lesson("The bay is calm.", (Asked("How is it?", "calm"), Asked("What is?", "bay"), Asked("Is it?", "yes"))),
)


class Killed(BaseException):
    """What a kill is to a test."""


@pytest.fixture
def reader(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """The sender: of another kind and size than the receiver."""
    return tiny_engine("qwen3", 3, num_hidden_layers=3, head_dim=8)


@pytest.fixture
def answerer(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """The receiver."""
    return tiny_engine("llama", num_hidden_layers=2)


@pytest.fixture
def store(reader: TransformersEngine, answerer: TransformersEngine, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The sender's columns of the lessons."""
    made = Store(tmp_path_factory.mktemp("columns"), LESSONS, Pair.of(reader.spec, answerer.spec), "transformers")
    made.fill(reader, answerer, lambda *_: None)
    return made


def planned(**changes: Any) -> Training:
    """A short training."""
    fields: dict[str, Any] = {
        "name": "tiny", "sender": "a", "receiver": "b", "kind": "c2c", "width": 16, "steps": 8, "questions": 4,
        "warmup": 2, "rate": 1e-2, "checkpoint": 3, "seed": 3, "material": (Choices(1),),
    }  # fmt: skip
    return Training(**fields | changes)


def drawn(reader: TransformersEngine, answerer: TransformersEngine, **settings: Any) -> C2C:
    """A fuser of the two models, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        pair, rope = Pair.of(reader.spec, answerer.spec), reader.spec.rope
        return C2C(msgspec.to_builtins(pair), msgspec.to_builtins(rope), **{"width": 16} | settings)


def gated(fuser: C2C, logit: float) -> C2C:
    """A fuser in use, all of its gates at a logit, and what they let through large enough to be heard."""
    with torch.no_grad():
        for name, parameter in fuser.named_parameters():
            if name.endswith("gate_logit"):
                parameter.fill_(logit)
            elif name.endswith("proj_out.weight"):
                parameter.mul_(8)
    return fuser.eval()


def fused(fuser: C2C | None, reader: TransformersEngine, vera: Agent, text: str, sender: str) -> KVCache:
    """What the receiver has read, enriched the way it is in use; its own columns if there is no fuser."""
    own = vera.engine.prefill(content(vera, text), vera.prefix)
    if fuser is None:
        return own
    # As the store keeps them.
    rows = sent_rows(Agent(sender, reader).read(text), vera.engine).to(torch.float16).to(torch.float32)
    segment = own.slice(vera.prefix.columns, own.columns)
    with torch.no_grad():
        layers = fuser.enrich(rows, segment)
    return vera.prefix.concat(segment.rebuilt(Step("fuse"), lambda layer: layers[layer.index]))


def said(vera: Agent, asked: Asked, past: KVCache) -> float:
    """Mean negative log-probability of an answer's tokens, read by the engine on top of columns."""
    prompt, answer = vera.asked(asked.question, asked.stem), vera.engine.encode(f" {asked.answer}.")
    logits = vera.engine.logits(prompt + Prompt((Piece("template", answer),)), past).double()
    start = len(prompt.token_ids) - 1
    return -sum(float(logits[start + at].softmax(-1)[token].log()) for at, token in enumerate(answer)) / len(answer)


@pytest.mark.parametrize(("agent", "logit"), [("lyra", 1.0), ("vera", 1.0), ("cc", 1.0), ("vera", -1.0)])
def test_the_loss_is_the_answers_cross_entropy_on_the_columns_as_fused_in_use(
    reader: TransformersEngine, answerer: TransformersEngine, store: Store, agent: str, logit: float
) -> None:
    fuser = gated(drawn(reader, answerer), logit)
    teaching = Enriching(fuser, Teaching(planned(), LESSONS, store, (Receiver(agent, answerer),)))
    vera = Agent(agent, answerer)
    for number, lesson in enumerate(LESSONS):
        parts = teaching.loss(number, random.Random(0))
        assert list(parts) == ["answer"]
        expected = {}
        for by, columns in (("it", fuser), ("none", None)):
            past = fused(columns, reader, vera, lesson.text, AGENTS[number])
            expected[by] = sum(said(vera, each, past) for each in lesson.asked) / len(lesson.asked)
        assert float(parts["answer"].detach()) == pytest.approx(expected["it"], abs=2e-4)
        # An open gate is heard; a closed one leaves what the receiver has read.
        apart = abs(expected["it"] - expected["none"])
        assert apart > 1e-2 if logit > 0 else apart == 0


def test_questions_and_receivers_are_drawn(
    reader: TransformersEngine, answerer: TransformersEngine, store: Store
) -> None:
    fuser = gated(drawn(reader, answerer), 1.0)
    teaching = Enriching(fuser, Teaching(planned(questions=1), LESSONS, store, receivers(answerer)))
    assert [each.agent.name for each in teaching.teaching.receivers] == list(AGENTS)
    possible = {}
    for name in AGENTS:
        past = fused(fuser, reader, Agent(name, answerer), LESSONS[2].text, AGENTS[2])
        for asked in LESSONS[2].asked:
            possible[name, asked.question] = said(Agent(name, answerer), asked, past)
    seen = set()
    for seed in range(40):
        loss = float(teaching.loss(2, random.Random(seed))["answer"].detach())
        seen |= {key for key, value in possible.items() if abs(value - loss) < 2e-4}
        assert any(abs(value - loss) < 2e-4 for value in possible.values())
    assert seen == set(possible)


def test_gradients_reach_the_fuser_alone(
    reader: TransformersEngine, answerer: TransformersEngine, store: Store
) -> None:
    fuser = drawn(reader, answerer).train()
    teaching = Enriching(fuser, Teaching(planned(), LESSONS, store, receivers(answerer)))
    teaching.loss(0, random.Random(0))["answer"].backward()
    for name, parameter in fuser.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
    for engine in (reader, answerer):
        assert all(each.grad is None for each in engine._model.parameters())


def test_in_training_noise_and_dropout_are_the_loss_of_the_fuser_as_it_draws_them(
    reader: TransformersEngine, answerer: TransformersEngine, store: Store
) -> None:
    fuser = gated(drawn(reader, answerer, dropout=0.3), 0.0).train()
    vera = Agent("vera", answerer)
    teaching = Enriching(fuser, Teaching(planned(), LESSONS, store, (Receiver("vera", answerer),)))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(float(teaching.loss(0, random.Random(0))["answer"].detach()))
        torch.manual_seed(seed)
        past = fused(fuser, reader, vera, LESSONS[0].text, AGENTS[0])
        expected = sum(said(vera, each, past) for each in LESSONS[0].asked) / len(LESSONS[0].asked)
        assert found[-1] == pytest.approx(expected, abs=2e-4)
    assert abs(found[0] - found[1]) > 1e-2


def course(fuser: C2C, training: Training, store: Store, answerer: TransformersEngine) -> Course:
    """Lessons for a fuser, one at a time, its gates annealed."""
    teaching = Enriching(fuser, Teaching(training, LESSONS, store, receivers(answerer)))
    return Course(teaching.loss, len(LESSONS), anneal=fuser.update_temperature)


def test_what_is_taught_is_learnt(
    reader: TransformersEngine, answerer: TransformersEngine, store: Store, tmp_path: Path
) -> None:
    training, fuser = planned(steps=36, checkpoint=100), drawn(reader, answerer, anneal_steps=36)
    train(fuser, course(fuser, training, store, answerer), training, tmp_path, lambda _: None)
    answers = [each["answer"] for each in losses(tmp_path)]
    assert sum(answers[-9:]) < 0.85 * sum(answers[:9])  # Each lesson three times, at the end and at the beginning.
    # In use, without noise, the receiver answers better than from what it has read alone.
    vera, after, before = Agent("vera", answerer), 0.0, 0.0
    assert all(p > 0 for name, p in fuser.named_parameters() if name.endswith("gate_logit"))
    for number, lesson in enumerate(LESSONS):
        for asked in lesson.asked:
            after += said(vera, asked, fused(fuser, reader, vera, lesson.text, AGENTS[number]))
            before += said(vera, asked, fused(None, reader, vera, lesson.text, AGENTS[number]))
    assert after < 0.85 * before


def test_killed_and_begun_again_it_ends_with_the_same_weights(
    reader: TransformersEngine, answerer: TransformersEngine, store: Store, tmp_path: Path
) -> None:
    training = planned(accumulate=2, questions=1)

    def trained(place: str, killed_at: int | None = None) -> C2C:
        def watch(at: Progress) -> None:
            if at.step == killed_at:
                raise Killed

        fuser, folder = drawn(reader, answerer, dropout=0.2, anneal_steps=8), tmp_path / place
        folder.mkdir(exist_ok=True)
        train(fuser, course(fuser, training, store, answerer), training, folder, watch)
        return fuser

    whole = trained("whole")
    for kill in (1, 5, 5):  # Before the first checkpoint, and twice behind the one of step 3.
        torch.manual_seed(1000 + kill)  # Whatever was drawn before, in another process, does not matter.
        with pytest.raises(Killed):
            trained("broken", kill)
    torch.manual_seed(7)
    again = trained("broken")
    assert same(again.state_dict(), whole.state_dict())
    assert [noted(each) for each in losses(tmp_path / "broken")] == [noted(each) for each in losses(tmp_path / "whole")]
    # All of it has moved, and the gates' temperature is the last step's: 0.001 ^ (7 / 8).
    begun = drawn(reader, answerer, dropout=0.2, anneal_steps=8).state_dict()
    assert not any(torch.equal(whole.state_dict()[name], tensor) for name, tensor in begun.items())
    assert whole.get_buffer("fusing.fusers.1.gate_temperature").item() == pytest.approx(0.001 ** (7 / 8))
    assert not whole.training


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether all numbers are the same, bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def noted(line: dict[str, Any]) -> dict[str, Any]:
    """What was noted of a step, without the time it took."""
    return {name: value for name, value in line.items() if name != "seconds"}


@pytest.fixture
def kept(reader: TransformersEngine, answerer: TransformersEngine, tmp_path: Path) -> Path:
    """The folder of a fuser with open gates."""
    gated(drawn(reader, answerer), 1.0).save_pretrained(tmp_path / "kept")
    return tmp_path / "kept"


def delivered(name: str, sender: Agent, receiver: Agent, text: str) -> Delivery:
    """What a channel hands over."""
    (delivery,) = build_channel(name).send([Request((sender.read(text),), "Who?")], receiver)
    return delivery


def test_the_channel_hands_over_what_it_was_taught_on(
    reader: TransformersEngine, answerer: TransformersEngine, store: Store, kept: Path
) -> None:
    fuser, vera = load_fuser(str(kept)), Agent("vera", answerer)
    assert isinstance(fuser, C2C)
    teaching = Enriching(fuser, Teaching(planned(), LESSONS, store, (Receiver("vera", answerer),)))
    for number, lesson in enumerate(LESSONS):
        delivery = delivered(f"fused:{kept}+float16", Agent(AGENTS[number], reader), vera, lesson.text)
        assert delivery.past is not None
        loss = sum(said(vera, each, delivery.past) for each in lesson.asked) / len(lesson.asked)
        taught = float(teaching.loss(number, random.Random(0))["answer"].detach())
        assert loss == pytest.approx(taught, abs=2e-4)
        # Both have read; what travelled is the sender's columns, one for each of the receiver's tokens.
        tokens = len(answerer.encode(lesson.text))
        assert (delivery.tokens_prefilled, delivery.tokens_skipped) == (tokens, 0)
        assert delivery.bytes_moved == 2 * tokens * 2 * 3 * 2 * 8
        assert delivery.past.positions.tolist() == list(range(vera.prefix.columns + tokens))
        assert Step("fuse", {"fuser": str(kept), "kind": "c2c"}) in delivery.past.manifest.lineage
        before = delivery.past.slice(0, vera.prefix.columns)
        assert all(torch.equal(a.keys, b.keys) for a, b in zip(before.layers, vera.prefix.layers, strict=True))


def test_it_answers_and_closed_gates_answer_as_from_the_text(
    reader: TransformersEngine, answerer: TransformersEngine, tmp_path: Path
) -> None:
    answers = {}
    for logit in (-1.0, 1.0):
        gated(drawn(reader, answerer), logit).save_pretrained(tmp_path / f"at{logit:.0f}")
    for channel in ("full-text", f"fused:{tmp_path}/at-1", f"fused:{tmp_path}/at1"):
        session = Session(Agent("lyra", reader), Agent("vera", answerer), channel=channel)
        reply = session.ask("vera", "Who runs the mill?", about=LESSONS[0].text, new_tokens=8)
        answers[channel] = reply.generation.token_ids
        assert reply.delivery.tokens_prefilled >= len(answerer.encode(LESSONS[0].text))
    from_text, closed, opened = answers.values()
    assert closed == from_text
    assert opened != from_text


def test_another_pair_is_refused(
    reader: TransformersEngine, answerer: TransformersEngine, kept: Path, tiny_engine: Callable[..., TransformersEngine]
) -> None:
    other = tiny_engine("llama", 9, num_hidden_layers=2)
    for sender, receiver, said_of in (
        (reader, other, "the receiver's weights is "),
        (other, answerer, "the sender's weights is "),
        (answerer, reader, r"the sender's weights is .*the receiver's weights is "),
    ):
        with pytest.raises(IncompatibleCache, match=f"The fuser is for 'tiny-qwen3' to 'tiny-llama' .*{said_of}"):
            delivered(f"fused:{kept}", Agent("lyra", sender), Agent("vera", receiver), LESSONS[0].text)
