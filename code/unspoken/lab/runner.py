"""Run an experiment: every item in every arm, each reading made once and forked, resumable at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol, runtime_checkable

import msgspec
from torch import Tensor

from unspoken.channels.protocol import Reading, Request
from unspoken.engines.protocol import Engine, Limits
from unspoken.errors import UnspokenError
from unspoken.lab.arms import DONATED, Arm, build_arm, derangement
from unspoken.lab.experiment import Experiment
from unspoken.lab.measures import chosen, contained, exact_match, f1, kl_divergence
from unspoken.lab.record import RunFolder, Sample
from unspoken.lab.tasks import TASKS
from unspoken.lab.tasks.protocol import Item, Source, Task
from unspoken.session import Agent, Reply
from unspoken.spec import fingerprint

SKYLINE = "full-text"
# An answer ends where its sentence does.
STOPS = (".", "\n")


@runtime_checkable
class Watcher(Protocol):
    """Told how far a run is."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Called after each cell, and once at the start."""
        ...


def load_task(experiment: Experiment) -> tuple[Task, tuple[Source, ...]]:
    """Return an experiment's task and its sources.

    Raises:
        UsageError: If there is no such task.
    """
    task: Task = TASKS.load(experiment.task)()
    return task, task.sources(experiment.items, experiment.seed)


def task_hash(sources: Sequence[Source]) -> str:
    """Return a fingerprint of everything a task asks."""
    return fingerprint(json.dumps(msgspec.to_builtins(sources), sort_keys=True))


@dataclass
class Runner:
    """One experiment on one engine.

    Args:
        experiment: What is run.
        engine: A model that has passed the gate.
        sources: The task's sources.
        folder: Where samples go.
    """

    experiment: Experiment
    engine: Engine
    sources: Sequence[Source]
    folder: RunFolder
    _readings: dict[str, Reading] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sender = Agent(self.experiment.sender, self.engine)
        self._receiver = Agent(self.experiment.receiver, self.engine)
        self._arms: dict[str, Arm] = {name: build_arm(name) for name in self.experiment.arms}
        self._by_id = {source.id: source for source in self.sources}
        # Sources in order of length: a donor, the next in length, is then at hand in the same or the next batch.
        lengths = {source.id: len(self.engine.encode(source.text)) for source in self.sources}
        self._donors = derangement(lengths) if DONATED & self._arms.keys() else {}
        self._order = sorted(self.sources, key=lambda source: (lengths[source.id], source.id))

    def run(self, watch: Watcher) -> list[Sample]:
        """Run every cell that has no sample yet and return all samples.

        Items of one batch that fail together (a document too long, say) are recorded as failures.
        """
        samples = self.folder.samples()
        done = {sample.cell for sample in samples}
        cells = list(self._cells())
        total = sum(len(pairs) for _, pairs, _ in cells)
        finished = sum((item.id, arm, alone) in done for arm, pairs, alone in cells for _, item in pairs)
        watch(finished, total, "")
        skyline: dict[str, Tensor] = {}
        for arm, pairs, alone in cells:
            missing = [(source, item) for source, item in pairs if (item.id, arm, alone) not in done]
            if missing:
                needs = [(source, item) for source, item in missing if item.id not in skyline and not alone]
                if needs and arm != SKYLINE and SKYLINE in self._arms:
                    # The run was killed between the skyline and this arm: its distributions are made again.
                    self._cell(SKYLINE, needs, False, skyline)
                fresh = self._cell(arm, missing, alone, skyline)
                self.folder.append(fresh)
                samples += fresh
                finished += len(fresh)
                watch(finished, total, f"{arm}{' (alone)' if alone else ''}")
        return samples

    def _cells(self) -> Iterator[tuple[str, list[tuple[Source, Item]], bool]]:
        """Yield (arm, items, alone): the skyline first in each batch, then single items for the time columns."""
        arms = sorted(self._arms, key=lambda name: name != SKYLINE)
        size = self.experiment.batch_sources
        for at in range(0, len(self._order), size):
            pairs = [(source, item) for source in self._order[at : at + size] for item in source.items]
            for arm in arms:
                yield arm, pairs, False
        timed = self._order[:: max(1, len(self._order) // max(1, self.experiment.timed_items))]
        for source in timed[: self.experiment.timed_items]:
            for arm in arms:
                yield arm, [(source, source.items[0])], True

    def _cell(
        self, arm: str, pairs: Sequence[tuple[Source, Item]], alone: bool, skyline: dict[str, Tensor]
    ) -> list[Sample]:
        try:
            replies = self._replies(arm, pairs, alone)
        except UnspokenError as error:
            return [
                Sample(item.id, source.id, arm, alone, item.question, item.gold, error=str(error))
                for source, item in pairs
            ]
        if arm == SKYLINE and not alone:
            skyline.update(
                {item.id: reply.generation.first_logprobs for (_, item), reply in zip(pairs, replies, strict=True)}
            )
        return [
            _judged(source, item, arm, alone, reply, None if alone else skyline.get(item.id))
            for (source, item), reply in zip(pairs, replies, strict=True)
        ]

    def _replies(self, arm: str, pairs: Sequence[tuple[Source, Item]], alone: bool) -> tuple[Reply, ...]:
        # Alone, the source is read again, so that the time of reading belongs to this very run.
        read: Callable[[str], Reading] = self._read_again if alone else self._read
        readings = {source.id: read(source.id) for source, _ in pairs}
        requests = [Request(readings[source.id], item.question) for source, item in pairs]
        ids = {id(reading): name for name, reading in readings.items()}
        deliveries = self._arms[arm].deliver(
            requests, self._receiver, lambda reading: self._read(self._donors[ids[id(reading)]])
        )
        return self._receiver.answer(
            [item.question for _, item in pairs],
            deliveries,
            Limits(self.experiment.answer_tokens, STOPS),
            [[f" {option}" for option in item.options] for _, item in pairs],
            [item.stem for _, item in pairs],
        )

    def _read(self, source: str) -> Reading:
        if source not in self._readings:
            keep = 3 * self.experiment.batch_sources
            while len(self._readings) >= keep:
                del self._readings[next(iter(self._readings))]
            self._readings[source] = self._read_again(source)
        return self._readings[source]

    def _read_again(self, source: str) -> Reading:
        return self._sender.read(self._by_id[source].text)


def _judged(source: Source, item: Item, arm: str, alone: bool, reply: Reply, skyline: Tensor | None) -> Sample:
    logprobs = reply.generation.option_logprobs
    delivery = reply.delivery
    return Sample(
        item=item.id,
        source=source.id,
        arm=arm,
        alone=alone,
        question=item.question,
        gold=item.gold,
        answer=reply.text,
        correct=item.options[chosen(logprobs)] == item.gold if logprobs else exact_match(reply.text, item.gold),
        exact=exact_match(reply.text, item.gold),
        contained=contained(reply.text, item.gold),
        f1=f1(reply.text, item.gold),
        gold_logprob=logprobs[item.options.index(item.gold)] if logprobs else None,
        kl=None if skyline is None else kl_divergence(skyline, reply.generation.first_logprobs),
        bytes_moved=delivery.bytes_moved,
        tokens_prefilled=delivery.tokens_prefilled,
        tokens_skipped=delivery.tokens_skipped,
        seconds=asdict(delivery.seconds) | {"total": delivery.seconds.total},
        message=delivery.message if arm.startswith("text") else None,
    )
