"""`unspoken experiments`: what is wrong with a file is told before anything is loaded, and what it will take."""

from __future__ import annotations

from pathlib import Path

import pytest

from .program import Program, clear

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
GOOD = """
name: small
engine: fake
items: 24
timed_items: 1
arms: [none, kv, kv-deranged]
cells:
  - {model: one}
  - {model: two, items: 48}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A sweep of two cells."""
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def test_sound_cells_are_said_to_be_so(unspoken: Program, plan: Path) -> None:
    told = unspoken("experiments", "validate", plan)
    assert told.code == 0
    assert told.out.splitlines() == [f"{plan} private-facts/{model}/fake: sound" for model in ("one", "two")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: Not A Folder", "cannot be a folder's"),
        ("itemz: 3", "unknown field `itemz`"),
        ("arms: [kw]", "There is no channel named 'kw'"),
        ("task: private-fact", "There is no task named 'private-fact'"),
        ("model: away.gguf\nengine: llamacpp", "There is no model file away.gguf"),
        ("task: reading\ndata: away.jsonl", "away.jsonl"),
        ("cells: 3", "has cells that are no list of mappings"),
        (": :", "is not valid"),
    ],
)
def test_what_is_wrong_is_told_and_the_others_are_looked_at(
    unspoken: Program, plan: Path, tmp_path: Path, text: str, problem: str
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    told = unspoken("experiments", "validate", bad, plan)
    assert told.code == 2
    assert problem in told.out
    assert told.out.count(": sound") == 2
    found = unspoken("experiments", "validate", bad, plan, "--json")
    assert found.code == 2
    assert [each["problem"] is None for each in found.data] == [False, True, True]


def test_every_experiment_stands_in_the_list_of_them() -> None:
    listed = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in EXPERIMENTS.glob("*.yaml") if f"| `{path.name}` |" not in listed] == []


def test_every_committed_experiment_is_sound_but_for_data_and_models_that_are_not_here(
    unspoken: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # `identity.yaml` is for `unspoken identity evaluate`, and tested with it.
    files = [path for path in sorted(EXPERIMENTS.glob("*.yaml")) if path.stem != "identity"]
    found = unspoken("experiments", "validate", *files, "--json").data
    assert {each["file"] for each in found} == set(map(str, files))
    problems = [each["problem"] for each in found if each["problem"]]
    assert len(problems) < len(found)
    away = ("There is no model file", "No such file", "There is no data file", "Couldn't reach", "is not installed")
    assert all(any(words in each for words in away) for each in problems), problems


def test_what_a_run_takes_is_told_by_its_pilot(unspoken: Program, plan: Path, tmp_path: Path) -> None:
    asked = ("experiments", "estimate", plan, "--results", tmp_path / "results")
    assert unspoken(*asked).out.splitlines() == [
        "private-facts/one/fake: 24 questions in 3 arms, no pilot",
        "private-facts/two/fake: 48 questions in 3 arms, no pilot",
    ]
    assert unspoken("run", plan, "--pilot", "--results", tmp_path / "results").code == 0
    one, two, both = unspoken(*asked).out.splitlines()
    assert one.startswith("private-facts/one/fake: 24 questions in 3 arms, about ")
    assert both.startswith("2 of 2 cells: about ")
    found = unspoken(*asked, "--json").data
    assert [each["items"] for each in found] == [24, 48]
    assert all(each["seconds"] > 0 for each in found)
    assert found[0]["pilot"].startswith("small-pilot/")
    assert two.partition(", about ")[2]


def test_runs_are_listed_compared_and_exported(unspoken: Program, plan: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert unspoken("run", plan, "--pilot", "--results", results).code == 0
    listed = unspoken("results", "--results", results, "--html", tmp_path / "index.html")
    assert listed.code == 0
    assert listed.out.count("private-facts/") == 2
    assert 'href="results/small-pilot/' in (tmp_path / "index.html").read_text()
    (run,) = (path for path in (results / "small-pilot").iterdir() if path.is_dir())
    assert unspoken("export", run).out.startswith("cell,arm,n,")
    assert r"\toprule" in unspoken("export", run, "--as", "latex").out
    one, two = sorted((run / "cells").iterdir())
    told = unspoken("compare", one, two)
    assert told.code == 0
    assert "model: one | two" in told.out
    assert "Both asked the same 12 questions" in told.out
    clear(unspoken("compare", run, one), "is a sweep of several runs")
    clear(unspoken("export", tmp_path), "There is no finished run with arms")
    clear(unspoken("results", "--results", tmp_path / "away"), "There is no results folder")


def test_a_file_that_is_not_there_is_told(unspoken: Program, tmp_path: Path) -> None:
    clear(unspoken("experiments", "estimate", tmp_path / "away.yaml"), "cannot be read: No such file")
    told = unspoken("experiments", "validate", tmp_path / "away.yaml")
    assert (told.code, "cannot be read: No such file" in told.out) == (2, True)
