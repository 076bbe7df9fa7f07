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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unspoken.errors import StorageError
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


def train(
    module: nn.Module, loss: Loss, lessons: int, training: Training, folder: Path, watch: Callable[[Progress], None],
    anneal: Callable[[int], None] = lambda step: None,
) -> None:  # fmt: skip
    """Train a fuser, or go on with it, until all steps are taken.

    Args:
        module: The fuser; only its own parameters change.
        loss: Of one lesson.
        lessons: How many there are.
        training: How it is trained.
        folder: Where the checkpoint and the losses are kept.
        watch: Is told after each step.
        anneal: Is told each step's number before it is taken.

    Raises:
        StorageError: If the folder cannot be written, or its checkpoint is of another training.
    """
    parameters = [each for each in module.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=training.rate, weight_decay=training.decay)
    start = resumed(module, optimiser, folder)
    module.train()
    for step in range(start, training.steps):
        torch.manual_seed(hash((training.seed, step)) % 2**31)
        draw = random.Random(f"{training.seed}/{step}")  # noqa: S311 - reproducible, not secret
        anneal(step)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, training)
        began, parts = time.perf_counter(), _step(loss, lessons, step, training, draw)
        nn.utils.clip_grad_norm_(parameters, training.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        told = parts | {"seconds": time.perf_counter() - began}
        _append(folder / LOSSES, {"step": step} | {name: round(value, 6) for name, value in told.items()})
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
    aside = folder / f"{CHECKPOINT}.part"
    try:
        torch.save({"step": step, "module": module.state_dict(), "optimiser": optimiser.state_dict()}, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(folder / CHECKPOINT)
    except OSError as error:
        raise StorageError(
            f"The checkpoint cannot be written to {folder}: {error.strerror}.", "Free some space."
        ) from error


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
                f"The checkpoint {path} cannot be used: {str(error).splitlines()[0]}.",
                "Delete it to train from the start.",
            ) from error
    noted = losses(folder)
    if any(each["step"] >= step for each in noted):
        aside = folder / f"{LOSSES}.part"
        aside.write_text("".join(json.dumps(each) + "\n" for each in noted if each["step"] < step), encoding="utf-8")
        aside.replace(folder / LOSSES)
    return step


def losses(folder: Path) -> list[dict[str, Any]]:
    """Return what was noted of each step; a last line cut off by a kill is left out."""
    path = folder / LOSSES
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def _step(loss: Loss, lessons: int, step: int, training: Training, draw: random.Random) -> dict[str, float]:
    total: dict[str, float] = {}
    for turn in range(training.accumulate):
        number = lesson_of(step * training.accumulate + turn, lessons, training.seed)
        parts = loss(number, draw)
        (sum(parts.values(), torch.zeros(())) / training.accumulate).backward()  # type: ignore[no-untyped-call]
        for name, part in parts.items():
            total[name] = total.get(name, 0.0) + float(part.detach()) / training.accumulate
    return total


def _append(path: Path, noted: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(noted) + "\n")
