"""One loop: a lesson or a few, a loss, a step of the optimiser; killed at any moment, it goes on where it was.

Everything drawn depends on the seed and the step alone, and a checkpoint holds weights and optimiser. So a run that was
killed ends with the very weights of one that was not (on the same machine, with the same number of threads).
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unspoken.errors import StorageError
from unspoken.lab import folders
from unspoken.train.config import Training

CHECKPOINT, LOSSES = "checkpoint.pt", "loss.jsonl"
Loss = Callable[[int, random.Random], dict[str, Tensor]]
"""Returns the parts of the loss of one lesson, given its number and what to draw with."""


@dataclass(frozen=True)
class Progress:
    """How far training is.

    Attributes:
        step: Steps taken.
        steps: Of how many.
        losses: Parts of the loss, each a mean over the steps since the last time.
    """

    step: int
    steps: int
    losses: dict[str, float]


@dataclass(frozen=True)
class Course:
    """What is taught, and how much of it at a time.

    Attributes:
        loss: Of one lesson.
        lessons: How many there are.
        at_once: Lessons of one step that are computed side by side, each by its share of torch's threads: faster than
            one after the other by all of them. More than one only where the loss draws nothing from torch's generator,
            which all threads share.
        anneal: Is told each step's number before it is taken.
    """

    loss: Loss
    lessons: int
    at_once: int = 1
    anneal: Callable[[int], None] = lambda step: None


def train(
    module: nn.Module, course: Course, training: Training, folder: Path, watch: Callable[[Progress], None]
) -> None:
    """Train a fuser, or go on with it, until all steps are taken.

    Args:
        module: The fuser; only its own parameters change.
        course: What it is taught.
        training: How it is trained.
        folder: Where the checkpoint and the losses are kept.
        watch: Is told after each step.

    Raises:
        StorageError: If the folder cannot be written, or its checkpoint is of another training.
    """
    parameters = [each for each in module.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=training.rate, weight_decay=training.decay)
    start = resumed(module, optimiser, folder)
    module.train()
    threads = max(1, torch.get_num_threads() // course.at_once)
    with ThreadPoolExecutor(course.at_once, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        for step in range(start, training.steps):
            torch.manual_seed(hash((training.seed, step)) % 2**31)
            course.anneal(step)
            for group in optimiser.param_groups:
                group["lr"] = rate(step, training)
            began, parts = time.perf_counter(), _gradients(parameters, course, step, training, pool)
            nn.utils.clip_grad_norm_(parameters, training.clip)
            optimiser.step()
            told = parts | {"seconds": time.perf_counter() - began}
            _note(folder / LOSSES, {"step": step} | {name: round(value, 6) for name, value in told.items()})
            if (step + 1) % training.checkpoint == 0 or step + 1 == training.steps:
                keep(module, optimiser, step + 1, folder)
            watch(Progress(step + 1, training.steps, parts))
    module.eval()


def rate(step: int, training: Training) -> float:
    """Return the learning rate of a step: a linear rise, then half a cosine down to a twentieth."""
    if step < training.warmup:
        return training.rate * (step + 1) / training.warmup
    along = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * along)))


def lesson_of(at: int, lessons: int, seed: int) -> int:
    """Return which lesson is the `at`-th one taught: all of them in an order of its own, epoch after epoch."""
    epoch, within = divmod(at, lessons)
    order = list(range(lessons))
    random.Random(f"{seed}/epoch/{epoch}").shuffle(order)  # noqa: S311 - reproducible, not secret
    return order[within]


def keep(module: nn.Module, optimiser: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Write a checkpoint; a run killed while it is written finds the one before.

    Raises:
        StorageError: If it cannot be written.
    """
    write_state({"step": step, "module": module.state_dict(), "optimiser": optimiser.state_dict()}, folder / CHECKPOINT)


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write tensors by name into a file: a kill leaves the old one or the new one.

    Raises:
        StorageError: If it cannot be written.
    """
    aside = path.with_name(f"{path.name}.part")
    try:
        torch.save(state, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where a disk is full.
        raise StorageError(f"{path} cannot be written: {_first_line(error)}.", "Free some space.") from error


def resumed(module: nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> int:
    """Put a checkpoint's state in place, forget what was noted after it, and return how many steps it has seen.

    Raises:
        StorageError: If there is a checkpoint that cannot be read, or of another fuser.
    """
    path = folder / CHECKPOINT
    step = 0
    if path.is_file():
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True)
            module.load_state_dict(found["module"])
            optimiser.load_state_dict(found["optimiser"])
            step = int(found["step"])
        except Exception as error:  # Whatever a damaged file makes of itself; torch names no class for it.
            raise StorageError(
                f"The checkpoint {path} cannot be used: {_first_line(error)}.",
                "Delete it to train from the start.",
            ) from error
    # Written anew even if no step is to be forgotten: its last line may be cut off.
    noted = [json.dumps(each) + "\n" for each in losses(folder) if each["step"] < step]
    with folders.writable(folder):
        folders.write(folder / LOSSES, "".join(noted).encode())
    return step


def losses(folder: Path) -> list[dict[str, Any]]:
    """Return what was noted of each step; a last line cut off by a kill is left out."""
    path = folder / LOSSES
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def _gradients(
    parameters: Sequence[nn.Parameter], course: Course, step: int, training: Training, pool: Executor
) -> dict[str, float]:
    """Put the mean gradient of a step's lessons in place, and return the parts of the mean loss."""

    def taught(turn: int) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
        number = lesson_of(step * training.accumulate + turn, course.lessons, training.seed)
        draw = random.Random(f"{training.seed}/{step}/{turn}")  # noqa: S311 - reproducible, not secret
        parts = course.loss(number, draw)
        gradients = torch.autograd.grad(sum(parts.values(), torch.zeros(())), parameters, allow_unused=True)
        return {name: float(part.detach()) for name, part in parts.items()}, gradients

    total: dict[str, float] = {}
    for each in parameters:
        each.grad = torch.zeros_like(each)
    # Whichever lesson is done first, they are added up in the same order.
    for parts, gradients in pool.map(taught, range(training.accumulate)):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad += gradient / training.accumulate
        for name, part in parts.items():
            total[name] = total.get(name, 0.0) + part / training.accumulate
    return total


def _note(path: Path, noted: dict[str, Any]) -> None:
    with folders.writable(path.parent), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(noted) + "\n")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
