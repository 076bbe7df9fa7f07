"""Experiments on a Ray cluster: what a local run finds, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unspoken.errors import ModelNotFound, UsageError, WorkersLost
from unspoken.lab import cluster, study
from unspoken.lab.experiment import Experiment
from unspoken.lab.record import RunFolder, open_finished
from unspoken.lab.study import run_study

pytestmark = pytest.mark.timeout(600)

YAML = """
name: both
engine: fake
items: 240
timed_items: 2
arms: [none, full-text, kv, kv-deranged]
cells:
  - {model: small}
  - {model: large, items: 60}
"""


def _workers(home: Path) -> list[int]:
    """Return the processes of a cluster's workers that have a certain home."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if (each / "cmdline").read_bytes().startswith(b"ray::Worker") and str(home).encode() in (
                each / "environ"
            ).read_bytes():
                found.append(int(each.name))
        except OSError:  # It has ended.
            continue
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the program on the plan; whatever is left of it is ended."""
    (tmp_path / "plan.yaml").write_text(YAML)
    # Without git, so that an edit of the code meanwhile does not make it another run.
    env = {"UNSPOKEN_HOME": str(tmp_path / "home"), "GIT_DIR": os.devnull, "OMP_NUM_THREADS": "1"}
    started: list[subprocess.Popen[bytes]] = []

    def begun(results: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "unspoken", "run", "plan.yaml", "--results", results, "--json", *more]
        started.append(
            subprocess.Popen(
                command, env=os.environ | env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
        return started[-1]

    yield begun
    for each in started:
        each.kill()
        each.communicate()


def _found(metrics: Any) -> Any:
    """Return metrics without how long anything took."""
    if isinstance(metrics, dict):
        return {name: _found(value) for name, value in metrics.items() if not name.startswith("seconds")}
    return [_found(each) for each in metrics] if isinstance(metrics, list) else metrics


def test_two_workers_find_what_one_process_finds_though_one_is_killed(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    spread = start("spread", "--ray", "local", "--workers", "2")
    samples = "both/*/cells/private-facts-small-fake/samples.jsonl"
    while not list((tmp_path / "spread").glob(samples)):
        assert spread.poll() is None, spread.communicate()
        time.sleep(0.01)
    victims = _workers(tmp_path / "home")
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    out, err = spread.communicate()
    assert spread.returncode == 0, err
    local = start("local")
    expected, err = local.communicate()
    assert local.returncode == 0, err
    assert _found(json.loads(out)) == _found(json.loads(expected))
    for folder in sorted((tmp_path / "spread").glob("both/*/cells/*")):
        times = Counter(sample.cell for sample in open_finished(folder).samples())
        assert set(times.values()) == {1}
        assert open_finished(folder).env()["machine"]["workers"] == 2
    assert _workers(tmp_path / "home") == []


def test_what_was_finished_is_kept_when_workers_die_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cluster, "RESTARTS", 0)
    experiment = Experiment(engine="fake", model="small", items=240, timed_items=0, arms=("none", "kv"))
    kept: list[int] = []

    def killing(done: int, total: int, what: str) -> None:
        if done and not kept:
            kept.append(done)
            for each in _workers(tmp_path / "home"):
                os.kill(each, signal.SIGKILL)

    with pytest.raises(WorkersLost, match="worker was lost"):
        run_study(experiment, tmp_path / "results", killing, cluster.Cluster("local", 1))
    (folder,) = (each for each in (tmp_path / "results" / "prove").iterdir() if each.is_dir())
    assert len(RunFolder(folder).samples()) >= kept[0]
    study = run_study(experiment, tmp_path / "results", lambda *_: None)
    assert len(open_finished(study.folder).samples()) == 480


def test_what_a_worker_refuses_is_told_as_it_was_meant(tmp_path: Path) -> None:
    experiment = Experiment(model=str(tmp_path / "no-model"), items=12, arms=("none", "kv"))
    with pytest.raises(ModelNotFound, match="no-model"):
        run_study(experiment, tmp_path, lambda *_: None, cluster.Cluster("local", 1))


def test_a_cluster_that_is_not_there_is_told() -> None:
    with pytest.raises(WorkersLost, match="no Ray cluster at"):
        cluster.Cluster("127.0.0.1:1", 1)
    with pytest.raises(UsageError, match="0 workers"):
        cluster.Cluster("local", 0)


def test_more_workers_than_processors_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(UsageError, match="take 3 processors, the cluster has 2"):
        cluster.Cluster("local", 3)


def test_workers_of_different_kinds_do_not_run_one_experiment() -> None:
    env = dict.fromkeys(study.IDENTITY, "a") | {"gate": 0.1, "machine": "one"}
    same = study.identity(env)
    # The gate's last digits may differ between machines.
    cluster._require_same([same, study.identity(env | {"gate": 0.2, "machine": "two"})])
    with pytest.raises(UsageError, match="do not have the same revision"):
        cluster._require_same([same, same | {"revision": "2"}])
