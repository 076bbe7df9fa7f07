"""Fit what has a closed form: the regression from the sender's columns to the receiver's own of the same text."""

from __future__ import annotations

from collections.abc import Sequence

from unspoken.channels.kv import content_columns
from unspoken.engines.protocol import Engine
from unspoken.fusers.lowrank import LowRank, fit_low_rank
from unspoken.fusers.normal import NormalEquations
from unspoken.fusers.pair import Pair
from unspoken.fusers.rows import as_rows
from unspoken.session import Agent
from unspoken.train.config import Training
from unspoken.train.lesson import Lesson
from unspoken.train.store import AGENTS, Store, Watcher


def spread(count: int, most: int) -> list[int]:
    """Return at most so many of the numbers below `count`, evenly over all."""
    taken = min(count, most)
    return [at * count // taken for at in range(taken)]


def calibrated(
    training: Training, pair: Pair, lessons: Sequence[Lesson], store: Store, receiver: Engine, watch: Watcher
) -> LowRank:
    """Return the regression of a bottleneck, fitted to some of the lessons."""
    readers = [Agent(name, receiver) for name in AGENTS]
    seen = NormalEquations(pair.sender.width, pair.receiver.width)
    numbers = spread(len(lessons), training.calibration)
    for done, number in enumerate(numbers):
        watch("regression", done, len(numbers))
        own = readers[number % len(readers)].read(lessons[number].text)
        seen.add(store.rows(number), as_rows(content_columns(own.cache)))
    watch("regression", len(numbers), len(numbers))
    return fit_low_rank(seen, training.rank, training.ridge, training.seed)
