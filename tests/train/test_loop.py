"""Training killed at any moment and begun again ends with the very weights and losses of one that was not."""

from __future__ import annotations

import json
import math
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unspoken.errors import StorageError
from unspoken.train.config import Choices, Training
from unspoken.train.loop import CHECKPOINT, LOSSES, Course, Progress, lesson_of, losses, rate, resumed, train

LESSONS = 5
INPUTS = torch.randn(LESSONS, 3, generator=torch.Generator().manual_seed(0))


class Killed(BaseException):
    """What a kill is to a test."""


class Taught:
    """A small module and a loss that draws in both ways there are; it can be killed at a call."""

    def __init__(self, killed_at: int | None = None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.module = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1))
        self.killed_at, self.calls = killed_at, 0
        self.seen: list[int] = []
        self.annealed: list[int] = []

    def loss(self, number: int, draw: random.Random) -> dict[str, Tensor]:
        if self.calls == self.killed_at:
            raise Killed
        self.calls += 1
        self.seen.append(number)
        noise = torch.rand(3)  # torch's own draws are the step's, too.
        made = self.module(INPUTS[number] + noise)
        if draw.random() < 0.3:
            return {"guard": (made - draw.random()).square().sum()}
        return {"answer": made.square().sum(), "attention": made.abs().sum()}

    def train(self, training: Training, folder: Path) -> list[Progress]:
        told: list[Progress] = []
        train(self.module, Course(self.loss, LESSONS, anneal=self.annealed.append), training, folder, told.append)
        return told

    def weights(self) -> list[Tensor]:
        return [each.detach().clone() for each in self.module.state_dict().values()]


def planned(**fields: Any) -> Training:
    """A short training."""
    return Training("x", "a", "b", (Choices(1),), **({"steps": 9, "checkpoint": 2, "warmup": 3, "rate": 0.05} | fields))


def noted(folder: Path) -> list[dict[str, Any]]:
    """The losses, without the time they took."""
    lines = [json.loads(line) for line in (folder / LOSSES).read_text().splitlines()]
    assert all(each.pop("seconds") >= 0 for each in lines)
    return lines


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Whether all numbers are the same, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@settings(max_examples=12)
@given(
    st.integers(1, 3),
    st.integers(1, 11),
    st.lists(st.integers(0, 27), max_size=3),
    st.booleans(),
)
def test_killed_at_any_step_it_ends_with_the_same_weights_and_losses(
    accumulate: int, checkpoint: int, kills: list[int], cut_line: bool
) -> None:
    training = planned(accumulate=accumulate, checkpoint=checkpoint)
    with tempfile.TemporaryDirectory() as place:
        whole, broken = Path(place, "whole"), Path(place, "broken")
        for folder in (whole, broken):
            folder.mkdir()
        undisturbed = Taught()
        undisturbed.train(training, whole)
        for kill in kills:
            again = Taught(killed_at=kill)
            torch.manual_seed(kill)  # Whatever was drawn before, in another process, does not matter.
            try:
                again.train(training, broken)
            except Killed:
                after_checkpoint = len(losses(broken)) % checkpoint
                if cut_line and after_checkpoint:
                    with (broken / LOSSES).open("a") as file:
                        file.write('{"step": 3, "ans')
        last = Taught()
        last.train(training, broken)
        assert same(last.weights(), undisturbed.weights())
        assert noted(broken) == noted(whole)
        assert [each["step"] for each in noted(whole)] == list(range(9))
    assert not same(Taught().weights(), undisturbed.weights())


def test_a_line_cut_off_right_after_a_checkpoint_is_forgotten(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Taught(killed_at=4).train(planned(), tmp_path)
    with (tmp_path / LOSSES).open("a") as file:
        file.write('{"step": 4, "ans')
    Taught().train(planned(), tmp_path)
    assert [each["step"] for each in losses(tmp_path)] == list(range(9))


def test_killed_while_it_writes_a_checkpoint_it_finds_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.save
    for folder in ("whole", "broken"):
        (tmp_path / folder).mkdir()
    undisturbed = Taught()
    undisturbed.train(planned(), tmp_path / "whole")
    saved = Counter[str]()

    def killed(data: dict[str, Any], path: Path) -> None:
        saved["times"] += 1
        whole(data, path)
        if saved["times"] == 3:
            path.write_bytes(path.read_bytes()[:100])
            raise Killed

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(Killed):
        Taught().train(planned(), tmp_path / "broken")
    last = Taught()
    last.train(planned(), tmp_path / "broken")
    assert last.seen == undisturbed.seen[4:]
    assert same(last.weights(), undisturbed.weights())
    assert noted(tmp_path / "broken") == noted(tmp_path / "whole")


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first, second = Taught(), Taught()
    first.train(planned(), tmp_path)
    assert second.train(planned(), tmp_path) == []
    assert second.calls == 0
    assert same(first.weights(), second.weights())
    assert not second.module.training


def test_each_step_is_told(tmp_path: Path) -> None:
    taught = Taught()
    told = taught.train(planned(accumulate=2), tmp_path)
    assert [(each.step, each.steps) for each in told] == [(step, 9) for step in range(1, 10)]
    assert taught.annealed == list(range(9))
    assert taught.calls == 18
    lines = noted(tmp_path)
    for each, line in zip(told, lines, strict=True):
        assert {"step": each.step - 1} | {name: round(value, 6) for name, value in each.losses.items()} == line
    assert {name for line in lines for name in line} == {"step", "answer", "attention", "guard"}
    assert losses(tmp_path / "elsewhere") == []


def test_lessons_side_by_side_teach_what_they_teach_one_after_the_other(tmp_path: Path) -> None:
    seen, ended = [], []
    for at_once in (1, 3):
        torch.manual_seed(4)
        module, threads = nn.Linear(3, 1), set()

        def loss(
            number: int, draw: random.Random, module: nn.Linear = module, threads: set[int] = threads
        ) -> dict[str, Tensor]:
            threads.add(threading.get_ident())
            time.sleep(0.002 * draw.random())
            return {"answer": (module(INPUTS[number]) - draw.random()).square().sum()}

        folder = tmp_path / str(at_once)
        folder.mkdir()
        train(module, Course(loss, LESSONS, at_once), planned(accumulate=3), folder, lambda _: None)
        ended.append(module.weight.detach())
        seen.append(len(threads))
    assert seen == [1, 3]
    assert torch.equal(*ended)
    assert noted(tmp_path / "1") == noted(tmp_path / "3")


def test_the_lessons_of_a_step_count_alike(tmp_path: Path) -> None:
    numbers = iter([1.0, 4.0])
    module = nn.Linear(1, 1)

    def loss(number: int, draw: random.Random) -> dict[str, Tensor]:
        return {"answer": module.bias.sum() * 0 + next(numbers)}

    told: list[Progress] = []
    train(module, Course(loss, 2), planned(steps=1, accumulate=2), tmp_path, told.append)
    assert told[0].losses == {"answer": 2.5}


def test_a_first_step_by_hand(tmp_path: Path) -> None:
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()

    def loss(number: int, draw: random.Random) -> dict[str, Tensor]:
        return {"answer": (module.weight * torch.tensor([3.0, -7.0])).sum()}

    train(module, Course(loss, 1), planned(steps=1, warmup=0, rate=0.01, decay=0.5), tmp_path, lambda _: None)
    # AdamW (arXiv 1711.05101, algorithm 2): the weight itself decays, and a first step is the sign of the gradient.
    expected = before * (1 - 0.01 * 0.5) - 0.01 * torch.tensor([1.0, -1.0])
    assert torch.allclose(module.weight, expected, atol=1e-6)


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW) -> None:
        gradients = [each.grad for group in self.param_groups for each in group["params"]]
        norms.append(float(torch.cat([each.flatten() for each in gradients]).norm()))
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    Taught().train(planned(clip=1e-3), tmp_path)
    assert norms == pytest.approx([1e-3] * 9, rel=1e-2)


def test_frozen_weights_stay(tmp_path: Path) -> None:
    taught = Taught()
    taught.module[0].weight.requires_grad_(False)
    frozen, free = taught.module[0].weight.clone(), taught.module[2].weight.clone()
    taught.train(planned(), tmp_path)
    assert torch.equal(taught.module[0].weight, frozen)
    assert not torch.equal(taught.module[2].weight, free)


def test_the_rate_by_hand() -> None:
    training = planned(steps=6, warmup=2, rate=8.0)
    low, high, half = 0.05, 0.95, math.sqrt(0.5)
    expected = [
        4.0,
        8.0,
        8.0,
        8 * (low + high * (1 + half) / 2),
        8 * (low + high / 2),
        8 * (low + high * (1 - half) / 2),
    ]
    assert [rate(step, training) for step in range(6)] == pytest.approx(expected)
    assert rate(6, training) == pytest.approx(8 / 20)
    assert rate(0, planned(steps=1, warmup=0, rate=8.0)) == 8.0
    assert [rate(step, planned(steps=2, warmup=4, rate=8.0)) for step in range(2)] == [2.0, 4.0]


def test_the_optimiser_steps_at_that_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    with pytest.raises(Killed):
        Taught(killed_at=5).train(planned(), tmp_path)
    Taught().train(planned(), tmp_path)
    every = [rate(step, planned()) for step in range(9)]
    assert rates == every[:5] + every[4:]


@pytest.mark.parametrize("lessons", [1, 2, 7, 30])
def test_every_lesson_comes_once_an_epoch(lessons: int) -> None:
    order = [lesson_of(at, lessons, seed=3) for at in range(4 * lessons)]
    epochs = [order[at : at + lessons] for at in range(0, len(order), lessons)]
    assert all(sorted(epoch) == list(range(lessons)) for epoch in epochs)
    if lessons == 30:
        assert len({tuple(epoch) for epoch in epochs}) == 4
        assert order != [lesson_of(at, lessons, seed=4) for at in range(4 * lessons)]


def test_the_order_of_lessons_does_not_change() -> None:
    # Source of the oracle: the order in which the published fusers were trained.
    assert [lesson_of(at, 6, 20261128) for at in range(12)] == [3, 1, 2, 0, 4, 5, 4, 2, 1, 5, 0, 3]


def test_steps_go_on_where_the_epoch_is(tmp_path: Path) -> None:
    taught = Taught()
    taught.train(planned(steps=5, accumulate=3), tmp_path)
    assert taught.seen == [lesson_of(at, LESSONS, planned().seed) for at in range(15)]
    assert Counter(taught.seen) == dict.fromkeys(range(LESSONS), 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-300]),
        lambda path: path.write_bytes(b"\x80\x02N."),
        lambda path: path.write_text("no checkpoint"),
        lambda path: torch.save({"step": 3}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save(torch.load(path) | {"step": "three"}, path),
        lambda path: torch.save(torch.load(path) | {"module": nn.Linear(3, 4).state_dict()}, path),
        lambda path: torch.save(torch.load(path) | {"optimiser": {"state": {}, "param_groups": []}}, path),
    ],
)
def test_a_checkpoint_that_is_damaged_or_of_another_fuser_is_refused(tmp_path: Path, damage: Any) -> None:
    Taught().train(planned(), tmp_path)
    damage(tmp_path / CHECKPOINT)
    with pytest.raises(StorageError, match=r"The checkpoint .* cannot be used: ") as told:
        Taught().train(planned(), tmp_path)
    assert told.value.hint == "Delete it to train from the start."


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"step": Path("x"), "module": random.Random}, tmp_path / CHECKPOINT)
    module = nn.Linear(1, 1)
    with pytest.raises(StorageError, match="cannot be used"):
        resumed(module, torch.optim.AdamW(module.parameters()), tmp_path)
