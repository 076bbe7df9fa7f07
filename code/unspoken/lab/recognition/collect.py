"""Let the agents of a study read and write, and keep what their columns average to: a file per agent and condition.

features/<group>/<agent>.safetensors, one row for each text:
    deviation   [texts, layers, parts, kv_heads, head_dim]: what is left when the cohort's mean is taken away
    raw         the same before, for baselines that take nothing away
    turned      [texts, layers, kv_heads, head_dim]: means of keys with RoPE applied, for the published fingerprint
    windows.N   [windows, layers, parts, kv_heads, head_dim], float16: deviations of runs of columns of text N
    tokens      [texts, tokens], filled up with -1: what an agent wrote itself

A study that was stopped goes on with the first file that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from unspoken.channels.names import build_channel
from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError
from unspoken.identity.cards import Persona
from unspoken.identity.cohort import Cohort, read_tokens
from unspoken.identity.features import places, pooled, pooled_windows
from unspoken.identity.projection import deviation
from unspoken.lab import folders, provenance
from unspoken.lab.recognition.handing import OTHER_ENGINES, Handed, handed, read_all
from unspoken.lab.recognition.people import WAYS, Mind, People, Texts, dealt, told
from unspoken.lab.recognition.plan import RecognitionPlan
from unspoken.lab.recognition.writing import TOPICS, written
from unspoken.transforms.rope import ApplyRope

Tokens = tuple[int, ...]
Watcher = Callable[[int, int, str], None]
FEATURES, REVISIONS = "features", "revisions.json"
# Columns of a window in which a splice is looked for.
WINDOW = 16
INSTANCES, OWN_TEXTS = 3, 3
TESTED_TOPICS = 2 * OWN_TEXTS
BY_AGENTS = ("mimicry", "self-written", "two-hops")
"""Conditions that are neither a way of telling, nor an engine, nor a channel."""


def check(plan: RecognitionPlan) -> None:
    """Refuse a study that cannot be run to its end, before a model is loaded.

    Raises:
        UsageError: If a condition is none, or there are too few topics for what agents write themselves.
    """
    for condition in plan.conditions:
        if condition not in (*WAYS, *OTHER_ENGINES, *BY_AGENTS):
            build_channel(condition)
    most = len(TOPICS) - TESTED_TOPICS
    if "self-written" in plan.conditions and plan.enrolment_texts > most:
        raise UsageError(
            f"For texts that agents write themselves there are topics for {most} of enrolment, the study asks for "
            f"{plan.enrolment_texts}.",
            "Ask for fewer enrolment_texts, or leave the condition `self-written` out.",
        )


@dataclass(frozen=True)
class Job:
    """One file to be made: whose, under what group, and how."""

    group: str
    name: str
    make: Callable[[], Mapping[str, Tensor]] = field(repr=False)


@dataclass(frozen=True)
class Collector:
    """Makes a study's features.

    Args:
        plan: The study.
        engine: The model.
        folder: The run folder.
        other: Opens the same model in another engine, for the condition that reads there.
    """

    plan: RecognitionPlan
    engine: Engine = field(repr=False)
    folder: Path
    other: Callable[[str], Engine] = field(repr=False)

    @cached_property
    def people(self) -> People:
        """The study's agents."""
        return People.of(self.plan)

    @cached_property
    def texts(self) -> Texts:
        """The study's texts."""
        return Texts.of(self.plan, self.engine)

    @cached_property
    def cohort(self) -> Cohort:
        """Those whose reading is taken away."""
        return Cohort(self.engine, tuple(each.card for each in self.people.cohort))

    @cached_property
    def common(self) -> dict[Tokens, Tensor]:
        """What each text looked like to the cohort so far."""
        return {}

    def run(self, jobs: Iterable[Job], watch: Watcher) -> None:
        """Make every file that is missing.

        Args:
            jobs: What has to be made: `jobs()`, or a part of it.
            watch: Told how far it is.

        Raises:
            UnspokenError: If a condition cannot be met, or the folder cannot be written.
        """
        jobs = list(jobs)
        self._note_revision()
        missing = [job for job in jobs if not self.path(job.group, job.name).exists()]
        for at, job in enumerate(missing, start=len(jobs) - len(missing)):
            watch(at, len(jobs), f"{job.group} {job.name}")
            self._write(job)
        watch(len(jobs), len(jobs), "all read")

    def development(self) -> Iterator[Job]:
        """Yield what a background is learned from."""
        for way in WAYS:
            for persona in self.people.development:
                yield Job(f"development/{way}", persona.name, partial(self._developed, persona, way))

    def jobs(self) -> Iterator[Job]:
        """Yield everything that a study needs, in a sensible order."""
        yield from self.development()
        for persona in self.people.test:
            yield Job("enrolment", persona.name, partial(self._enrolled, persona))
        for condition in self.plan.conditions:
            for at, persona in enumerate(self.people.test):
                yield Job(condition, persona.name, partial(self._tested, persona, condition, at))
        for persona in self.people.test[: self.plan.twins]:
            for instance in range(INSTANCES):
                yield Job("twins", f"{persona.name}.{instance}", partial(self._twin, persona, instance))

    def path(self, group: str, name: str) -> Path:
        """Return where a file lies."""
        return self.folder / FEATURES / group / f"{name}.safetensors"

    def developed(self) -> dict[str, Tensor]:
        """Return the deviations of the agents of development by how they were told, `[agents, texts, ...]`."""
        names = [persona.name for persona in self.people.development]
        return {
            way: torch.stack([self.load(f"development/{way}", name)["deviation"] for name in names]) for way in WAYS
        }

    def load(self, group: str, name: str) -> dict[str, Tensor]:
        """Return a file's tensors."""
        return load_file(self.path(group, name))

    def revisions(self) -> list[dict[str, str]]:
        """Return the revisions of the code that made features, the first one first."""
        path = self.folder / FEATURES / REVISIONS
        found: list[dict[str, str]] = json.loads(path.read_bytes()) if path.exists() else []
        return found

    def _note_revision(self) -> None:
        known, now = self.revisions(), provenance.revision()
        if now not in known:
            folder = self.folder / FEATURES
            with folders.writable(folder):
                folder.mkdir(parents=True, exist_ok=True)
                folders.write(folder / REVISIONS, json.dumps([*known, now]).encode())

    def _write(self, job: Job) -> None:
        path = self.path(job.group, job.name)
        with folders.writable(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.write(path, save({name: tensor.contiguous() for name, tensor in job.make().items()}))

    def _developed(self, persona: Persona, way: str) -> dict[str, Tensor]:
        what = f"recognition/{self.plan.seed}/{persona.name}/{way}"
        texts = dealt(self.texts.development, self.plan.development_readings, what)
        return self._apart(read_all(told(persona, way, self.engine), texts))

    def _enrolled(self, persona: Persona) -> dict[str, Tensor]:
        return self._read(told(persona, "card", self.engine), self.texts.enrolment)

    def _read(self, mind: Mind, texts: Sequence[Tokens]) -> dict[str, Tensor]:
        """Return the features of texts, with all that the baselines need."""
        found = read_all(mind, texts)
        raw = torch.stack([pooled(each.columns) for each in found])
        turned = torch.stack([pooled(ApplyRope()(each.columns))[:, 0] for each in found])
        return self._apart(found) | {"raw": raw, "turned": turned}

    def _tested(self, persona: Persona, condition: str, at: int) -> dict[str, Tensor]:
        if condition in WAYS:
            mind = told(persona, condition, self.engine)
            windows = self._windows(mind) if condition == "card" else {}
            return self._read(mind, self.texts.test) | windows
        if condition == "mimicry":
            system = persona.mimicry(self.people.test[(at + 1) % len(self.people.test)])
            return self._apart(read_all(Mind(persona.name, self.engine, system), self.texts.test))
        if condition == "self-written":
            topics = [*range(self.plan.enrolment_texts), *range(-TESTED_TOPICS, 0)]
            return self._own(persona, topics, self.plan.seed + 1000 * at)
        return self._apart(handed(persona, condition, self.engine, self.texts.test, self.other))

    def _twin(self, persona: Persona, instance: int) -> dict[str, Tensor]:
        """Return what one of several instances of an agent wrote: the same card, other draws."""
        at = self.people.test.index(persona)
        return self._own(persona, range(2 * OWN_TEXTS), self.plan.seed + 1_000_000 + 10_000 * at + 100 * instance)

    def _own(self, persona: Persona, topics: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Return the features of texts that an agent wrote, and these texts' tokens."""
        mind = told(persona, "card", self.engine)
        made = written(mind, [TOPICS[each] for each in topics], self.plan.written_tokens, seed)
        ids = torch.full((len(made), self.plan.written_tokens), -1, dtype=torch.int32)
        for row, each in zip(ids, made, strict=True):
            row[: len(each.tokens)] = torch.tensor(each.tokens, dtype=torch.int32)
        return self._apart(made) | {"tokens": ids}

    def _windows(self, mind: Mind) -> dict[str, Tensor]:
        """Return the deviations of windows, for each test text as many as it has."""
        found = {}
        for at, ids in enumerate(self.texts.test):
            mine = pooled_windows(read_tokens(self.engine, mind.prefix, ids), WINDOW)
            key = (*ids, -WINDOW)
            if key not in self.common:
                cohort = [read_tokens(self.engine, prefix, ids) for prefix in self.cohort.prefixes]
                self.common[key] = torch.stack([pooled_windows(each, WINDOW) for each in cohort]).mean(dim=0)
            found[f"windows.{at}"] = (mine - self.common[key]).to(torch.float16)
        return found

    def _apart(self, found: Sequence[Handed]) -> dict[str, Tensor]:
        return {"deviation": torch.stack([deviation(pooled(each.columns), self._common(each)) for each in found])}

    def _common(self, each: Handed) -> Tensor:
        """Return the cohort's mean over the same columns; for whole texts it is kept."""
        where = places(each.columns, each.start)
        whole = all(len(layer) == len(each.tokens) for layer in where)
        if not whole:
            return self.cohort.read(each.tokens, where).mean(dim=0)
        if each.tokens not in self.common:
            self.common[each.tokens] = self.cohort.read(each.tokens).mean(dim=0)
        return self.common[each.tokens]
