"""C2C's fusers begin as their seed draws them, are taught one lesson at a time, and survive a kill of the whole run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.api import load_model
from unspoken.channels.text import content
from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError
from unspoken.fusers import load_fuser
from unspoken.fusers.c2c_kept import C2C
from unspoken.fusers.pair import Pair
from unspoken.session import Agent
from unspoken.train import starts
from unspoken.train.config import Choices, Texts, Training
from unspoken.train.lesson import Asked, Lesson
from unspoken.train.loop import Progress
from unspoken.train.starts import Ready, Started
from unspoken.train.store import Store
from unspoken.train.study import Watchers, run_training
from unspoken.train.teaching import Teaching, receivers

LESSONS = (Lesson("Anna runs the mill.", (Asked("Who?", "Anna"),)), Lesson("Bob left.", (Asked("Who?", "Bob"),)))


class Killed(BaseException):
    """What a kill is to a test."""


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Gates are kept apart; an edit of the code while tests run makes no other run of it."""
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("GIT_DIR", os.devnull)


@pytest.fixture
def pair(tiny_folders: tuple[Path, Path]) -> tuple[Engine, Engine]:
    """A sender of 3 layers of 2 heads of 8, and a receiver of 2 layers of 2 heads of 16."""
    reader, answerer = (load_model(str(folder)) for folder in tiny_folders)
    return reader, answerer


@pytest.fixture
def begun(pair: tuple[Engine, Engine], tmp_path: Path) -> Callable[..., Started]:
    """Begin with a fuser."""
    reader, answerer = pair
    models = Pair.of(reader.spec, answerer.spec)
    store = Store(tmp_path / "columns", LESSONS, models, "transformers")
    store.fill(reader, answerer, lambda *_: None)

    def make(**changes: Any) -> Started:
        training = planned(**changes)
        return starts.c2c(
            Ready(training, models, reader.spec.rope, LESSONS, store, answerer, tmp_path, lambda *_: None)
        )

    return make


def planned(**changes: Any) -> Training:
    """A short training."""
    fields: dict[str, Any] = {
        "name": "tiny", "sender": "a", "receiver": "b", "kind": "c2c", "width": 8, "steps": 4, "questions": 2,
        "warmup": 1, "rate": 1e-2, "checkpoint": 2, "seed": 3, "material": (Choices(1),),
    }  # fmt: skip
    return Training(**fields | changes)


def state(started: Started) -> dict[str, Tensor]:
    """The weights it begins with."""
    return {name: tensor.clone() for name, tensor in started.fuser.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether all numbers are the same, bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_it_begins_as_its_seed_draws_it(begun: Callable[..., Started]) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.rand(7)  # Whatever was drawn before does not matter.
        states.append(state(begun(seed=seed)))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_before_the_first_step_it_leaves_the_receiver_as_it_is(
    begun: Callable[..., Started], pair: tuple[Engine, Engine]
) -> None:
    fuser, vera = begun().fuser.eval(), Agent("vera", pair[1])
    assert isinstance(fuser, C2C)
    own = vera.engine.prefill(content(vera, LESSONS[0].text))
    rows = torch.randn(own.columns, fuser.pair.sender.width, generator=torch.Generator().manual_seed(0))
    for (keys, values, _), layer in zip(fuser.enrich(rows, own), own.layers, strict=True):
        assert torch.equal(keys, layer.keys)
        assert torch.equal(values, layer.values)


def test_its_course_is_one_lesson_at_a_time_and_its_gates_harden_with_the_steps(
    begun: Callable[..., Started], pair: tuple[Engine, Engine]
) -> None:
    started = begun(steps=6, width=5)
    fuser, taught = started.fuser, started.course
    assert isinstance(fuser, C2C)
    assert taught is not None
    # What is drawn comes from one generator, which lessons side by side would take from in any order.
    assert (taught.lessons, taught.at_once) == (2, 1)
    taught.anneal(3)
    temperatures = [each.item() for name, each in fuser.named_buffers() if name.endswith("gate_temperature")]
    assert temperatures == pytest.approx([0.001**0.5] * 2)  # Half-way from 1 to 0.001.
    # The last layers beside each other; the columns of both go in.
    assert fuser.fusing.layers == {0: (1, 0), 1: (2, 1)}
    assert fuser.get_parameter("fusing.fusers.0.key_in.weight").shape == (5, 2 * 8 + 2 * 16)
    assert fuser.pair == Pair.of(pair[0].spec, pair[1].spec)
    parts = taught.loss(1, random.Random(0))
    assert list(parts) == ["answer"]
    assert parts["answer"].requires_grad


def test_no_steps_are_no_course(begun: Callable[..., Started]) -> None:
    started = begun(steps=0)
    assert started.course is None
    assert same(state(started), state(begun(steps=4)))


def test_a_guard_needs_another_lesson(tmp_path: Path, pair: tuple[Engine, Engine]) -> None:
    training = planned(kind="bottleneck", guard=0.5)
    store = Store(tmp_path, LESSONS, Pair.of(pair[0].spec, pair[1].spec), "transformers")
    assert Teaching(training, LESSONS, store, receivers(pair[1])).other(0, random.Random(0)) == 1
    with pytest.raises(UsageError, match="there is but one"):
        Teaching(training, LESSONS[:1], store, receivers(pair[1]))


def test_a_whole_training_killed_and_begun_again_leaves_the_same_fuser(
    tiny_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("The harbour of Old Marle was built in 1784 by two brothers. Its walls are grey.")
    sender, receiver = map(str, tiny_folders)
    training = planned(sender=sender, receiver=receiver, material=(Texts(str(tmp_path / "t.txt")), Choices(2)))

    def trained(place: str, killed_at: int | None = None) -> tuple[Path, dict[str, Any]]:
        def watch(at: Progress) -> None:
            if at.step == killed_at:
                raise Killed

        watchers = Watchers(lambda *_: None, watch)
        done = run_training(training, tmp_path / place / "results", tmp_path / place / "models", watchers)
        return done.fuser, done.metrics

    whole, metrics = trained("whole")
    with pytest.raises(Killed):
        trained("broken", 3)
    torch.manual_seed(99)
    again, _ = trained("broken")
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    fuser = load_fuser(str(whole))
    assert isinstance(fuser, C2C)
    config = json.loads((whole / "config.json").read_bytes())
    assert (config["kind"], config["width"], config["anneal_steps"]) == ("c2c", 8, 4)
    assert (metrics["kind"], metrics["steps"], metrics["last_losses"].keys()) == ("c2c", 4, {"answer"})
    assert metrics["trained_parameters"] == sum(each.numel() for each in fuser.parameters())
    assert "| kind | c2c |" in (whole / "README.md").read_text()
