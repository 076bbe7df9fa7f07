"""One training from start to finish: models, lessons, the sender's columns, regression, loop, the fuser's folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from unspoken.api import load_gated
from unspoken.engines.protocol import Engine, Loading
from unspoken.engines.tuned import noisy_copy
from unspoken.errors import UsageError
from unspoken.fusers.pair import Pair
from unspoken.lab import folders, provenance, record
from unspoken.spec import fingerprint
from unspoken.train.card import card, curve
from unspoken.train.config import Training
from unspoken.train.lesson import Lesson
from unspoken.train.lessons import lessons
from unspoken.train.loop import Progress, losses, train
from unspoken.train.starts import STARTS, Fuser, Ready
from unspoken.train.store import Store, Watcher

EXPERIMENT = "fusers"
COLUMNS, TIMES = "columns", "times.txt"


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        run: The run folder.
        fuser: The fuser's folder.
        metrics: What the run's `metrics.json` holds.
    """

    run: Path
    fuser: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Watchers:
    """Who is told how far a training is.

    Attributes:
        preparing: While columns are computed and the regression fitted.
        training: After each step.
    """

    preparing: Watcher
    training: Callable[[Progress], None]


def open_pair(training: Training) -> tuple[Engine, Engine]:
    """Load a training's sender and receiver.

    Raises:
        UnspokenError: If one of them cannot be used.
    """
    receiver, _ = load_gated(training.receiver, "transformers", Loading())
    if training.sender_noise:
        if training.sender != training.receiver:
            raise UsageError(
                f"The sender is to be a noisy copy of '{training.receiver}', and is '{training.sender}'.",
                "Name one model for both, or leave sender_noise out.",
            )
        return noisy_copy(receiver, training.sender_noise, training.seed), receiver
    if (training.sender, training.sender_engine) == (training.receiver, "transformers"):
        return receiver, receiver
    return load_gated(training.sender, training.sender_engine, Loading())[0], receiver


def run_training(training: Training, results: Path, shelf: Path, watch: Watchers) -> Trained:
    """Train a fuser, or go on with its unfinished run, and put it on the shelf.

    Args:
        training: How.
        results: Where run folders are.
        shelf: Where fusers are; it gets the training's name there.
        watch: Who is told how far it is.

    Raises:
        UnspokenError: If a model, a material or a folder cannot be used.
    """
    sender, receiver = open_pair(training)
    pair, taught = Pair.of(sender.spec, receiver.spec), lessons(training, receiver)
    folder = _opened(training, results, pair, taught)
    store = Store(folder.parent / COLUMNS, taught, pair, training.sender_engine)
    with _timed(folder, "columns"):
        store.fill(sender, receiver, watch.preparing)
    ready = Ready(training, pair, sender.spec.rope, taught, store, receiver, folder, watch.preparing)
    with _timed(folder, "start"):
        started = STARTS[training.kind](ready)
    fuser = started.fuser
    if started.course is not None:
        train(fuser, started.course, training, folder, watch.training)
    metrics = measured(folder, fuser, training, len(taught))
    target = shelf / training.name
    with folders.writable(target):
        fuser.save_pretrained(target)
        folders.write(target / "README.md", card(training, pair, metrics, folder).encode())
        folders.write(target / "training.yaml", msgspec.yaml.encode(training))
    for each in (target, folder) if metrics["steps"] else ():  # Of what was solved for there is no curve.
        with folders.writable(each):
            folders.write(each / "loss.svg", curve(losses(folder)))
    with folders.writable(folder):
        folders.write_json(folder / "metrics.json", metrics)
    return Trained(folder, target, metrics)


def measured(folder: Path, fuser: Fuser, training: Training, taught: int) -> dict[str, Any]:
    """Return what is to be said about a training; its time is that of all starts, should it have been killed."""
    noted, timed = losses(folder), (folder / TIMES).read_text(encoding="utf-8").splitlines()
    seconds = {"columns": 0.0, "start": 0.0, "steps": sum(each["seconds"] for each in noted)}
    for line in timed:
        what, took = line.split()
        seconds[what] += float(took)
    last = noted[-100:]
    parts = sorted({name for each in last for name in each} - {"step", "seconds"})
    means = {name: [each[name] for each in last if name in each] for name in parts}
    return {
        "experiment": EXPERIMENT,
        "name": training.name,
        "kind": training.kind,
        "parameters": sum(each.numel() for each in fuser.state_dict().values()),
        "trained_parameters": sum(each.numel() for each in fuser.parameters()),
        "lessons": taught,
        "steps": len(noted),
        "seconds": seconds,
        "last_losses": {name: sum(values) / len(values) for name, values in means.items()},
    }


@contextmanager
def _timed(folder: Path, what: str) -> Iterator[None]:
    """Note how long something took, even if it is broken off; only a kill leaves nothing."""
    began = time.perf_counter()
    try:
        yield
    finally:
        with folders.writable(folder), (folder / TIMES).open("a", encoding="utf-8") as file:
            file.write(f"{what} {time.perf_counter() - began:.3f}\n")


def _opened(training: Training, results: Path, pair: Pair, taught: Sequence[Lesson]) -> Path:
    """Return the run folder: the unfinished one of the same training, models and code, or a new one."""
    told = json.dumps([msgspec.to_builtins(each) for each in (training, pair)] + [[each.text for each in taught]])
    env = {"machine": provenance.machine(), "packages": provenance.packages(), "revision": provenance.revision()}
    folder = folders.opened(results / EXPERIMENT, [told, env["revision"]])
    with folders.writable(folder):
        folders.write(folder / "config.yaml", msgspec.yaml.encode(training))
        record.write_env(folder, env | {"pair": msgspec.to_builtins(pair), "lessons": fingerprint(told)})
    return folder
