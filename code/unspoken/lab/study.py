"""One experiment from start to finish: model, gate, run folder, cells, metrics, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from unspoken.api import load_gated
from unspoken.engines.gate import GateResult
from unspoken.engines.protocol import Engine
from unspoken.lab import record
from unspoken.lab.experiment import Experiment
from unspoken.lab.metrics import compute
from unspoken.lab.report import render
from unspoken.lab.runner import Runner, Watcher, load_task, task_hash
from unspoken.spec import fingerprint


@dataclass(frozen=True)
class Study:
    """What an experiment came to.

    Attributes:
        folder: The run folder.
        metrics: What `metrics.json` holds.
    """

    folder: Path
    metrics: dict[str, Any]


def run_study(experiment: Experiment, results: Path, watch: Watcher) -> Study:
    """Run an experiment, or go on with its unfinished run, and write everything about it.

    Raises:
        UnspokenError: If the model cannot be used, the task or an arm is unknown, or the folder cannot be written.
    """
    began = time.perf_counter()
    task, sources = load_task(experiment)
    engine, gate = load_gated(experiment.model, experiment.engine, experiment.loading)
    loaded = time.perf_counter()
    described = {
        "name": task.name,
        "version": task.version,
        "hash": task_hash(sources),
        "chance": _chance(sources),
    }
    env = environment(engine, gate, described) | {"seconds_load": loaded - began}
    identity = {key: env[key] for key in ("model", "task", "prompts", "packages", "revision", "gate")}
    folder = record.RunFolder.open(results, experiment, identity, env)
    samples = Runner(experiment, engine, sources, folder).run(watch)
    return close_study(folder, experiment, samples)


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

    spec = engine.spec
    prompts = "\0".join((text.WRITE, text.WRITE_ASKED, QUESTION, BRIEFLY))
    return {
        "machine": record.machine(),
        "packages": record.packages(),
        "revision": record.revision(),
        "engine": {"name": engine.name, "version": engine.version, "dtype": engine.dtype},
        "model": {
            "name": spec.name,
            "family": spec.family,
            "weights": spec.weights,
            "architecture": spec.architecture,
            "tokenizer": spec.tokenizer,
            "chat_template": spec.chat_template,
            "elements_per_column": spec.elements_per_column(),
        },
        "gate": msgspec.to_builtins(gate),
        "task": task,
        "prompts": fingerprint(prompts),
    }


def _chance(sources: tuple[Any, ...]) -> float | None:
    counts = {len(item.options) for source in sources for item in source.items}
    return 1 / counts.pop() if len(counts) == 1 and 0 not in counts else None
