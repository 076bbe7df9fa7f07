"""The run folder: what is written while an experiment runs, and how a killed run is taken up again.

results/<experiment>/<UTC time>-<short id>/
    config.yaml        the experiment as it was run
    env.json           machine, versions, model, gate, when and how
    samples.jsonl      one line per item and arm, appended as they are made
    metrics.json       written last: a folder without it is an unfinished run
    samples.jsonl.gz   replaces samples.jsonl when the run is finished
    report.html
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from filelock import FileLock, Timeout

from unspoken.errors import UsageError
from unspoken.lab.experiment import Experiment
from unspoken.lab.folders import opened, writable, write, write_json
from unspoken.lab.provenance import command_line


class Sample(msgspec.Struct, frozen=True):
    """One item in one arm.

    Attributes:
        item: The item's id.
        source: Its source's id: the cluster.
        arm: The arm's name.
        alone: Whether it was run by itself, for its time; such samples count in no accuracy.
        question, gold, answer: Texts.
        correct: Whether the gold option was the most probable or, without options, the answer contains a right one.
        exact, contained, f1: The generated answer against the right one it comes closest to.
        score: What the task is judged by, 0 to 1; None, in old runs, is 1 for right and 0 for wrong.
        gold_logprob: Log-probability of the gold option.
        margin: How far it is above that of the most probable other option, in nats.
        kl: KL from full-text's next-token distribution to this arm's, in nats.
        bytes_moved, tokens_prefilled, tokens_skipped, recomputed: Of the delivery.
        seconds: By stage.
        message: The text that was sent, if text was.
        error: Why there is no answer, if there is none; the item then counts as wrong.
    """

    item: str
    source: str
    arm: str
    alone: bool
    question: str
    gold: str
    answer: str = ""
    correct: bool = False
    exact: bool = False
    contained: bool = False
    f1: float = 0.0
    score: float | None = None
    gold_logprob: float | None = None
    margin: float | None = None
    kl: float | None = None
    bytes_moved: int = 0
    tokens_prefilled: int = 0
    tokens_skipped: int = 0
    recomputed: float = 0.0
    seconds: dict[str, float] = {}
    message: str | None = None
    error: str | None = None

    @property
    def judged(self) -> float:
        """What the task is judged by, 0 to 1."""
        return float(self.correct) if self.score is None else self.score

    @property
    def cell(self) -> tuple[str, str, bool]:
        """What is never run twice."""
        return self.item, self.arm, self.alone


class Contents(NamedTuple):
    """Everything that a run's folder holds."""

    experiment: Experiment
    samples: list[Sample]
    env: dict[str, Any]


class RunFolder:
    """One run's folder, open for appending."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def found(results: Path, experiment: Experiment, identity: Mapping[str, Any]) -> RunFolder:
        """Return the unfinished run of the same experiment, as it was left, or a new and empty one.

        Args:
            results: The results folder.
            experiment: As it will be run.
            identity: What else must be the same to go on with a run: model, code, versions.

        Raises:
            StorageError: If the folder cannot be written.
        """
        return RunFolder(opened(results / experiment.name, [msgspec.to_builtins(experiment), identity]))

    @staticmethod
    def start(path: Path, experiment: Experiment, env: Mapping[str, Any]) -> RunFolder:
        """Return the run folder at an existing path, with one start more on record.

        Args:
            path: Where it is.
            experiment: As it will be run.
            env: What is recorded about this machine and start.

        Raises:
            StorageError: If the folder cannot be written.
        """
        with writable(path):
            write(path / "config.yaml", msgspec.yaml.encode(experiment))
            write_env(path, env)
        return RunFolder(path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from going on with this run; a killed one gives it free.

        The lock lies beside the folder and stays: to delete it would take it from a process that is about to lock it.

        Raises:
            UsageError: If another process is at it.
        """
        try:
            held = FileLock(self.path.parent / f".{self.path.name}.lock").acquire(blocking=False)
        except Timeout as error:
            raise UsageError(
                f"Another process is running {self.path}.", "Wait for it, or give another --results."
            ) from error
        with held:
            yield

    def env(self) -> dict[str, Any]:
        """Return what was recorded about machine and start.

        Raises:
            UsageError: If it cannot be read.
        """
        with self._sound():
            found: dict[str, Any] = json.loads((self.path / "env.json").read_text(encoding="utf-8"))
        return found

    def experiment(self) -> Experiment:
        """Return the experiment as it was run.

        Raises:
            UsageError: If it cannot be read.
        """
        with self._sound():
            return msgspec.yaml.decode((self.path / "config.yaml").read_bytes(), type=Experiment)

    def samples(self) -> list[Sample]:
        """Return every sample so far; nothing is changed, and a line that is not whole is passed over.

        Raises:
            UsageError: If they cannot be read.
        """
        with self._sound():
            held = self._packed()
            there = {sample.cell for sample in held}
            return held + [sample for sample in self._loose() if sample.cell not in there]

    def resumed(self) -> list[Sample]:
        """Return every sample so far, for whoever goes on with the run and holds it alone.

        A line that a kill cut short is dropped from the file: its cell will be run again.

        Raises:
            UsageError: If they cannot be read.
            StorageError: If the file cannot be written.
        """
        loose = self.path / "samples.jsonl"
        with self._sound():
            data = loose.read_bytes() if loose.exists() else b""
        whole = _whole_lines(data)
        if whole != data:
            with writable(self.path):
                write(loose, whole)
        return self.samples()

    def contents(self) -> Contents:
        """Return experiment, samples and record.

        Raises:
            UsageError: If one of them cannot be read, or they do not belong together.
        """
        held = Contents(self.experiment(), self.samples(), self.env())
        strange = {sample.arm for sample in held.samples} - set(held.experiment.arms)
        if strange:
            raise UsageError(
                f"The run in {self.path} has samples of {', '.join(sorted(strange))}, which its config.yaml lacks.",
                "Restore config.yaml.",
            )
        return held

    def append(self, samples: Iterable[Sample]) -> None:
        """Add samples in one write.

        Raises:
            StorageError: If there is no room, say; what was there before stays.
        """
        lines = b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples)
        with writable(self.path), open(self.path / "samples.jsonl", "ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, samples: Iterable[Sample], metrics: Mapping[str, Any], report: str) -> None:
        """Write samples, report and, last, the metrics that mark the run as finished.

        Samples that all lie there packed are the evidence of a finished run, and stay as they were written.

        Raises:
            StorageError: If they cannot be written; the run can then be gone on with.
        """
        packed = self.path / "samples.jsonl.gz"
        every = list(samples)
        lines = b"".join(msgspec.json.encode(sample) + b"\n" for sample in every)
        with writable(self.path):
            if len(self._packed()) < len(every):
                write(packed, gzip.compress(lines, mtime=0))
            write(self.path / "report.html", report.encode())
            write_json(self.path / "metrics.json", metrics)
            (self.path / "samples.jsonl").unlink(missing_ok=True)

    def _packed(self) -> list[Sample]:
        packed = self.path / "samples.jsonl.gz"
        return _decoded(gzip.decompress(packed.read_bytes()).splitlines()) if packed.exists() else []

    def _loose(self) -> list[Sample]:
        loose = self.path / "samples.jsonl"
        return _decoded(_whole_lines(loose.read_bytes()).splitlines()) if loose.exists() else []

    @contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError, zlib.error, msgspec.MsgspecError) as error:
            raise UsageError(
                f"The run in {self.path} is damaged: {error}.", "Restore its files, or delete it and run it again."
            ) from error


def write_env(path: Path, env: Mapping[str, Any]) -> None:
    """Record machine, versions and one start more of the run in a folder."""
    earlier = RunFolder(path).env().get("starts", []) if (path / "env.json").exists() else []
    starts = [*earlier, {"utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "command": command_line()}]
    write_json(path / "env.json", {"run": path.name, **env, "starts": starts})


def open_finished(path: Path) -> RunFolder:
    """Return the run folder at a path, for reading.

    Raises:
        UsageError: If there is no run in it.
    """
    folder = RunFolder(path)
    if not all((path / name).exists() for name in ("config.yaml", "env.json")):
        raise UsageError(f"{path} is no run folder: it lacks config.yaml or env.json.", "Give a folder below results/.")
    return folder


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _decoded(lines: Iterable[bytes]) -> list[Sample]:
    return [msgspec.json.decode(line, type=Sample) for line in lines]
