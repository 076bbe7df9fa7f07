"""A whole experiment on the fake engine: right, resumable at any moment, and honest about what failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from unspoken.cli.report import rebuilt
from unspoken.engines.fake import FakeEngine
from unspoken.errors import StorageError, UsageError
from unspoken.lab.arms import DEFAULT_ARMS
from unspoken.lab.experiment import Experiment, load_experiment
from unspoken.lab.metrics import compute
from unspoken.lab.record import RunFolder, Sample, open_finished
from unspoken.lab.runner import Runner, Watcher, check, load_task, task_hash
from unspoken.lab.study import expected, run_study

from .begin import begin

SMALL = Experiment(
    name="small",
    items=12,
    seed=1,
    answer_tokens=16,
    arms=("none", "kv", "full-text", "kv-deranged"),
    batch_sources=1,
    timed_items=1,
)


class Killer:
    """A watcher that counts what it is told and kills the run after so many calls."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.told: list[tuple[int, int, str]] = []

    def __call__(self, done: int, total: int, what: str) -> None:
        """Remember the call, or kill."""
        self.told.append((done, total, what))
        if self.after is not None and len(self.told) > self.after:
            raise KeyboardInterrupt


def _run(results: Path, experiment: Experiment, watch: Watcher, engine: FakeEngine) -> list[Sample]:
    _, sources = load_task(experiment)
    folder = begin(results, experiment, {"model": "fake"}, {})
    return Runner(experiment, engine, sources).run(folder, watch)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[Sample]]:
    """Run an experiment in one results folder; the same call goes on with an unfinished run."""

    def once(
        experiment: Experiment = SMALL, watch: Watcher | None = None, engine: FakeEngine | None = None
    ) -> list[Sample]:
        return _run(tmp_path, experiment, watch or Killer(), engine or FakeEngine())

    return once


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """The samples of the small experiment, run without a break."""
    return _run(tmp_path_factory.mktemp("whole"), SMALL, Killer(), FakeEngine())


def _timeless(samples: list[Sample]) -> dict[tuple[str, str, bool], Any]:
    """Samples by cell, without the seconds."""
    return {sample.cell: msgspec.structs.replace(sample, seconds={}) for sample in samples}


def _folder(tmp_path: Path) -> RunFolder:
    (path,) = (each for each in (tmp_path / "small").iterdir() if each.is_dir())
    return RunFolder(path)


def _accuracy(samples: list[Sample], arm: str) -> float:
    right = [sample.correct for sample in samples if sample.arm == arm and not sample.alone]
    return sum(right) / len(right)


def test_on_private_facts_kv_is_right_and_the_controls_are_at_chance(run: Callable[..., list[Sample]]) -> None:
    experiment = Experiment(name="all", items=24, seed=3, answer_tokens=24, timed_items=1)
    samples = run(experiment)
    assert {sample.arm for sample in samples} == set(DEFAULT_ARMS)
    assert not [sample.error for sample in samples if sample.error]
    accuracy = {arm: _accuracy(samples, arm) for arm in DEFAULT_ARMS}
    assert accuracy["kv"] == accuracy["kv-continue"] == accuracy["full-text"] == 1.0
    # Chance is one in six; four standard deviations of 24 answers are 0.30.
    for arm in ("none", "kv-deranged", "kv-zero", "kv-random", "kv-self", "kv-shifted"):
        assert accuracy[arm] < 1 / 6 + 0.30, arm
    metrics = compute(experiment, samples, {})
    assert metrics["content_gain"]["low"] > 0.5
    assert metrics["arms"]["kv"]["kl"] < 1e-3 < metrics["arms"]["none"]["kl"]


def test_every_item_is_run_once_in_every_arm(whole: list[Sample]) -> None:
    _, sources = load_task(SMALL)
    items = [item.id for source in sources for item in source.items]
    together = [sample.cell for sample in whole if not sample.alone]
    assert len(together) == len(set(together))
    assert set(together) == {(item, arm, False) for item in items for arm in SMALL.arms}
    alone = [sample for sample in whole if sample.alone]
    assert len(alone) == SMALL.timed_items * len(SMALL.arms)
    assert {sample.arm for sample in alone} == set(SMALL.arms)


def test_a_sample_says_what_was_asked_answered_and_paid(whole: list[Sample]) -> None:
    _, sources = load_task(SMALL)
    golds = {item.id: (source.id, item.question, item.gold) for source in sources for item in source.items}
    for sample in whole:
        assert (sample.source, sample.question, sample.gold) == golds[sample.item]
        assert sample.gold_logprob is not None
        assert sample.tokens_prefilled > 0
        assert sample.seconds["total"] == pytest.approx(sum(sample.seconds.values()) - sample.seconds["total"])
        if sample.arm in ("kv", "full-text"):
            assert sample.correct
            assert sample.exact
            assert sample.contained
            assert sample.f1 == 1.0
        if sample.arm == "full-text" and not sample.alone:
            assert sample.kl == 0.0


def test_items_run_alone_answer_as_in_their_batch(whole: list[Sample]) -> None:
    together = {(sample.item, sample.arm): sample.answer for sample in whole if not sample.alone}
    assert all(sample.answer == together[sample.item, sample.arm] for sample in whole if sample.alone)


def test_progress_is_told_from_start_to_end(run: Callable[..., list[Sample]]) -> None:
    watch = Killer()
    samples = run(watch=watch)
    assert watch.told[0] == (0, len(samples), "")
    assert watch.told[-1][:2] == (len(samples), len(samples))
    assert [done for done, _, _ in watch.told] == sorted({done for done, _, _ in watch.told})
    assert watch.told[1][2] == "full-text"


@pytest.mark.parametrize("after", [1, 5, 9])
def test_a_killed_run_goes_on_where_it_was(
    run: Callable[..., list[Sample]],
    whole: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(watch=Killer(after))
    before = _folder(tmp_path).samples()
    assert 0 < len(before) < len(whole)
    written: list[Sample] = []
    append = RunFolder.append
    monkeypatch.setattr(RunFolder, "append", lambda self, fresh: (written.extend(fresh), append(self, fresh))[1])
    watch = Killer()
    resumed = run(watch=watch)
    # Finished cells are told of at the start and not made again.
    assert watch.told[0] == (len(before), len(whole), "")
    assert not {sample.cell for sample in written} & {sample.cell for sample in before}
    assert len(written) + len(before) == len(resumed) == len(whole)
    assert _timeless(resumed) == _timeless(whole)
    assert _folder(tmp_path).samples() == resumed


@pytest.mark.parametrize("cut", [1, 700])
def test_a_line_cut_short_by_a_kill_is_dropped_and_run_again(
    run: Callable[..., list[Sample]], whole: list[Sample], tmp_path: Path, cut: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(watch=Killer(4))
    folder = _folder(tmp_path)
    before, loose = folder.samples(), folder.path / "samples.jsonl"
    loose.write_bytes(loose.read_bytes()[:-cut])
    torn = loose.read_bytes()
    kept = folder.samples()
    assert 0 < len(kept) < len(before)
    assert kept == before[: len(kept)]
    assert loose.read_bytes() == torn, "whoever only looks changes nothing"
    assert folder.resumed() == kept
    assert loose.read_bytes() == torn[: torn.rfind(b"\n") + 1]
    resumed = run()
    assert len(resumed) == len({sample.cell for sample in resumed}) == len(whole)
    assert _timeless(resumed) == _timeless(whole)
    assert _timeless(folder.samples()) == _timeless(whole)


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(
    run: Callable[..., list[Sample]], whole: list[Sample], tmp_path: Path
) -> None:
    kills = 0
    while True:
        try:
            samples = run(watch=Killer(1))
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills == len(SMALL.arms) * (2 + SMALL.timed_items)
    assert _timeless(samples) == _timeless(whole)
    assert len(_folder(tmp_path).env()["starts"]) == kills + 1


def test_another_experiment_or_identity_is_another_run(tmp_path: Path) -> None:
    first = begin(tmp_path, SMALL, {"model": "a"}, {"machine": "m"})
    again = begin(tmp_path, SMALL, {"model": "a"}, {})
    other = begin(tmp_path, SMALL, {"model": "b"}, {})
    changed = begin(tmp_path, msgspec.structs.replace(SMALL, seed=2), {"model": "a"}, {})
    assert first.path == again.path
    assert len({first.path, other.path, changed.path}) == 3
    assert first.experiment() == SMALL
    assert len(first.env()["starts"]) == 2


def test_a_finished_run_is_packed_and_can_be_read(run: Callable[..., list[Sample]], tmp_path: Path) -> None:
    samples = run()
    folder = _folder(tmp_path)
    folder.finish(samples, {"items": 12}, "<html></html>")
    assert {each.name for each in folder.path.iterdir()} == {
        "config.yaml", "env.json", "metrics.json", "report.html", "samples.jsonl.gz",
    }  # fmt: skip
    assert open_finished(folder.path).samples() == samples
    with pytest.raises(UsageError, match="is no run folder"):
        open_finished(tmp_path)


def test_items_that_cannot_be_run_are_recorded_as_failures_and_counted(run: Callable[..., list[Sample]]) -> None:
    # Every source is longer than 300 bytes.
    samples = run(engine=FakeEngine(context=300))
    failed = [sample for sample in samples if sample.error]
    assert {sample.arm for sample in failed} == set(SMALL.arms)
    assert all("was made for 300" in (sample.error or "") and not sample.correct for sample in failed)
    assert len(samples) == len({sample.cell for sample in samples})
    metrics = compute(SMALL, samples, {})
    assert metrics["arms"]["kv"]["failures"] == metrics["arms"]["kv"]["n"] == 12
    assert metrics["arms"]["kv"]["accuracy"] == 0.0


def test_a_batch_that_fails_leaves_the_others_alone(
    run: Callable[..., list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unspoken.errors import ContextOverflow
    from unspoken.session import Agent

    _, sources = load_task(SMALL)
    bad, read = sources[1], Agent.read

    def refusing(self: Agent, text: str) -> Any:
        if text == bad.text:
            raise ContextOverflow("Too long.", "Shorten it.")
        return read(self, text)

    monkeypatch.setattr(Agent, "read", refusing)
    experiment = msgspec.structs.replace(SMALL, arms=("kv", "full-text"), timed_items=0)
    samples = run(experiment)
    assert {sample.source for sample in samples if sample.error} == {bad.id}
    assert all(sample.error == "Too long. Shorten it." for sample in samples if sample.source == bad.id)
    assert all(sample.correct for sample in samples if sample.source != bad.id)
    # A failure is a finished cell: going on with the run does not try it again.
    watch = Killer()
    assert len(run(experiment, watch)) == 24
    assert watch.told == [(24, 24, "")]


def test_a_bug_is_not_taken_for_a_failed_item(
    run: Callable[..., list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "generate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run()


def test_what_a_task_asks_has_one_hash() -> None:
    task, sources = load_task(SMALL)
    assert task_hash(sources) == task_hash(task.sources(12, 1))
    assert task_hash(sources) != task_hash(task.sources(12, 2))
    with pytest.raises(UsageError, match="no task named"):
        load_task(Experiment(task="riddles"))


def test_experiments_are_read_from_yaml_and_wrong_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(msgspec.yaml.encode(SMALL))
    assert load_experiment(path) == SMALL
    for text, message in (
        ("name: x\ncolour: red", "unknown field"),
        ("items: 1", "items is 1"),
        ("arms: [kv, kv]", "Name each arm once"),
        ("arms: []", "at least one"),
        ("items: many", "not valid"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            load_experiment(path)
    with pytest.raises(StorageError, match="cannot be read"):
        load_experiment(tmp_path / "missing.yaml")


def test_a_results_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        begin(tmp_path / "file", SMALL, {}, {})


def test_an_unknown_arm_is_refused_before_anything_is_run(run: Callable[..., list[Sample]]) -> None:
    with pytest.raises(UsageError, match="no channel named"):
        run(msgspec.structs.replace(SMALL, arms=("kv", "telepathy")))


def test_an_arm_for_another_number_of_parts_is_refused_before_anything_is_run() -> None:
    check(SMALL)
    with pytest.raises(UsageError, match="names 2 channels, and the source has 1 part\\."):
        check(msgspec.structs.replace(SMALL, arms=("kv", "parts:kv,full-text")))
    check(msgspec.structs.replace(SMALL, task="conflict", arms=("parts:kv,full-text",)))


def test_what_was_written_last_is_kept_of_text_that_is_handed_on(run: Callable[..., list[Sample]]) -> None:
    arms = ("text@16", "relay@3:text@16", "relay@3:kv", "full-text")
    samples = run(msgspec.structs.replace(SMALL, arms=arms, timed_items=0))
    kept = {arm: [sample.message for sample in samples if sample.arm == arm] for arm in arms}
    assert all(kept["text@16"])
    assert all(kept["relay@3:text@16"])
    # Nothing was written on the way of columns, and the text itself is in the run already.
    assert set(kept["relay@3:kv"]) == set(kept["full-text"]) == {None}


def test_a_run_that_is_not_all_there_is_not_reported_as_finished(
    run: Callable[..., list[Sample]], tmp_path: Path
) -> None:
    # Ends after the first source's batch: every arm has answered its questions.
    with pytest.raises(KeyboardInterrupt):
        run(watch=Killer(after=len(SMALL.arms)))
    folder = _folder(tmp_path)
    held = folder.samples()
    assert len(held) == 6 * len(SMALL.arms)
    with pytest.raises(UsageError, match="is unfinished: 24 of its samples are there, and it has 52 at least"):
        rebuilt(folder.path)
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "env.json", "samples.jsonl"}
    # All but the timed ones are no more a finished run.
    with pytest.raises(KeyboardInterrupt):
        run(watch=Killer(after=len(SMALL.arms)))
    with pytest.raises(UsageError, match="is unfinished: 48 of"):
        rebuilt(folder.path)
    assert expected(SMALL, run()) == 52


def test_samples_packed_too_early_are_gone_on_with_and_none_is_lost(
    run: Callable[..., list[Sample]], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(watch=Killer(after=len(SMALL.arms)))
    folder = _folder(tmp_path)
    folder.finish(folder.samples(), {}, "")
    (folder.path / "metrics.json").unlink()
    samples = run()
    assert len(samples) == len({sample.cell for sample in samples}) == 52
    folder.finish(samples, {}, "")
    assert _timeless(folder.samples()) == _timeless(samples)
    assert not (folder.path / "samples.jsonl").exists()


def test_samples_of_arms_that_the_experiment_lacks_are_told(run: Callable[..., list[Sample]], tmp_path: Path) -> None:
    run()
    folder = _folder(tmp_path)
    fewer = msgspec.structs.replace(SMALL, arms=SMALL.arms[:-1])
    (folder.path / "config.yaml").write_bytes(msgspec.yaml.encode(fewer))
    with pytest.raises(UsageError, match=f"has samples of {SMALL.arms[-1]}, which its config.yaml lacks"):
        rebuilt(folder.path)


@pytest.mark.parametrize(("name", "data"), [("samples.jsonl", b'{"a": 1}\n'), ("env.json", b"")])
def test_a_damaged_run_is_not_gone_on_with(
    run: Callable[..., list[Sample]], tmp_path: Path, name: str, data: bytes
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(watch=Killer(after=1))
    (_folder(tmp_path).path / name).write_bytes(data)
    with pytest.raises(UsageError, match=r"is damaged: .*delete it and run it again"):
        run()


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    experiment = msgspec.structs.replace(SMALL, engine="fake")
    study = run_study(experiment, tmp_path, Killer())
    (study.folder / "metrics.json").unlink()
    env = (study.folder / "env.json").read_bytes()
    with RunFolder(study.folder).alone(), pytest.raises(UsageError, match="Another process is running"):
        run_study(experiment, tmp_path, Killer())
    assert (study.folder / "env.json").read_bytes() == env
    assert run_study(experiment, tmp_path, Killer()).folder == study.folder
