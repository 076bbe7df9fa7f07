"""What a training's configuration may say, and what is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from unspoken.errors import StorageError, UsageError
from unspoken.train import facts
from unspoken.train.config import Choices, Facts, Lists, Texts, Training, load_training

ROOT = Path(__file__).resolve().parents[2]
PLAIN = "name: x\nsender: a\nreceiver: b\nmaterial: [{type: choices, lessons: 2}]\n"


def written(folder: Path, text: str) -> Path:
    """A configuration file."""
    path = folder / "training.yaml"
    path.write_text(text)
    return path


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    found = load_training(written(tmp_path, PLAIN))
    assert found == Training("x", "a", "b", (Choices(2),))
    assert (found.kind, found.rank, found.width, found.steps, found.guard) == ("bottleneck", 256, 512, 2000, 0.0)


def test_every_material_and_field_can_be_given(tmp_path: Path) -> None:
    text = """
name: a-1.b
sender: models/x.gguf
receiver: smollm2-135m
sender_engine: llamacpp
material:
  - {type: facts, lessons: 3, facts: 8}
  - {type: lists, lessons: 4, words: 5}
  - {type: texts, path: t.txt}
  - {type: texts, path: t.txt, lessons: 2, letters: 90}
rank: 3
rate: 1.0e-3
seed: 5
"""
    found = load_training(written(tmp_path, text))
    assert found.material == (Facts(3, 8), Lists(4, 5), Texts("t.txt"), Texts("t.txt", 2, 90))
    assert (found.sender_engine, found.rank, found.rate, found.seed) == ("llamacpp", 3, 1e-3, 5)
    again = load_training(written(tmp_path, msgspec.yaml.encode(found).decode()))
    assert again == found


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "fusers").glob("*.yaml")), ids=lambda path: path.name)
def test_the_published_configurations_are_valid(path: Path) -> None:
    assert load_training(path).name == path.stem


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("speed: 3", "unknown field `speed`"),
        ("steps: many", "Expected `int`"),
        ("kind: other", "Invalid enum value 'other'"),
        ("steps: -1", "steps is -1, expected 0 or more"),
        ("rank: 0", "rank is 0, expected 1 or more"),
        ("width: -1", "width is -1, expected 0"),
        ("questions: 0", "questions is 0"),
        ("accumulate: 0", "accumulate is 0"),
        ("checkpoint: 0", "checkpoint is 0"),
        ("calibration: 0", "calibration is 0"),
        ("warmup: -1", "warmup is -1"),
        ("attention: -0.5", "attention is -0.5"),
        ("attention: .inf", "attention is inf"),
        ("decay: .nan", "decay is nan"),
        ("sender_noise: -0.1", "sender_noise is -0.1"),
        ("guard: 1.0", "guard is 1.0"),
        ("guard: .nan", "guard is nan"),
        ("rate: 0", "its rate 0"),
        ("rate: .inf", "its rate inf"),
        ("clip: 0", "clip 0"),
        ("ridge: 0", "ridge 0"),
        ("width: 0", "has nothing to train in 2000 steps"),
        ("seed: -1", "`int` >= 0"),
        ("seed: 9223372036854775808", "seed"),
        ("kind: ridge", "2000 steps"),
        ("kind: c2c\nwidth: 0", "its width is 0"),
        ("kind: c2c\nguard: 0.1", "a guard of 0.1"),
        ("kind: c2c\nattention: 1", "an attention loss of 1"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_training(written(tmp_path, PLAIN + line))


def test_a_linear_map_alone_takes_no_steps(tmp_path: Path) -> None:
    assert load_training(written(tmp_path, PLAIN + "width: 0\nsteps: 0")).width == 0


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".x", "-x", "X", "a b", "a:b"])
def test_a_name_has_to_be_a_folders(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a folder's"):
        load_training(written(tmp_path, PLAIN.replace("name: x", f"name: '{name}'")))


@pytest.mark.parametrize(
    ("material", "message"),
    [
        ("[]", "names no material"),
        ("[{type: songs, lessons: 2}]", "songs"),
        ("[{lessons: 2}]", "type"),
        ("[{type: facts}]", "lessons"),
        ("[{type: facts, lessons: -1}]", "`int` >= 0"),
        ("[{type: facts, lessons: 1, facts: 5}]", "multiple of 2"),
        ("[{type: facts, lessons: 1, facts: 0}]", "`int` >= 2"),
        ("[{type: facts, lessons: 1, facts: 40}]", "`int` <= 38"),
        ("[{type: lists, lessons: 1, words: 1}]", "`int` >= 2"),
        ("[{type: texts, path: x, letters: 0}]", "`int` >= 1"),
        ("[{type: texts, path: x, words: 3}]", "words"),
    ],
)
def test_impossible_materials_are_refused(tmp_path: Path, material: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_training(written(tmp_path, f"name: x\nsender: a\nreceiver: b\nmaterial: {material}\n"))


def test_there_are_things_for_as_many_facts_as_may_be_asked_for() -> None:
    assert min(len(facts.ADJECTIVES), len(facts.THINGS), len(facts.POOLS["person"])) >= 38
    assert len(facts.RELATIONS) >= 38 // 2


@pytest.mark.parametrize("text", ["", "[]", "name: [", "name: x\nname: y", "\x00", "- 3"])
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is not valid"):
        load_training(written(tmp_path, text))
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(UsageError, match="is not valid"):
        load_training(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(StorageError, match="cannot be read"):
            load_training(path)
