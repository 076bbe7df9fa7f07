"""`unspoken fuser`: a fuser trained from a file, killed or not, and shown for what it is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unspoken.cli.progress import bars, lines

from .program import Program, clear

CONFIG = """\
name: tiny
sender: {models}/reader
receiver: {models}/answerer
rank: 6
width: 8
material: [{{type: choices, lessons: 6}}]
calibration: 6
questions: 1
steps: {steps}
checkpoint: 5
warmup: 2
guard: 0.2
seed: 3
"""


@pytest.fixture(scope="module")
def models(
    tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of two tiny models' folders."""
    made = tmp_path_factory.mktemp("tiny")
    sizes = {"max_position_embeddings": 2048}
    kinds = {
        "reader": tiny_model("qwen2", 3, num_hidden_layers=3, head_dim=8, hidden_size=32, **sizes),
        "answerer": tiny_model("llama", 0, **sizes),
    }
    for name, model in kinds.items():
        model.save_pretrained(made / name)
        tiny_tokenizer().save_pretrained(made / name)
    return made


@pytest.fixture(autouse=True)
def _same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git, so that an edit of the code between two starts does not make it another run."""
    monkeypatch.setenv("GIT_DIR", os.devnull)


def written(folder: Path, models: Path, steps: int) -> Path:
    """A configuration of a short training."""
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.format(models=models, steps=steps))
    return path


def places(folder: Path) -> tuple[object, ...]:
    """The options that keep everything in a folder."""
    return "--models", folder / "models", "--results", folder / "results"


def noted(folder: Path) -> list[dict[str, Any]]:
    """The losses of the one run in a folder, without the time they took."""
    (path,) = (folder / "results" / "fusers").glob("2*/loss.jsonl")
    return [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]


def test_trained_and_shown(unspoken: Program, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path, models, steps=2)
    done = unspoken("fuser", "train", config, *places(tmp_path))
    assert done.code == 0, done.err
    assert "sender's columns: 6 of 6\n" in done.err
    assert re.search(r"^steps: 2 of 2 \((answer|guard) \d+\.\d\d\)$", done.err, re.MULTILINE)
    fuser, run, *rest = done.out.splitlines()
    assert fuser == f"Fuser: {tmp_path / 'models' / 'tiny'}"
    assert run.startswith(f"Run: {tmp_path / 'results' / 'fusers'}")
    assert any("answer loss: " in line or "guard loss: " in line for line in rest)
    monkeypatch.chdir(tmp_path)  # By name, below models/.
    told = unspoken("fuser", "inspect", "tiny", "--json").data
    assert (told["kind"], told["sender"], told["receiver"]) == ("bottleneck", "reader", "answerer")
    assert told["message_numbers_per_column"] == 6 + 8
    assert told["bytes_per_column"] == 28
    assert told["settings"] == {"rank": 6, "width": 8, "blocks": 1}
    folder = tmp_path / "models" / "tiny"
    size = sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors"))
    assert told["bytes_on_disk"] == size
    shown = unspoken("fuser", "inspect", folder)
    assert shown.code == 0
    lines = dict(line.split(None, 1) for line in shown.out.splitlines() if len(line.split()) == 2)
    assert (lines["kind"], lines["sender"], lines["receiver"], lines["rank"]) == (
        "bottleneck",
        "reader",
        "answerer",
        "6",
    )
    assert f"sender weights             {told['fingerprints']['sender']['weights']}" in shown.out
    assert f"bytes on disk              {size / 1000:.1f} kB" in shown.out
    assert "bytes per column           28 B" in shown.out


def test_on_a_terminal_there_are_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as show:
        show("steps", 1, 4)
        show("steps", 4, 4, " (answer 0.50)")
    assert re.search(r"steps \(answer 0\.50\) .*4/4", capsys.readouterr().err)


def test_elsewhere_there_is_a_line_for_each_fiftieth(capsys: pytest.CaptureFixture[str]) -> None:
    with lines() as show:
        for done in range(0, 1367, 25):  # Larger than a fiftieth now and then, and never right at its end.
            show("columns", done, 1366)
        for done in range(1, 1001):
            show("steps", done, 1000)
    told = capsys.readouterr().err.splitlines()
    assert [each for each in told if each.startswith("columns")][:3] == [
        "columns: 0 of 1366", "columns: 50 of 1366", "columns: 75 of 1366"
    ]  # fmt: skip
    assert len([each for each in told if each.startswith("steps")]) == 51
    assert told[-1] == "steps: 1000 of 1000"


def test_the_same_as_json(unspoken: Program, models: Path, tmp_path: Path) -> None:
    done = unspoken("fuser", "train", written(tmp_path, models, steps=1), *places(tmp_path), "--json")
    assert done.code == 0, done.err
    (kept,) = (tmp_path / "results" / "fusers").glob("*/metrics.json")
    assert json.loads(kept.read_bytes()) == done.data
    assert (done.data["name"], done.data["steps"], done.data["lessons"]) == ("tiny", 1, 6)


def test_killed_at_any_moment_it_goes_on_where_it_was(unspoken: Program, models: Path, tmp_path: Path) -> None:
    config, broken, whole = written(tmp_path, models, steps=30), tmp_path / "broken", tmp_path / "whole"
    command = [sys.executable, "-m", "unspoken", "fuser", "train", str(config), *map(str, places(broken))]
    # The numbers of one thread are those of another program's one thread.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for_steps(broken, 8, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (broken / "models").exists()
    assert 8 <= len(noted(broken)) < 30
    for folder in (broken, whole):
        done = unspoken("fuser", "train", config, *places(folder))
        assert done.code == 0, done.err
    assert noted(broken) == noted(whole)
    assert [each["step"] for each in noted(broken)] == list(range(30))
    for name in ("config.json", "model.safetensors"):
        assert (broken / "models" / "tiny" / name).read_bytes() == (whole / "models" / "tiny" / name).read_bytes()
    (env_json,) = (broken / "results" / "fusers").glob("2*/env.json")
    assert len(json.loads(env_json.read_bytes())["starts"]) == 2


def wait_for_steps(folder: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a training has noted so many steps."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        for path in folder.glob("results/fusers/*/loss.jsonl"):
            if path.read_bytes().count(b"\n") >= steps:
                return
        time.sleep(0.01)
    raise AssertionError(f"No {steps} steps before the program ended with {process.poll()}.")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: x", "is not valid"),
        ("name: [", "is not valid"),
        (CONFIG.format(models="m", steps=1) + "speed: 3", "unknown field `speed`"),
        (CONFIG.format(models="m", steps=-1), "steps is -1, expected 0 or more"),
        (CONFIG.format(models="m", steps=1).replace("name: tiny", "name: ../tiny"), "cannot be a folder's"),
    ],
)
def test_a_bad_configuration_is_refused_before_anything_is_loaded(
    unspoken: Program, tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    clear(unspoken("fuser", "train", path, *places(tmp_path)), problem)
    assert [each.name for each in tmp_path.iterdir()] == ["bad.yaml"]
    clear(unspoken("fuser", "train", tmp_path / "none.yaml"), "cannot be read")


def test_models_and_ranks_that_there_are_not_are_refused(unspoken: Program, models: Path, tmp_path: Path) -> None:
    config = written(tmp_path, models, steps=1)
    config.write_text(config.read_text().replace("rank: 6", "rank: 999"))
    told = unspoken("fuser", "train", config, *places(tmp_path))
    assert told.code == 2
    assert "Error: A map of rank 999 cannot be had" in told.err
    assert "Traceback" not in told.err
    config.write_text(config.read_text().replace(f"{models}/reader", str(tmp_path / "nobody.gguf")))
    told = unspoken("fuser", "train", config, *places(tmp_path))
    assert told.code == 2
    assert "nobody.gguf" in told.err
    assert "Traceback" not in told.err


def test_what_is_no_fuser_is_refused(unspoken: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    clear(unspoken("fuser", "inspect", "nobody/nothing"), "There is no fuser 'nobody/nothing'")
    clear(unspoken("fuser", "inspect", tmp_path), "There is no fuser in")
    (tmp_path / "config.json").write_text('{"kind": "bottleneck"}')
    clear(unspoken("fuser", "inspect", tmp_path), "describes no fuser of the kind 'bottleneck'")
    (tmp_path / "config.json").write_text('{"kind": "\\u001b[31mred"}')
    told = unspoken("fuser", "inspect", tmp_path)
    clear(told, "There is no fuser named")
    assert "\x1b" not in told.err
