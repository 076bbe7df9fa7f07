"""Sweeps: several experiments in one folder, whoever runs which, whenever they are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from unspoken.errors import ModelNotFound, StorageError, UsageError
from unspoken.lab import study, sweeprun
from unspoken.lab.experiment import Experiment
from unspoken.lab.record import RunFolder, Sample
from unspoken.lab.runner import Runner
from unspoken.lab.sweep import Sweep, load_plan
from unspoken.lab.sweeprun import SweepStudy, close_sweep, open_sweep, pilot, run_sweep

YAML = """
name: both
engine: fake
items: 12
timed_items: 0
arms: [none, full-text, kv, kv+float32, kv-continue, kv-deranged]
cells:
  - {model: small}
  - {model: large, items: 18}
  - {model: small, seed: 7, label: other-facts}
"""
KEYS = ["private-facts/small/fake", "private-facts/large/fake", "private-facts/small/fake-other-facts"]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Read a plan from YAML."""
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "home"))

    def read(text: str = YAML) -> Any:
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        return load_plan(path)

    return read


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write reports without drawing anything, which takes longer than the rest."""
    monkeypatch.setattr("unspoken.lab.study.render", lambda *_: "<html></html>")
    monkeypatch.setattr(sweeprun, "render_sweep", lambda *_: "<html></html>")


undrawn_here = pytest.mark.usefixtures("undrawn")


def _run(sweep: Sweep, results: Path, *wanted: str) -> SweepStudy:
    return run_sweep(sweep, results, wanted, lambda *_: None)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_cell_has_the_shared_fields_with_its_own_in_their_place(plan: Callable[..., Any]) -> None:
    sweep = plan()
    assert [cell.key for cell in sweep.cells] == KEYS
    assert [cell.experiment.items for cell in sweep.cells] == [12, 18, 12]
    assert {cell.experiment.name for cell in sweep.cells} == {"both"}
    assert sweep.cells[2].experiment.seed == 7
    assert isinstance(plan("name: one\nengine: fake\n"), Experiment)


def test_the_key_of_a_model_file_is_its_stem(plan: Callable[..., Any]) -> None:
    sweep = plan(
        "cells:\n  - {model: models/qwen2.5-coder-0.5b.gguf, engine: llamacpp}\n  - {model: owner/some-1.5b}\n"
    )
    assert [cell.key for cell in sweep.cells] == [
        "private-facts/qwen2.5-coder-0.5b/llamacpp",
        "private-facts/some-1.5b/transformers",
    ]
    assert sweep.cells[0].folder == "private-facts-qwen2.5-coder-0.5b-llamacpp"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cells: []", "has no cells"),
        ("cells: 7", "no list of mappings"),
        ("cells: [a, b]", "no list of mappings"),
        ("cells: [{model: a}, {model: a}]", "two cells private-facts/a/transformers"),
        ("cells: [{model: a}, {colour: red}]", "Cell 2 of the sweep .* unknown field `colour`"),
        ("colour: red\ncells: [{model: a}]", "Cell 1 of the sweep .* unknown field `colour`"),
        ("cells: [{items: 1}]", "items is 1"),
        ("cells: [{items: many}]", "Expected `int`"),
        ("cells: [{name: other}]", "and a name"),
        ("cells: [{label: 'A b'}]", "has the label 'A b'"),
    ],
)
def test_what_is_no_sweep_is_refused(plan: Callable[..., Any], text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        plan(text)


def test_a_sweep_is_written_as_it_can_be_run_again(plan: Callable[..., Any]) -> None:
    sweep = plan()
    assert plan(sweep.encoded().decode()) == sweep


def test_a_finished_sweep_has_every_cell_and_one_table_of_all(plan: Callable[..., Any], tmp_path: Path) -> None:
    study = _run(plan(), tmp_path)
    assert study.unfinished == ()
    cells = [f"cells/private-facts-{name}" for name in ("small-fake", "large-fake", "small-fake-other-facts")]
    parts = ("config.yaml", "env.json", "metrics.json", "report.html", "samples.jsonl.gz")
    assert _files(study.folder) == {f"{cell}/{part}" for cell in cells for part in parts} | set(parts[:4])
    kept = json.loads((study.folder / "metrics.json").read_bytes())
    assert kept == study.metrics
    assert list(kept) == ["experiment", "cells"]
    assert list(kept["cells"]) == KEYS
    for cell, key in zip(cells, KEYS, strict=True):
        assert kept["cells"][key] == json.loads((study.folder / cell / "metrics.json").read_bytes())
    page = (study.folder / "report.html").read_text()
    assert all(key in page for key in KEYS)
    assert all(f'href="{cell}/report.html"' in page for cell in cells)
    # Three sizes of cache at least: what fewer bytes are worth is drawn.
    assert page.count("<svg") == 1


@undrawn_here
def test_only_the_cells_asked_for_are_run_and_the_last_one_closes_the_sweep(
    plan: Callable[..., Any], tmp_path: Path
) -> None:
    first = _run(plan(), tmp_path, "large")
    assert list(first.metrics["cells"]) == [KEYS[1]]
    assert first.unfinished == (KEYS[0], KEYS[2])
    assert not (first.folder / "metrics.json").exists()
    second = _run(plan(), tmp_path, "small")
    assert (second.folder, second.unfinished) == (first.folder, ())
    assert (second.folder / "metrics.json").exists()
    assert _run(plan(), tmp_path).folder != first.folder  # A finished run is never touched again.
    with pytest.raises(UsageError, match="No cell of the sweep 'both' has 'huge'"):
        _run(plan(), tmp_path, "huge")


@undrawn_here
def test_a_model_is_loaded_once_for_all_its_cells_and_given_back(
    plan: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    load = study.load

    def noted(experiment: Experiment) -> Any:
        loaded = load(experiment)
        told.append(experiment.model)
        monkeypatch.setattr(loaded.engine, "close", lambda: told.append(f"{experiment.model} closed"), raising=False)
        return loaded

    monkeypatch.setattr(study, "load", noted)
    _run(plan(), tmp_path)
    assert told == ["small", "small closed", "large", "large closed"]


@pytest.mark.parametrize(
    ("line", "problem", "kind"),
    [
        ("- {model: other, arms: [kv, telepathy]}", "no channel named", UsageError),
        ("- {model: other, task: riddles}", "no task named", UsageError),
        ("- {model: other, task: reading}", "asks from a file", UsageError),
        ("- {model: other, task: reading, data: no.jsonl}", "no.jsonl cannot be read", StorageError),
        ("- {model: other, data: some.jsonl}", "reads no file", UsageError),
        ("- {model: other, items: 6}", "one source only", UsageError),
        ("- {engine: abacus}", "no engine named", UsageError),
        ("- {model: models/none.gguf}", "no model file", ModelNotFound),
    ],
)
def test_every_cell_is_checked_before_a_model_is_loaded(
    plan: Callable[..., Any], tmp_path: Path, line: str, problem: str, kind: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(study, "load", lambda _: pytest.fail("a model was loaded"))
    with pytest.raises(kind, match=problem):
        _run(plan(f"{YAML}  {line}\n"), tmp_path / "results")
    assert not (tmp_path / "results").exists()


@undrawn_here
@pytest.mark.parametrize("after", [0, 2, 7, 9, 14, 16])
def test_a_sweep_killed_at_any_moment_goes_on_where_it_was(
    plan: Callable[..., Any], tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def killer(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(), tmp_path, (), killer)
    (folder,) = (path for path in (tmp_path / "both").iterdir() if path.is_dir())
    done = {path: path.read_bytes() for path in folder.rglob("metrics.json")}
    made = {(path.parent, *_cell(line)) for path in folder.rglob("samples.jsonl") for line in path.open()}
    written: list[tuple[Path, str, str]] = []
    append = RunFolder.append

    def noted(self: RunFolder, fresh: list[Sample]) -> None:
        written.extend((self.path, each.item, each.arm) for each in fresh)
        append(self, fresh)

    monkeypatch.setattr(RunFolder, "append", noted)
    study = _run(plan(), tmp_path)
    assert (study.folder, study.unfinished) == (folder, ())
    assert {path: path.read_bytes() for path in done} == done
    assert not made & set(written)
    counts = {key: of["items"] for key, of in study.metrics["cells"].items()}
    assert counts == dict(zip(KEYS, (12, 18, 12), strict=True))


def _cell(line: str) -> tuple[str, str]:
    found = json.loads(line)
    return found["item"], found["arm"]


@undrawn_here
def test_a_cell_that_another_process_runs_is_left_to_it(plan: Callable[..., Any], tmp_path: Path) -> None:
    begun = _run(plan(), tmp_path, "large")
    with FileLock(begun.folder.parent / f".{begun.folder.name}-private-facts-small-fake.lock"):
        study = _run(plan(), tmp_path)
    assert study.unfinished == (KEYS[0],)
    assert _run(plan(), tmp_path).unfinished == ()


@undrawn_here
def test_a_cell_begun_with_another_model_is_not_gone_on_with(
    plan: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _run(plan(), tmp_path)
    monkeypatch.undo()
    (env,) = tmp_path.glob("both/*/cells/private-facts-small-fake/env.json")
    env.write_text(env.read_text().replace('"weights": "', '"weights": "0'))
    with pytest.raises(UsageError, match="was begun with another model"):
        _run(plan(), tmp_path)


def test_reports_and_metrics_are_made_anew_from_the_folder_alone(plan: Callable[..., Any], tmp_path: Path) -> None:
    study = _run(plan(), tmp_path)
    before = {name: (study.folder / name).read_bytes() for name in ("metrics.json", "report.html")}
    for name in before:
        (study.folder / name).unlink()
    opened = open_sweep(study.folder)
    assert opened is not None
    close_sweep(opened)
    assert {name: (study.folder / name).read_bytes() for name in before} == before
    assert open_sweep(study.folder / "cells" / "private-facts-small-fake") is None
    assert open_sweep(tmp_path / "nothing") is None


def _start(file: Path, results: Path, env: dict[str, str], *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "unspoken", "run", str(file), "--results", str(results), "--json", *more]
    return subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_share_one_sweep_and_one_may_be_killed(tmp_path: Path) -> None:
    file, results = tmp_path / "plan.yaml", tmp_path / "results"
    file.write_text(YAML.replace("items: 12", "items: 150").replace("items: 18", "items: 150"))
    # Without git, so that an edit of the code meanwhile does not make it another run.
    env = {"UNSPOKEN_HOME": str(tmp_path / "home"), "GIT_DIR": os.devnull, "OMP_NUM_THREADS": "1"}
    killed, other = _start(file, results, env, "--cells", "small"), _start(file, results, env, "--cells", "large")
    deadline = time.monotonic() + 120
    while not list(results.glob("both/*/cells/private-facts-small-fake/samples.jsonl")):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    out, err = other.communicate()
    assert other.returncode == 0, err
    assert list(json.loads(out)["cells"]) == [KEYS[1]]
    assert b"Not finished yet" in err

    pair = [_start(file, results, env), _start(file, results, env)]
    told = [process.communicate() for process in pair]
    assert [process.returncode for process in pair] == [0, 0], told
    (folder,) = (path for path in (results / "both").iterdir() if path.is_dir())
    metrics = json.loads((folder / "metrics.json").read_bytes())
    assert list(metrics["cells"]) == KEYS
    assert any(json.loads(out) == metrics for out, _ in told)
    assert {of["items"] for of in metrics["cells"].values()} == {150}
    assert not list(folder.rglob("samples.jsonl"))
    assert len(json.loads((folder / "env.json").read_bytes())["starts"]) == 4


@undrawn_here
def test_a_pilot_is_small_and_of_what_is_here(plan: Callable[..., Any], tmp_path: Path) -> None:
    sweep = plan(
        "name: claims\nengine: fake\nitems: 24\ntimed_items: 3\narms: [none, text@8, kv, kv-deranged]\ncells:\n"
        "  - {model: small}\n  - {model: models/away.gguf, engine: llamacpp}\n"
        f"  - {{task: reading, data: {tmp_path}/away.jsonl, model: small}}\n"
    )
    small, left = pilot(sweep)
    assert [cell.key for cell in small.cells] == ["private-facts/small/fake"]
    assert [each.partition(" is left out: ")[0] for each in left] == [cell.key for cell in sweep.cells[1:]]
    assert "There is no model file models/away.gguf" in left[0]
    assert "away.jsonl" in left[1]
    study = _run(small, tmp_path / "results")
    assert study.folder.parent.name == "claims-pilot"
    metrics = study.metrics["cells"]["private-facts/small/fake"]
    assert (metrics["items"], metrics["pilot"], metrics["claims"]["text@8"]["timed_items"]) == (12, True, 1)


def test_a_pilot_of_what_is_not_here_is_refused(plan: Callable[..., Any]) -> None:
    sweep = plan("name: claims\ncells:\n  - {model: models/away.gguf, engine: llamacpp}\n")
    with pytest.raises(UsageError, match="No cell of the sweep 'claims' can be run here"):
        pilot(sweep)
    with pytest.raises(UsageError, match="There is no channel named 'nonsense'"):
        pilot(plan("name: claims\nengine: fake\narms: [nonsense]\ncells:\n  - {model: small}\n"))


def test_a_pilot_is_of_the_cells_asked_for_and_names_one_that_cannot_be_run(plan: Callable[..., Any]) -> None:
    sweep = plan("name: claims\nengine: fake\ncells:\n  - {model: small}\n  - {model: other, arms: [nonsense]}\n")
    assert [cell.key for cell in pilot(sweep, ["small"])[0].cells] == ["private-facts/small/fake"]
    with pytest.raises(UsageError, match="The cell private-facts/other/fake cannot be run: There is no channel named"):
        pilot(sweep)


def test_a_pilot_asks_about_two_texts_though_one_has_questions_enough(plan: Callable[..., Any], tmp_path: Path) -> None:
    texts = [
        {"context": f"Text {at}.", "qas": [{"question": f"{n}?", "answers": ["x"]} for n in range(14)]} for at in (0, 1)
    ]
    (tmp_path / "two.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    line = f"  - {{model: small, task: reading, data: {tmp_path}/two.jsonl}}\n"
    (cell,) = pilot(plan(f"name: claims\nengine: fake\nitems: 28\narms: [kv, kv-deranged]\ncells:\n{line}"))[0].cells
    assert cell.experiment.items == 15
    # Without such a control one text will do, also if there is no other.
    line = line.replace("two.jsonl", "one.jsonl")
    (tmp_path / "one.jsonl").write_text(json.dumps(texts[0]))
    (cell,) = pilot(plan(f"name: claims\nengine: fake\nitems: 14\narms: [none, kv]\ncells:\n{line}"))[0].cells
    assert cell.experiment.items == 12


def test_the_page_of_a_sweep_puts_the_founding_claim_first(plan: Callable[..., Any], tmp_path: Path) -> None:
    sweep = plan(
        "name: claims\nengine: fake\nitems: 12\ntimed_items: 2\narms: [none, text@8, kv, kv-deranged]\ncells:\n"
        "  - {model: small}\n  - {model: large}\n"
    )
    page = (_run(sweep, tmp_path).folder / "report.html").read_text()
    table = page.partition('aria-label="Claims by experiment"')[2].partition("</table>")[0]
    assert table.count("<tr><td") == 2
    assert "private-facts/large/fake (pilot)" in table
    assert "text@8" in table
    assert page.index("was not tested; that takes a cell with the arm text-asked") < page.index(table)
