"""How a fuser of each kind begins, and what teaches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from unspoken.engines.protocol import Engine
from unspoken.fusers.bottleneck import Bottleneck
from unspoken.fusers.c2c_kept import C2C
from unspoken.fusers.pair import Pair
from unspoken.fusers.ridge import Ridge
from unspoken.spec import RopeSpec
from unspoken.train.calibrate import calibrated, solved
from unspoken.train.config import Training
from unspoken.train.lesson import Lesson
from unspoken.train.loop import Course, write_state
from unspoken.train.store import Store, Watcher
from unspoken.train.teaching import Enriching, Teaching, Translating, receivers

START = "start.pt"
Fuser = Bottleneck | Ridge | C2C


@dataclass(frozen=True)
class Ready:
    """Everything a fuser begins with.

    Attributes:
        training: How it is trained.
        pair: The two models.
        sender_rope: The sender's rotary embedding.
        lessons: What is taught.
        store: The sender's columns of it.
        receiver: The receiver's model.
        folder: The run's folder.
        watch: Is told how far preparations are.
    """

    training: Training
    pair: Pair
    sender_rope: RopeSpec
    lessons: Sequence[Lesson]
    store: Store
    receiver: Engine
    folder: Path
    watch: Watcher


@dataclass(frozen=True)
class Started:
    """A fuser, and what it is taught.

    Attributes:
        fuser: The fuser.
        course: What it is taught; None if there is nothing to teach it.
    """

    fuser: Fuser
    course: Course | None = None


def bottleneck(ready: Ready) -> Started:
    """Return a bottleneck, its regression fitted, or taken from where a killed run kept it."""
    training = ready.training
    torch.manual_seed(training.seed)
    fuser = Bottleneck(msgspec.to_builtins(ready.pair), training.rank, training.width, training.blocks)
    kept = ready.folder / START
    if kept.is_file():
        fuser.load_state_dict(torch.load(kept, weights_only=True))
    else:
        fuser.start_from(calibrated(training, ready.pair, ready.lessons, ready.store, ready.receiver, ready.watch))
        write_state(fuser.state_dict(), kept)
    if not training.steps:
        return Started(fuser)
    loss, at_once = Translating(fuser, _teaching(ready)).loss, min(training.accumulate, torch.get_num_threads())
    return Started(fuser, Course(loss, len(ready.lessons), at_once))


def ridge(ready: Ready) -> Started:
    """Return a closed-form fuser, which is thereby done: a killed run solves it again."""
    return Started(solved(ready.training, ready.pair, ready.lessons, ready.store, ready.receiver, ready.watch))


def c2c(ready: Ready) -> Started:
    """Return C2C fusers as they are first drawn; nothing about them has a closed form."""
    training = ready.training
    torch.manual_seed(training.seed)
    fuser = C2C(
        msgspec.to_builtins(ready.pair),
        msgspec.to_builtins(ready.sender_rope),
        width=training.width,
        anneal_steps=max(1, training.steps),
    )
    if not training.steps:
        return Started(fuser)
    loss = Enriching(fuser, _teaching(ready)).loss
    # One lesson at a time: dropout and gates draw from torch's generator.
    return Started(fuser, Course(loss, len(ready.lessons), anneal=fuser.update_temperature))


STARTS: dict[str, Callable[[Ready], Started]] = {"bottleneck": bottleneck, "ridge": ridge, "c2c": c2c}


def _teaching(ready: Ready) -> Teaching:
    return Teaching(ready.training, ready.lessons, ready.store, receivers(ready.receiver))
