"""A training from its configuration to a fuser on the shelf, killed on its way or not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from unspoken.api import load_model
from unspoken.channels.fused import sent_rows
from unspoken.errors import StorageError, UsageError
from unspoken.fusers.bottleneck import Bottleneck
from unspoken.fusers.pair import Pair
from unspoken.session import Agent
from unspoken.train import starts, study
from unspoken.train.card import curve
from unspoken.train.config import Choices, Texts, Training
from unspoken.train.loop import CHECKPOINT, Progress, losses
from unspoken.train.study import Trained, Watchers, measured, open_pair, run_training

TEXT = (
    "The harbour of Old Marle was built in 1784 by two brothers. Its walls are of grey stone, and they have never "
    "fallen. Each autumn the fishermen bring their boats behind them."
)


class Killed(BaseException):
    """What a kill is to a test."""


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Gates are kept apart; an edit of the code while tests run makes no other run of it."""
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("GIT_DIR", os.devnull)


@pytest.fixture
def planned(tiny_folders: tuple[Path, Path], tmp_path: Path) -> Callable[..., Training]:
    """Make a short training between the tiny models."""
    (tmp_path / "t.txt").write_text(TEXT)
    reader, answerer = map(str, tiny_folders)
    fields: dict[str, Any] = {
        "name": "tiny", "sender": reader, "receiver": answerer, "rank": 6, "width": 8, "steps": 6, "questions": 2,
        "calibration": 5, "warmup": 2, "rate": 5e-3, "guard": 0.3, "checkpoint": 2, "seed": 3,
        "material": (Choices(6), Texts(str(tmp_path / "t.txt"))),
    }  # fmt: skip
    return lambda **changes: Training(**fields | changes)


def watchers(killed_at: int | None = None, told: list[Any] | None = None) -> Watchers:
    """Watch a training, and kill it after a step."""
    told = [] if told is None else told

    def training(at: Progress) -> None:
        told.append(at.step)
        if at.step == killed_at:
            raise Killed

    return Watchers(lambda *each: told.append(each), training)


def trained(training: Training, folder: Path, watch: Watchers | None = None) -> Trained:
    """Train in a folder."""
    return run_training(training, folder / "results", folder / "models", watch or watchers())


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(each.name for each in folder.iterdir())


def test_a_training_leaves_a_fuser_and_a_run(
    planned: Callable[..., Training], tiny_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    told: list[Any] = []
    training = planned(attention=0.1)
    done = trained(training, tmp_path, watchers(told=told))
    assert done.fuser == tmp_path / "models" / "tiny"
    assert names(done.fuser) == ["README.md", "config.json", "loss.svg", "model.safetensors", "training.yaml"]
    assert done.run.parent == tmp_path / "results" / "fusers"
    assert {"config.yaml", "env.json", "loss.jsonl", "loss.svg", "metrics.json"} <= set(names(done.run))
    assert not list(tmp_path.rglob("*.part"))
    # Both folders tell how it was trained, and it can be made again from either.
    for path in (done.fuser / "training.yaml", done.run / "config.yaml"):
        assert msgspec.yaml.decode(path.read_bytes(), type=Training) == training
    metrics = json.loads((done.run / "metrics.json").read_bytes())
    assert metrics == done.metrics
    assert (metrics["experiment"], metrics["name"], metrics["kind"]) == ("fusers", "tiny", "bottleneck")
    assert (metrics["lessons"], metrics["steps"]) == (7, 6)
    assert metrics["seconds"].keys() == {"columns", "start", "steps"}
    # Every start adds its time, and both are in the file.
    (done.run / "times.txt").write_text("columns 1.5\nstart 2.25\ncolumns 0.5\nstart 0.125\n")
    assert measured(done.run, Bottleneck.from_pretrained(done.fuser), training, 7)["seconds"] == {
        "columns": 2.0, "start": 2.375, "steps": metrics["seconds"]["steps"]
    }  # fmt: skip
    assert {"answer", "attention", "guard"} == metrics["last_losses"].keys()
    for part, mean in metrics["last_losses"].items():
        values = [each[part] for each in losses(done.run) if part in each]
        assert mean == pytest.approx(sum(values) / len(values))
    fuser = Bottleneck.from_pretrained(done.fuser)
    reader, answerer = (load_model(str(folder)) for folder in tiny_folders)
    assert fuser.pair == Pair.of(reader.spec, answerer.spec)
    assert metrics["trained_parameters"] == sum(each.numel() for each in fuser.parameters())
    assert metrics["parameters"] == sum(each.numel() for each in fuser.state_dict().values())
    assert fuser.leave is not None
    assert bool(fuser.leave.weight.any())  # It has left the regression it began at.
    env = json.loads((done.run / "env.json").read_bytes())
    assert env["pair"] == msgspec.to_builtins(fuser.pair)
    assert len(env["starts"]) == 1
    card = (done.fuser / "README.md").read_text()
    for words in (f"{metrics['parameters']:,}", fuser.pair.sender.weights, "7, 6", f"fusers/{done.run.name}"):
        assert words in card
    assert [each for each in told if not isinstance(each, int)][:2] == [
        ("sender's columns", 0, 7), ("sender's columns", 7, 7)
    ]  # fmt: skip
    assert ("regression", 5, 5) in told
    assert [each for each in told if isinstance(each, int)] == list(range(1, 7))


def test_what_is_taught_is_learnt(planned: Callable[..., Training], tmp_path: Path) -> None:
    done = trained(planned(steps=28, guard=0.0, rate=2e-2), tmp_path)
    answers = [each["answer"] for each in losses(done.run)]
    assert sum(answers[-7:]) < 0.9 * sum(answers[:7])  # Each lesson once, at the end and at the beginning.


@pytest.mark.parametrize("kill", [1, 5])
def test_killed_and_begun_again_it_is_the_same_fuser(
    planned: Callable[..., Training], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    training = planned(attention=0.1)
    whole = trained(training, tmp_path / "whole")
    with pytest.raises(Killed):
        trained(training, tmp_path / "broken", watchers(killed_at=kill))
    assert not (tmp_path / "broken" / "models").exists()
    # What the killed run has prepared is taken from where it kept it.
    monkeypatch.setattr(starts, "calibrated", lambda *_: pytest.fail("fitted again"))
    monkeypatch.setattr("unspoken.train.store.sent_rows", lambda *_: pytest.fail("read again"))
    torch.manual_seed(99)
    again = trained(training, tmp_path / "broken")
    for name in ("config.json", "model.safetensors"):
        assert (again.fuser / name).read_bytes() == (whole.fuser / name).read_bytes()
    apart = [[{**each, "seconds": 0} for each in losses(run)] for run in (whole.run, again.run)]
    assert apart[0] == apart[1]
    states = [torch.load(run / CHECKPOINT, weights_only=True)["module"] for run in (whole.run, again.run)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len(list((tmp_path / "broken" / "results" / "fusers").glob("2*"))) == 1
    assert len(json.loads((again.run / "env.json").read_bytes())["starts"]) == 2


def test_a_finished_training_is_not_gone_on_with_and_another_one_is_another_run(
    planned: Callable[..., Training], tmp_path: Path
) -> None:
    first = trained(planned(steps=1), tmp_path)
    kept = {name: (first.run / name).read_bytes() for name in names(first.run) if (first.run / name).is_file()}
    second, third = trained(planned(steps=1), tmp_path), trained(planned(steps=1, seed=4), tmp_path)
    assert len({first.run, second.run, third.run}) == 3
    assert {name: (first.run / name).read_bytes() for name in kept} == kept
    assert third.fuser == first.fuser  # The shelf has the last one of a name.
    assert Bottleneck.from_pretrained(third.fuser)


def test_no_steps_leave_the_regression_as_it_is(
    planned: Callable[..., Training], tiny_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    plain, begun = (trained(planned(steps=0, width=width, rank=40, name=f"w{width}"), tmp_path) for width in (0, 8))
    assert plain.metrics["last_losses"] == {}
    assert (plain.metrics["steps"], plain.metrics["trained_parameters"]) == (0, 0)
    assert "none: no steps" in (plain.fuser / "README.md").read_text()
    assert not list(tmp_path.rglob("loss.svg"))  # An empty drawing would say nothing.
    reader, answerer = (load_model(str(folder)) for folder in tiny_folders)
    rows = sent_rows(Agent("lyra", reader).read(TEXT), answerer)
    fusers = [Bottleneck.from_pretrained(each.fuser) for each in (plain, begun)]
    with torch.no_grad():
        assert torch.equal(fusers[0](rows), fusers[1](rows))


def test_a_noisy_sender_is_the_receivers_own_model_with_noise(
    planned: Callable[..., Training], tiny_folders: tuple[Path, Path]
) -> None:
    answerer = str(tiny_folders[1])
    sender, receiver = open_pair(planned(sender=answerer, sender_noise=0.05))
    assert sender.spec.weights != receiver.spec.weights
    assert sender.spec.architecture == receiver.spec.architecture
    again, _ = open_pair(planned(sender=answerer, sender_noise=0.05))
    assert again.spec.weights == sender.spec.weights
    other, _ = open_pair(planned(sender=answerer, sender_noise=0.05, seed=4))
    assert other.spec.weights != sender.spec.weights
    with pytest.raises(UsageError, match="The sender is to be a noisy copy of"):
        open_pair(planned(sender_noise=0.05))
    # Without noise one model is loaded once.
    own = open_pair(planned(sender=answerer))
    assert own[0] is own[1]


def test_noise_is_a_share_of_each_matrix(tiny_folders: tuple[Path, Path]) -> None:
    from unspoken.engines.fake import FakeEngine
    from unspoken.engines.transformers import TransformersEngine
    from unspoken.engines.tuned import noisy_copy

    engine = load_model(str(tiny_folders[1]))
    copy = noisy_copy(engine, 0.05, seed=1)
    assert isinstance(engine, TransformersEngine)
    before, after = dict(engine._model.named_parameters()), dict(copy._model.named_parameters())
    for name, weight in before.items():
        noise = (after[name] - weight).detach()
        if name.endswith("_proj.weight"):
            assert float(noise.std() / weight.detach().std()) == pytest.approx(0.05, rel=0.1)
            assert abs(float(noise.mean())) < 0.01 * float(weight.detach().std())
        else:
            assert not noise.any()
    assert copy.spec.name.endswith(", with 5% noise")
    for share in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="is none"):
            noisy_copy(engine, share)
    with pytest.raises(UsageError, match="The weights of the engine 'fake' cannot be changed"):
        noisy_copy(FakeEngine(), 0.1)


def test_where_nothing_can_be_written_is_told(planned: Callable[..., Training], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        run_training(planned(steps=1), tmp_path / "file", tmp_path / "models", watchers())
    with pytest.raises(StorageError, match="cannot be written"):
        run_training(planned(steps=1), tmp_path / "results", tmp_path / "file", watchers())
    # The run is unfinished, and finishes once there is room.
    done = run_training(planned(steps=1), tmp_path / "results", tmp_path / "models", watchers())
    assert len(list((tmp_path / "results" / study.EXPERIMENT).glob("2*"))) == 1
    assert (done.run / "metrics.json").is_file()


def test_a_ranks_that_cannot_be_had_is_refused(planned: Callable[..., Training], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rank 999 cannot be had"):
        trained(planned(rank=999), tmp_path)


def test_the_curve_shows_each_part_of_the_loss() -> None:
    noted = [{"step": at, "seconds": 0.1, "answer": 3.0 - at / 100} | ({"guard": 1.0} if at % 3 else {})
             for at in range(120)]  # fmt: skip
    drawn = curve(noted)
    assert drawn.startswith(b"<?xml")
    assert drawn == curve(noted)
    assert curve([]).startswith(b"<?xml")
