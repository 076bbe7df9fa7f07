"""One experiment from start to finish: model, gate, run folder, cells, metrics, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from unspoken.api import load_gated
from unspoken.engines.gate import GateResult
from unspoken.engines.protocol import Engine, Loading
from unspoken.errors import UsageError
from unspoken.lab import provenance, record
from unspoken.lab.experiment import Experiment
from unspoken.lab.metrics import compute
from unspoken.lab.report import render
from unspoken.lab.runner import Runner, Watcher, check, load_task, task_hash
from unspoken.lab.tasks.protocol import Source, Task
from unspoken.spec import fingerprint

IDENTITY = ("model", "task", "prompts", "packages", "revision")
"""What must be the same, besides the experiment, to go on with a run.

That the gate was passed is known; its last digits may differ from one machine to the next.
"""

Begin = Callable[[dict[str, Any], dict[str, Any]], record.RunFolder]


@dataclass(frozen=True)
class Study:
    """What an experiment came to.

    Attributes:
        folder: The run folder.
        metrics: What `metrics.json` holds.
    """

    folder: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """A model that has passed the gate, and how long it took to get there."""

    engine: Engine
    gate: GateResult
    seconds: float


@runtime_checkable
class Host(Protocol):
    """Runs experiments: this process, or the workers of a cluster."""

    def run(self, experiment: Experiment, begin: Begin, watch: Watcher) -> Study:
        """Run an experiment that has been checked.

        Args:
            experiment: What is run.
            begin: Returns the run folder, given what must be the same to go on with a run, and what is recorded.
            watch: Told how far it is.

        Raises:
            UnspokenError: If the model cannot be used, or the folder cannot be written.
        """
        ...

    def close(self) -> None:
        """Give back models and workers."""
        ...


class Here:
    """Runs experiments in this process; the model stays until another one is asked for."""

    def __init__(self) -> None:
        self._held: tuple[object, Loaded] | None = None

    def run(self, experiment: Experiment, begin: Begin, watch: Watcher) -> Study:
        """Run an experiment that has been checked."""
        with self.opened(experiment) as (runner, env):
            folder = begin(identity(env), env)
            return close_study(folder, experiment, runner.run(folder, watch))

    @contextmanager
    def opened(self, experiment: Experiment) -> Iterator[tuple[Runner, dict[str, Any]]]:
        """Yield what runs an experiment, and what is recorded about that."""
        loaded = self._loaded(experiment)
        task, sources = load_task(experiment)
        env = environment(loaded.engine, loaded.gate, _described_task(experiment, task, sources))
        env |= {"seconds_load": loaded.seconds}
        senders = _senders_engine(loaded.engine, experiment)
        try:
            if experiment.sender_model is not None:
                env |= {"senders": described_model(senders)}
            yield Runner(experiment, loaded.engine, sources, task.measure, senders), env
        finally:
            if senders is not loaded.engine:
                senders.close()

    def close(self) -> None:
        """Give back the model."""
        if self._held is not None:
            self._held[1].engine.close()
            self._held = None

    def _loaded(self, experiment: Experiment) -> Loaded:
        model = (experiment.model, experiment.engine, experiment.loading)
        if self._held is None or self._held[0] != model:
            self.close()
            self._held = model, load(experiment)
        return self._held[1]


def load(experiment: Experiment) -> Loaded:
    """Load an experiment's model.

    Raises:
        UnspokenError: If it cannot be used.
    """
    began = time.perf_counter()
    engine, gate = load_gated(experiment.model, experiment.engine, experiment.loading)
    return Loaded(engine, gate, time.perf_counter() - began)


def identity(env: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same to go on with a run, of what is recorded about it."""
    return {name: env[name] for name in IDENTITY}


def run_study(experiment: Experiment, results: Path, watch: Watcher, host: Host | None = None) -> Study:
    """Run an experiment, or go on with its unfinished run, and write everything about it.

    Args:
        experiment: What is run.
        results: The results folder.
        watch: Told how far it is.
        host: What runs it; by default this process.

    Raises:
        UnspokenError: If the model cannot be used, the task or an arm is unknown, another process is at the run, or the
            folder cannot be written.
    """

    def begin(identity: dict[str, Any], env: dict[str, Any]) -> record.RunFolder:
        folder = record.RunFolder.found(results, experiment, identity)
        held.enter_context(folder.alone())
        return record.RunFolder.start(folder.path, experiment, env)

    check(experiment)
    with ExitStack() as held, closing(host or Here()) as running:
        return running.run(experiment, begin, watch)


def _described_task(experiment: Experiment, task: Task, sources: tuple[Source, ...]) -> dict[str, Any]:
    return {
        "name": experiment.task,
        "version": task.version,
        "hash": task_hash(sources),
        "chance": _chance(sources),
        "measure": task.measure,
        "senders": max(len(source.read) for source in sources),
    }


def _senders_engine(engine: Engine, experiment: Experiment) -> Engine:
    """Return what the senders run on: the receiver's engine, another model, or a changed copy of the receiver's.

    Raises:
        UsageError: If both are asked for, or the weights cannot be changed.
        UnspokenError: If the other model cannot be used.
    """
    from unspoken.engines.transformers import TransformersEngine
    from unspoken.engines.tuned import low_rank_copy

    change = experiment.sender_change
    if experiment.sender_model is not None:
        if change is not None:
            raise UsageError("The senders cannot be another model and a changed copy at once.", "Leave one out.")
        return load_gated(experiment.sender_model, experiment.sender_engine, Loading())[0]
    if change is None:
        return engine
    if not isinstance(engine, TransformersEngine):
        raise UsageError(
            f"The weights of the engine '{engine.name}' cannot be changed.", "Use transformers with sender_change."
        )
    return low_rank_copy(engine, change.size, change.rank, change.seed)


def expected(experiment: Experiment, samples: Sequence[record.Sample]) -> int:
    """Return how many samples a finished run has at least, as far as can be told without its task's data.

    Every question in every arm, at least as many as were asked for, and one of each source that is timed.
    """
    asked = {sample.item: sample.source for sample in samples if not sample.alone}
    timed = min(experiment.timed_items, len(set(asked.values())))
    return (max(experiment.items, len(asked)) + timed) * len(experiment.arms)


def close_study(folder: record.RunFolder, experiment: Experiment, samples: list[record.Sample]) -> Study:
    """Compute metrics and report of a run from its folder alone and write them."""
    ordered = sorted(samples, key=lambda sample: (sample.alone, sample.item, experiment.arms.index(sample.arm)))
    env = folder.env()
    metrics = compute(experiment, ordered, env)
    folder.finish(ordered, metrics, render(experiment, ordered, metrics, env))
    return Study(folder.path, metrics)


def environment(engine: Engine, gate: GateResult, task: dict[str, Any]) -> dict[str, Any]:
    """Return what is recorded about machine, software, model and prompts."""
    from unspoken.channels import text
    from unspoken.session import BRIEFLY, QUESTION

    prompts = "\0".join((text.WRITE, text.WRITE_ASKED, QUESTION, BRIEFLY))
    return {
        "machine": provenance.machine(),
        "packages": provenance.packages(),
        "revision": provenance.revision(),
        "engine": {"name": engine.name, "version": engine.version, "dtype": engine.dtype},
        "model": described_model(engine),
        "gate": msgspec.to_builtins(gate),
        "task": task,
        "prompts": fingerprint(prompts),
    }


def described_model(engine: Engine) -> dict[str, Any]:
    """Return what is recorded about a model."""
    spec = engine.spec
    told = ("name", "family", "weights", "architecture", "tokenizer", "chat_template")
    return {field: getattr(spec, field) for field in told} | {"elements_per_column": spec.elements_per_column()}


def _chance(sources: tuple[Any, ...]) -> float | None:
    counts = {len(item.options) for source in sources for item in source.items}
    return 1 / counts.pop() if len(counts) == 1 and 0 not in counts else None
