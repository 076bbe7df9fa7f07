"""A whole study on a tiny random model: run, killed and gone on with, and made again from its folder alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from unspoken.engines.gate import GateResult
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.lab.recognition import evaluate
from unspoken.lab.recognition.evaluate import close_recognition, open_recognition, rates, run_recognition
from unspoken.lab.recognition.plan import RecognitionPlan
from unspoken.lab.recognition.scores import FILE, Scores
from unspoken.lab.study import Study


def quiet(done: int, total: int, what: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def small(plan: RecognitionPlan) -> RecognitionPlan:
    """The small study with fewer conditions still."""
    return msgspec.structs.replace(plan, conditions=("card", "reworded", "self-written", "kv+int8"), twins=2)


@pytest.fixture(scope="module")
def opened(reader: TransformersEngine) -> Iterator[None]:
    """Let every model be the tiny one."""
    gate = GateResult(True, {"moved": 1e-6}, 1e-4, 0.0, 1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "load_gated", lambda *_: (reader, gate))
        yield


@pytest.fixture(scope="module")
def study(small: RecognitionPlan, opened: None, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished run, killed once on its way."""
    results = tmp_path_factory.mktemp("results")

    def kill(done: int, total: int, what: str) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recognition(small, results, kill)
    return run_recognition(small, results, quiet)


class TestRun:
    def test_a_killed_run_is_gone_on_with_in_its_folder(self, study: Study) -> None:
        assert len([each for each in study.folder.parent.iterdir() if each.is_dir()]) == 1
        env = json.loads((study.folder / "env.json").read_bytes())
        assert len(env["starts"]) == 2

    def test_metrics_hold_what_the_protocol_asks_for(self, study: Study) -> None:
        found = study.metrics
        assert list(found["conditions"]) == ["card", "reworded", "self-written", "kv+int8", "spliced"]
        assert list(found["nulls"]) == ["layer-0", "twins", "permuted"]
        asked = {
            "eer",
            "low",
            "high",
            "min_dcf",
            "cllr",
            "min_cllr",
            "targets",
            "nontargets",
            "rank_one",
            "enough_errors",
        }
        for group in (found["conditions"], found["nulls"], *found["baselines"].values()):
            assert all(set(each) == asked for each in group.values())
        assert found["conditions"]["card"]["targets"] == 15
        assert found["conditions"]["card"]["nontargets"] == 60
        assert found["pilot"]
        assert {"dir", "false_alarm", "threshold", "known", "unknown", "fixed"} == set(found["open_set"]["card"])
        assert [found["open_set"]["card"][key] for key in ("known", "unknown")] == [9, 6]
        assert list(found["enrolment"]) == ["1", "2"]
        assert [len(found["layers"][part]) for part in ("keys", "values")] == [3, 3]
        assert found["layers"]["values"][0] == 0.5
        assert len(found["map"]["points"]) == 5 * 3 * 2

    def test_what_is_written_is_what_was_returned(self, study: Study) -> None:
        assert json.loads((study.folder / "metrics.json").read_bytes()) == json.loads(json.dumps(study.metrics))
        page = (study.folder / "report.html").read_text(encoding="utf-8")
        assert "reworded" in page
        assert "http://" not in page.replace("http://www.w3.org", "")

    def test_the_folder_alone_gives_the_same_bytes(self, study: Study, small: RecognitionPlan) -> None:
        before = {name: (study.folder / name).read_bytes() for name in ("metrics.json", "report.html")}
        found = open_recognition(study.folder)
        assert found == small
        close_recognition(study.folder, small, quiet)
        assert {name: (study.folder / name).read_bytes() for name in before} == before

    def test_the_same_study_again_is_another_run(self, study: Study, small: RecognitionPlan, opened: None) -> None:
        """Features are found again in nobody's folder: a finished run is never touched."""
        before = (study.folder / "metrics.json").stat().st_mtime_ns

        def stop(done: int, total: int, what: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_recognition(small, study.folder.parent.parent, stop)
        assert len([each for each in study.folder.parent.iterdir() if each.is_dir()]) == 2
        assert (study.folder / "metrics.json").stat().st_mtime_ns == before

    def test_a_run_without_scores_is_refused(self, study: Study, small: RecognitionPlan, tmp_path: Path) -> None:
        for name in ("config.yaml", "env.json"):
            (tmp_path / name).write_bytes((study.folder / name).read_bytes())
        with pytest.raises(UsageError, match=f"has no sound {FILE}"):
            close_recognition(tmp_path, small, quiet)

    def test_other_runs_are_no_studies_of_recognition(self, tmp_path: Path) -> None:
        assert open_recognition(tmp_path) is None
        (tmp_path / "config.yaml").write_text("name: prove\n", encoding="utf-8")
        assert open_recognition(tmp_path) is None


class TestRates:
    def test_planted_agents_are_told_apart(self, plan: RecognitionPlan) -> None:
        found = rates(_planted(4.0), plan)
        assert found["eer"] < 0.05
        assert found["high"] < 0.15
        assert found["rank_one"] > 0.95

    def test_nothing_planted_holds_chance(self, plan: RecognitionPlan) -> None:
        found = rates(_planted(0.0), plan)
        assert found["low"] < 0.5 < found["high"]
        assert found["enough_errors"]

    def test_few_errors_are_told(self, plan: RecognitionPlan) -> None:
        assert not rates(_planted(9.0), plan)["enough_errors"]


def _planted(gain: float) -> Scores:
    draw, agents, texts = np.random.default_rng(5), 12, 10
    tested = np.repeat(np.arange(agents), texts)
    scores = draw.normal(size=(agents * texts, agents)) + gain * (tested[:, None] == np.arange(agents))
    return Scores(scores, tested, np.tile(np.arange(texts), agents))
