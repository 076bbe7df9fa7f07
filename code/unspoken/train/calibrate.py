"""Fit what has a closed form: regressions from the sender's columns to the receiver's own of the same text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.channels.kv import content_columns
from unspoken.engines.protocol import Engine
from unspoken.engines.queries import querying
from unspoken.errors import UsageError
from unspoken.fusers.lowrank import LowRank, fit_low_rank
from unspoken.fusers.normal import NormalEquations
from unspoken.fusers.pair import Pair
from unspoken.fusers.ridge import Ridge
from unspoken.fusers.ridge_fit import HeldOut, Windows
from unspoken.fusers.rows import as_rows
from unspoken.session import Agent
from unspoken.train.config import Training
from unspoken.train.lesson import Lesson
from unspoken.train.store import AGENTS, Store, Watcher

# Texts held out to choose layers by, and the last tokens of a question that look at one.
JUDGES, PROBES = 8, 32


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


def solved(
    training: Training, pair: Pair, lessons: Sequence[Lesson], store: Store, receiver: Engine, watch: Watcher
) -> Ridge:
    """Return the closed-form fuser of some of the lessons.

    An eighth of these lessons, `JUDGES` at most, is held out to choose each map's layers and penalties by.

    Raises:
        UsageError: If there are too few lessons, or the receiver does not show its queries.
    """
    readers = [Agent(name, receiver) for name in AGENTS]
    seen, numbers = Windows(pair, training.window), spread(len(lessons), training.calibration)
    judging, held = judges(numbers), []
    for done, number in enumerate(numbers):
        watch("regression", done, len(numbers))
        reader, sent = readers[number % len(readers)], store.rows(number)
        own = reader.read(lessons[number].text).cache
        if number in judging:
            held.append(held_out(reader, lessons[number], sent, own))
        else:
            seen.add(sent, as_rows(content_columns(own)))
    maps = seen.fitted(held, receiver.spec.rope, training.sources, training.ridge)
    watch("regression", len(numbers), len(numbers))
    return Ridge.of(pair, maps)


def judges(numbers: Sequence[int]) -> set[int]:
    """Return which lessons are held out of some.

    Raises:
        UsageError: If there is but one.
    """
    if len(numbers) < 2:
        raise UsageError(
            f"A ridge fuser cannot be fitted to {len(numbers)} lessons: one has to be held out.",
            "Give more lessons.",
        )
    return {numbers[at] for at in spread(len(numbers), max(1, min(JUDGES, len(numbers) // 8)))}


def held_out(reader: Agent, lesson: Lesson, sent: Float[Tensor, "columns sender"], own: KVCache) -> HeldOut:
    """Return a lesson as a receiver has read it, and what it asks when it is asked about it.

    Args:
        reader: The receiver.
        lesson: The text and its questions.
        sent: The sender's columns of the text.
        own: The receiver's columns, prefix included.
    """
    asked, columns = lesson.asked[0], own.span("content")
    queries = querying(reader.engine, "ridge").queries(reader.asked(asked.question, asked.stem), own, PROBES)
    keys = tuple(layer.keys.to(torch.float32) for layer in columns.layers)
    return HeldOut(sent, columns.positions, queries, keys, tuple(e.values.to(torch.float32) for e in columns.layers))
