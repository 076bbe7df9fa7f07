"""From features to scores: every condition of a study, and the nulls that must come out at chance."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.identity.background import Background, enrolled_as
from unspoken.identity.metrics import Floats, Indices
from unspoken.identity.projection import cosines, unit
from unspoken.lab.recognition.collect import INSTANCES, OWN_TEXTS, WINDOW, Collector
from unspoken.lab.recognition.scores import Scores

# Of a cosine; float32 keeps seven.
DIGITS = 5


@dataclass(frozen=True, eq=False)
class Spliced:
    """Windows of caches that two agents made.

    Attributes:
        scores: Of windows; the tested agent is the one that made the window.
        partner: `[windows]`, the other agent of the cache.
    """

    scores: Scores
    partner: Indices

    def shares(self) -> dict[str, float | int]:
        """Return the shares of windows that go to the right one of the two agents, and to the right one of all."""
        found, at = self.scores.scores, np.arange(len(self.partner))
        right = found[at, self.scores.tested]
        return {
            "between_two": float((right > found[at, self.partner]).mean()),
            "among_all": float((found.argmax(axis=1) == self.scores.tested).mean()),
            "windows": len(at),
            "columns": WINDOW,
        }


@dataclass(frozen=True)
class Measured:
    """The features of a finished collection, as scores.

    Args:
        collector: What made the features.
        background: Learned from the agents of development.
    """

    collector: Collector = field(repr=False)
    background: Background = field(repr=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The agents, in the order of the columns."""
        return tuple(persona.name for persona in self.collector.people.test)

    @cached_property
    def enrolment(self) -> Float[Tensor, "agents texts layers parts kv_heads head_dim"]:
        """Deviations of the texts agents are enrolled with."""
        return self.features("enrolment", "deviation")

    @cached_property
    def enrolled(self) -> Float[Tensor, "agents kept"]:
        """The agents' signatures."""
        return enrolled_as(list(self.background.signatures(self.enrolment)))

    def features(self, group: str, part: str) -> Tensor:
        """Return one tensor of all agents, `[agents, texts, ...]`."""
        return torch.stack([self.collector.load(group, name)[part] for name in self.names])

    def conditions(self) -> Iterator[tuple[str, Scores]]:
        """Yield the scores of each condition: log-likelihood ratios of tested caches against enrolled agents."""
        for condition in self.collector.plan.conditions:
            found = self.features(condition, "deviation")
            if condition == "self-written":
                found = found[:, self.collector.plan.enrolment_texts :]
            yield condition, self.llrs(self.background.signatures(found), self.enrolled)

    def llrs(self, tests: Float[Tensor, "agents texts kept"], enrolled: Float[Tensor, "agents kept"]) -> Scores:
        """Return log-likelihood ratios of caches `[agents, texts]` against signatures."""
        return laid_out(self.background.llrs(tests.flatten(0, 1), enrolled), tests.shape[0], tests.shape[1])

    def by_enrolment(self, condition: str, texts: int) -> Scores:
        """Return a condition's scores against agents enrolled with the first few texts only."""
        first = enrolled_as(list(self.background.signatures(self.enrolment[:, :texts])))
        return self.llrs(self.background.signatures(self.features(condition, "deviation")), first)

    def windows(self) -> tuple[tuple[Float[Tensor, "agents windows kept"], int], ...]:
        """Return signatures of runs of columns, and of which text they are, for each test text."""
        loaded = [self.collector.load("card", name) for name in self.names]
        texts = range(len(self.collector.texts.test))
        return tuple(
            (self.background.signatures(torch.stack([each[f"windows.{at}"] for each in loaded]).float()), at)
            for at in texts
        )

    def spliced(self) -> Spliced:
        """Return scores of the windows of caches of which one agent made the first half and the next the second."""
        rows, owners, partners, texts = [], [], [], []
        for found, text in self.windows():
            agents, count = found.shape[:2]
            for first in range(agents):
                pair = (first, (first + 1) % agents)
                for window in range(count):
                    owner, partner = pair if window < count // 2 else pair[::-1]
                    rows.append(found[owner, window])
                    owners.append(owner)
                    partners.append(partner)
                    texts.append(text)
        scores = self.background.llrs(torch.stack(rows), self.enrolled)
        return Spliced(Scores(scores, np.array(owners), np.array(texts)), np.array(partners))

    def nulls(self) -> Iterator[tuple[str, Scores]]:
        """Yield what must come out at chance, because there is nothing to see."""
        cards = self.features("card", "deviation")
        yield "layer-0", plainly(self.enrolment[:, :, 0], cards[:, :, 0])
        if self.collector.plan.twins:
            yield "twins", self.twins()
        card = self.llrs(self.background.signatures(cards), self.enrolled)
        yield "permuted", Scores(card.scores, self._permuted()[card.tested], card.text)

    def twins(self) -> Scores:
        """Return scores of instances of the same agent against one another: same card, other seed."""
        instances = [f"{name}.{at}" for name in self.names[: self.collector.plan.twins] for at in range(INSTANCES)]
        found = torch.stack([self.collector.load("twins", each)["deviation"] for each in instances])
        signatures, several = self.background.signatures(found), len(instances)
        first, tests = signatures[:, :OWN_TEXTS], signatures[:, OWN_TEXTS:]
        scores = self.background.llrs(tests.flatten(0, 1), enrolled_as(list(first)))
        tested = np.repeat(np.arange(several), OWN_TEXTS)
        same = tested[:, None] // INSTANCES == np.arange(several)[None] // INSTANCES
        return Scores(np.where(same, scores, np.nan), tested, np.tile(np.arange(OWN_TEXTS), several))

    def _permuted(self) -> Indices:
        draw = random.Random(f"recognition/{self.collector.plan.seed}/permuted")  # noqa: S311 - reproducible
        return np.array(draw.sample(range(len(self.names)), len(self.names)))


def laid_out(scores: Floats, agents: int, texts: int) -> Scores:
    """Return scores of caches that lie agent after agent, text after text."""
    return Scores(scores, np.repeat(np.arange(agents), texts), np.tile(np.arange(texts), agents))


def plainly(enrolment: Float[Tensor, "agents known *numbers"], tests: Float[Tensor, "agents texts *numbers"]) -> Scores:
    """Return cosines of tested features with the mean of those of enrolment, nothing learned.

    What differs by rounding only is equal: ranking rounding errors would make something of nothing.
    """
    enrolled = enrolled_as(list(unit(enrolment.flatten(2))))
    found = cosines(unit(tests.flatten(2)), enrolled).flatten(0, 1).to(torch.float64).numpy()
    return laid_out(found.round(DIGITS), tests.shape[0], tests.shape[1])
