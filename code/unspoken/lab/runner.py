"""Run an experiment: every item in every arm, each reading made once and forked, resumable at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol, runtime_checkable

import msgspec
from torch import Tensor

from unspoken.channels.protocol import Reading, Readings, Request
from unspoken.engines import ENGINES
from unspoken.engines.protocol import Engine, Limits
from unspoken.errors import ModelNotFound, UnspokenError, UsageError
from unspoken.lab.arms import Arm, build_arm, derangement, in_running_order, needs_donor
from unspoken.lab.experiment import Experiment
from unspoken.lab.measures import chosen, judged, kl_divergence, margin
from unspoken.lab.parts import Parts
from unspoken.lab.record import RunFolder, Sample
from unspoken.lab.relay import hops_of
from unspoken.lab.tasks import build_task
from unspoken.lab.tasks.lines import is_file
from unspoken.lab.tasks.protocol import Character, Item, Measure, Source, Task
from unspoken.session import Agent, Reply
from unspoken.spec import fingerprint

SKYLINE = "full-text"
KEPT_CHARACTERS = 64
# An answer ends where its sentence does; words of one's own may hold a point ("8.5"), options do not.
STOPS: dict[Measure, tuple[str, ...]] = {"options": (".", "\n"), "contained": (". ", "\n"), "f1": (". ", "\n")}


@runtime_checkable
class Watcher(Protocol):
    """Told how far a run is."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Called after each arm of a batch, and once at the start."""
        ...


Asked = tuple[str, str, bool]
"""What is never run twice: an item's id, an arm, and whether it was run alone."""

Part = tuple[str, int]
"""A source's id and which of its parts: what one sender reads."""


def load_task(experiment: Experiment) -> tuple[Task, tuple[Source, ...]]:
    """Return an experiment's task and its sources.

    Raises:
        UsageError: If there is no such task, it cannot be asked so, or there are fewer senders than parts of a source.
        StorageError: If the task's file cannot be read.
    """
    task = build_task(experiment.task, experiment.data)
    sources = task.sources(experiment.items, experiment.seed)
    parts = max(len(source.read) for source in sources)
    if parts > len(experiment.senders):
        raise UsageError(
            f"The task '{experiment.task}' has sources in {parts} parts, and there are "
            f"{len(experiment.senders)} senders: {', '.join(experiment.senders)}.",
            "Name more in `further_senders`.",
        )
    return task, sources


def check(experiment: Experiment) -> None:
    """Refuse what cannot be run, before a model is loaded or a folder made.

    Raises:
        UsageError: If an arm, the task or the engine is unknown or does not take its options, or there are too few
            sources for a control.
        ModelNotFound: If the model is a file that does not exist.
        StorageError: If the task's file cannot be read.
    """
    arms = list(map(build_arm, experiment.arms))
    if experiment.engine not in ENGINES.names():
        ENGINES.load(experiment.engine)
    model = experiment.model
    # Of what is no file, a name with two strokes may be one of a hub; see `unspoken.modelstore.resolve_gguf`.
    if model.endswith(".gguf") and not is_file(model) and (model.count("/") != 2 or model[0] in "./~"):
        raise ModelNotFound(f"There is no model file {model}.", "Give an existing .gguf file, or a model's name.")
    _, sources = load_task(experiment)
    for arm in arms:
        if isinstance(arm, Parts):
            for parts in {len(source.read) for source in sources}:
                arm.check(parts)
    if any(map(needs_donor, experiment.arms)):
        derangement({source.id: len(source.text) for source in sources})


def task_hash(sources: Sequence[Source]) -> str:
    """Return a fingerprint of everything a task asks."""
    return fingerprint(json.dumps(msgspec.to_builtins(sources), sort_keys=True))


@dataclass(frozen=True)
class Batch:
    """What is run together, arm after arm: the items of a few sources, or one item for the time columns.

    Attributes:
        pairs: Items with their sources.
        arms: In the order in which they are run, see `unspoken.lab.arms.in_running_order`.
        alone: Whether it is for the time columns.
    """

    pairs: tuple[tuple[Source, Item], ...]
    arms: tuple[str, ...]
    alone: bool

    @property
    def asked(self) -> tuple[Asked, ...]:
        """Everything in here."""
        return tuple((item.id, arm, self.alone) for arm in self.arms for _, item in self.pairs)


@dataclass
class Runner:
    """One experiment on one engine.

    Args:
        experiment: What is run.
        engine: A model that has passed the gate.
        sources: The task's sources.
        measure: What answers are judged by.
        senders_engine: What the senders run on; the same by default.
    """

    experiment: Experiment
    engine: Engine
    sources: Sequence[Source]
    measure: Measure = "options"
    senders_engine: Engine | None = None
    _readings: dict[Part, Reading] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = max(len(source.read) for source in self.sources)
        reading = self.senders_engine or self.engine
        self._senders = [Agent(name, reading) for name in self.experiment.senders[:parts]]
        # A batch, and the donor of its last source: what is needed at once.
        self._kept = (self.experiment.batch_sources + 1) * parts
        self._receiver = Agent(self.experiment.receiver, self.engine)
        self._characters: dict[tuple[Character, int], Agent] = {}
        self._arms: dict[str, Arm] = {name: build_arm(name) for name in self.experiment.arms}
        self._by_id = {source.id: source for source in self.sources}
        # Sources in order of length: a donor, the next in length, is then at hand in the same or the next batch.
        lengths = {source.id: len(self.engine.encode(source.text)) for source in self.sources}
        self._donors = derangement(lengths) if any(map(needs_donor, self._arms)) else {}
        self._order = sorted(self.sources, key=lambda source: (lengths[source.id], source.id))

    def run(self, folder: RunFolder, watch: Watcher) -> list[Sample]:
        """Run everything that has no sample in a folder yet, and return all samples.

        Items of one batch that fail together (a document too long, say) are recorded as failures.

        Args:
            folder: Where samples go, arm by arm.
            watch: Told how far it is.
        """
        samples = folder.resumed()
        done = {sample.cell for sample in samples}
        batches = self.batches()
        total, finished = sum(len(batch.asked) for batch in batches), len(samples)
        watch(finished, total, "")
        for batch in batches:
            for fresh in self.work(batch, done):
                folder.append(fresh)
                samples += fresh
                finished += len(fresh)
                watch(finished, total, f"{fresh[0].arm}{' (alone)' if batch.alone else ''}")
        return samples

    def batches(self) -> tuple[Batch, ...]:
        """Return everything there is to run, in the order in which it is: the items, then some for the time columns."""
        arms = in_running_order(self._arms, SKYLINE)
        size, timed = self.experiment.batch_sources, self.experiment.timed_items
        together = (self._order[at : at + size] for at in range(0, len(self._order), size))
        single = self._order[:: max(1, len(self._order) // max(1, timed))][:timed]
        return (
            *(
                Batch(tuple((source, item) for source in some for item in source.items), arms, False)
                for some in together
            ),
            *(Batch(((source, source.items[0]),), arms, True) for source in single),
        )

    def work(self, batch: Batch, done: Container[Asked]) -> Iterator[list[Sample]]:
        """Run a batch; yield the samples of one arm after the other.

        Args:
            batch: One of `batches`.
            done: What has a sample already.
        """
        skyline: dict[str, Tensor] = {}
        for arm in batch.arms:
            missing = [pair for pair in batch.pairs if (pair[1].id, arm, batch.alone) not in done]
            if not missing:
                continue
            needs = [pair for pair in missing if pair[1].id not in skyline and not batch.alone]
            if needs and arm != SKYLINE and SKYLINE in self._arms:
                # The run was killed between the skyline and this arm: its distributions are made again.
                self._cell(SKYLINE, needs, False, skyline)
            yield self._cell(arm, missing, batch.alone, skyline)

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
            self._judged(source, item, arm, alone, reply, None if alone else skyline.get(item.id))
            for (source, item), reply in zip(pairs, replies, strict=True)
        ]

    def _replies(self, arm: str, pairs: Sequence[tuple[Source, Item]], alone: bool) -> tuple[Reply, ...]:
        asked: dict[str, tuple[Agent, list[tuple[Source, Item]]]] = {}
        for source, item in pairs:
            receiver = self._receiver_of(source)
            asked.setdefault(receiver.name, (receiver, []))[1].append((source, item))
        replies = {
            item.id: reply
            for receiver, theirs in asked.values()
            for (_, item), reply in zip(theirs, self._answers(arm, receiver, theirs, alone), strict=True)
        }
        return tuple(replies[item.id] for _, item in pairs)

    def _answers(
        self, arm: str, receiver: Agent, pairs: Sequence[tuple[Source, Item]], alone: bool
    ) -> tuple[Reply, ...]:
        # Alone, the source is read again, so that the time of reading belongs to this very run.
        read: Callable[[Part], Reading] = self._read_again if alone else self._read
        readings = {source.id: self._readings_of(source, read) for source, _ in pairs}
        parts = {id(each): (name, at) for name, found in readings.items() for at, each in enumerate(found)}
        deliveries = self._arms[arm].deliver(
            [Request(readings[source.id], item.question) for source, item in pairs],
            receiver,
            lambda reading: self._read(self._donor(parts[id(reading)])),
        )
        return receiver.answer(
            [item.question for _, item in pairs],
            deliveries,
            Limits(self.experiment.answer_tokens, STOPS[self.measure]),
            [[f" {option}" for option in item.options] for _, item in pairs],
            [item.stem for _, item in pairs],
        )

    def _receiver_of(self, source: Source) -> Agent:
        return self._receiver if source.cast is None else self._played(source.cast.receiver, self.engine)

    def _played(self, character: Character, engine: Engine) -> Agent:
        """Return an agent of the task's, with what stands before all it reads computed once."""
        key = (character, id(engine))
        if key not in self._characters:
            # Each holds a cache of what stands before all it reads; a task may have a character for each source.
            while len(self._characters) >= KEPT_CHARACTERS:
                del self._characters[next(iter(self._characters))]
            self._characters[key] = Agent(character.name, engine, character.card)
        return self._characters[key]

    def _donor(self, part: Part) -> Part:
        """Return the same part of another source; one that has fewer begins again with its first."""
        donor = self._donors[part[0]]
        return donor, part[1] % len(self._by_id[donor].read)

    def _readings_of(self, source: Source, read: Callable[[Part], Reading]) -> Readings:
        return tuple(read((source.id, at)) for at in range(len(source.read)))

    def _read(self, part: Part) -> Reading:
        """Return a part's reading, made anew if it was used longer ago than what is kept."""
        reading = self._readings.pop(part, None)
        if reading is None:
            while len(self._readings) >= self._kept:
                del self._readings[next(iter(self._readings))]
            reading = self._read_again(part)
        self._readings[part] = reading
        return reading

    def _read_again(self, part: Part) -> Reading:
        name, at = part
        source = self._by_id[name]
        sender = self._senders[at]
        if source.cast is not None:
            sender = self._played(source.cast.sender, sender.engine)
        return sender.read(source.read[at])

    def _judged(
        self, source: Source, item: Item, arm: str, alone: bool, reply: Reply, skyline: Tensor | None
    ) -> Sample:
        logprobs, delivery = reply.generation.option_logprobs, reply.delivery
        words = judged(reply.text, item.golds)
        correct = item.options[chosen(logprobs)] == item.gold if logprobs else words.contained
        return Sample(
            item=item.id,
            source=source.id,
            arm=arm,
            alone=alone,
            question=item.question,
            gold=item.gold,
            answer=reply.text,
            correct=correct,
            exact=words.exact,
            contained=words.contained,
            f1=words.f1,
            score=words.f1 if self.measure == "f1" else float(correct),
            gold_logprob=logprobs[item.options.index(item.gold)] if logprobs else None,
            margin=margin(logprobs, item.options.index(item.gold)) if logprobs else None,
            kl=None if skyline is None else kl_divergence(skyline, reply.generation.first_logprobs),
            bytes_moved=delivery.bytes_moved,
            tokens_prefilled=delivery.tokens_prefilled,
            tokens_skipped=delivery.tokens_skipped,
            recomputed=delivery.recomputed,
            seconds=asdict(delivery.seconds) | {"total": delivery.seconds.total},
            message=delivery.message if hops_of(arm)[1].startswith("text") else None,
        )
