"""Agreement is counted as it says, and a fuser between identical models agrees everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.engines.tuned import noisy_copy
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.fusers.pair import Pair
from unspoken.fusers.ridge import Ridge
from unspoken.session import Agent
from unspoken.train.agreement import agreement, halves
from unspoken.train.calibrate import held_out, judges, solved
from unspoken.train.config import Texts, Training
from unspoken.train.lesson import Asked, Lesson
from unspoken.train.store import Store

Engines = Callable[..., TransformersEngine]
NAMES = ("Anna", "Bob", "Carla", "Dmitri", "Eve", "Farid", "Greta", "Hugo", "Ines", "Jun")
THINGS = ("mill", "harbour", "school", "bridge", "garden")


def text(number: int) -> str:
    """One of many texts."""
    first, second = NAMES[number % 10], NAMES[(3 * number + 1) % 10]
    return f"In {1800 + 7 * number} {first} left the old {THINGS[number % 5]} to {second}, who sold it for {number}0."


LESSONS = tuple(Lesson(text(number), (Asked("Who sold it?", NAMES[(3 * number + 1) % 10]),)) for number in range(12))
HELD = tuple(text(number) for number in range(30, 34))


def training(**changes: object) -> Training:
    """A closed form of everything, or of less."""
    fields: dict[str, object] = {
        "name": "tiny",
        "sender": "tiny",
        "receiver": "tiny",
        "material": (Texts("texts.txt"),),
        "kind": "ridge",
        "steps": 0,
        "sources": 1,
        "window": 2,
        "ridge": 1e-6,
    }
    return Training(**(fields | changes))  # type: ignore[arg-type]


def fitted(folder: Path, sender: Engine, receiver: Engine, **changes: object) -> Ridge:
    """A fuser of two models, fitted to the lessons."""
    pair = Pair.of(sender.spec, receiver.spec)
    store = Store(folder, LESSONS, pair, "transformers")
    store.fill(sender, receiver, lambda *_: None)
    return solved(training(**changes), pair, LESSONS, store, receiver, lambda *_: None)


def test_identical_models_choose_their_own_layers_and_agree(tmp_path: Path, tiny_engine: Engines) -> None:
    engine = tiny_engine()
    fuser = fitted(tmp_path, engine, engine)
    assert fuser.sources == ((0,), (1,))
    found = agreement(fuser, engine, engine, HELD, codec="float32")
    assert found.top1 == 1.0
    assert found.tokens == sum(len(engine.encode(halves(each)[1])) for each in HELD)
    # The other columns do change what is said: agreement is no matter of course.
    assert max(found.control, found.none) < 0.9


class Constant:
    """A translator that makes the same numbers of anything."""

    kind = "constant"

    def __init__(self, pair: Pair, column: Tensor) -> None:
        self.pair, self._column = pair, column

    def encode(self, rows: Float[Tensor, "columns sender"]) -> Float[Tensor, "columns message"]:
        """One number for each column."""
        return rows[:, :1]

    def decode(self, message: Float[Tensor, "columns message"]) -> Float[Tensor, "columns receiver"]:
        """The same columns, as many."""
        return self._column.expand(len(message), -1)


def test_agreement_is_the_share_of_equal_most_probable_tokens(tiny_engine: Engines) -> None:
    engine = tiny_engine()
    silent = Constant(Pair.of(engine.spec, engine.spec), torch.zeros(1, 128))
    found = agreement(silent, engine, engine, HELD)
    agent, equal, tokens = Agent("lyra", engine), 0, 0
    for each in HELD:
        first, second = halves(each)
        prompt = Prompt((Piece("content", engine.encode(second)),))
        whole = engine.logits(Prompt((Piece("content", engine.encode(first)),)) + prompt, agent.prefix)
        alone = engine.logits(prompt, agent.prefix)
        equal += int((whole[-len(alone) :].argmax(-1) == alone.argmax(-1)).sum())
        tokens += len(alone)
    assert (found.none, found.tokens) == (pytest.approx(equal / tokens), tokens)
    # Columns that say nothing of the text cannot tell it from another; only their number may differ.
    assert abs(found.top1 - found.control) < 0.05


def test_a_noisy_senders_columns_are_mended_by_the_map(tmp_path: Path, tiny_engine: Engines) -> None:
    receiver = tiny_engine()
    sender = noisy_copy(receiver, 0.3, 1)
    fuser = fitted(tmp_path, sender, receiver, sources=2, ridge=0.01)
    assert fuser.sources == ((0, 1), (1, 0))
    found = agreement(fuser, sender, receiver, HELD)
    unmapped = Ridge(msgspec.to_builtins(fuser.pair), [[0], [1]])
    for layer in range(2):
        unmapped.get_buffer(f"map_{layer}").copy_(torch.eye(64).reshape(4, 16, 64))
    assert found.top1 > agreement(unmapped, sender, receiver, HELD).top1 + 0.02
    assert found.top1 > found.control + 0.1


def test_a_text_is_cut_at_the_space_nearest_its_middle() -> None:
    assert halves("a bc def") == ("a bc", " def")
    assert halves(" one three ") == ("one", " three")
    with pytest.raises(UsageError, match="'Donaudampfschiff' cannot be halved"):
        halves("Donaudampfschiff")


def test_other_models_and_too_few_texts_are_refused(tmp_path: Path, tiny_engine: Engines) -> None:
    engine, other = tiny_engine(), tiny_engine("qwen3")
    fuser = Ridge(msgspec.to_builtins(Pair.of(engine.spec, engine.spec)), [[0], [1]])
    with pytest.raises(IncompatibleCache, match="the sender's weights"):
        agreement(fuser, other, engine, HELD)
    with pytest.raises(UsageError, match="1 texts has no control"):
        agreement(fuser, engine, engine, HELD[:1])


def test_an_eighth_of_the_lessons_is_held_out_and_eight_at_most() -> None:
    assert judges(range(2)) == {0}
    assert judges([3, 5, 8, 13, 21, 34, 55, 89, 90, 91, 92, 93, 94, 95, 96, 97]) == {3, 90}
    assert len(judges(range(1000))) == 8
    with pytest.raises(UsageError, match="to 1 lessons"):
        judges([4])


def test_what_is_held_out_is_the_text_as_the_receiver_holds_it(tiny_engine: Engines) -> None:
    engine = tiny_engine()
    reader = Agent("lyra", engine)
    own = reader.read(LESSONS[0].text).cache
    columns = len(engine.encode(LESSONS[0].text))
    held = held_out(reader, LESSONS[0], torch.zeros(columns, 128), own)
    start = reader.prefix.columns
    assert held.positions.tolist() == list(range(start, start + columns))
    asked = reader.asked("Who sold it?")
    shown = engine.queries(asked, own, 3)
    for layer, keys, values, queries, expected in zip(
        own.layers, held.keys, held.values, held.queries, shown, strict=True
    ):
        assert torch.equal(keys, layer.keys[:, start : start + columns])
        assert torch.equal(values, layer.values[:, start : start + columns])
        assert queries.shape == (4, min(32, len(asked.token_ids)), 16)
        assert torch.equal(queries[:, -3:], expected[:, -3:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 10}, "10 steps"),
        ({"ridge": 0.0}, "ridge 0.0"),
        ({"sources": 3}, "window is 2, expected 3"),
        ({"sources": 0}, "sources is 0, expected 1"),
    ],
)
def test_a_closed_form_is_not_trained_and_chooses_within_its_window(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        training(**changes)
