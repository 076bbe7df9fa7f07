"""What a fuser is taught by: the loss of one lesson, for each kind of fuser."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.channels.kv import content_columns
from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError
from unspoken.fusers.bottleneck import Bottleneck
from unspoken.fusers.c2c_kept import C2C
from unspoken.fusers.rows import as_rows
from unspoken.train.config import Training
from unspoken.train.lesson import Asked, Lesson
from unspoken.train.receiver import Exam, Receiver, answer_loss, attention_loss, guard_loss
from unspoken.train.store import AGENTS, Store


@dataclass(frozen=True)
class Teaching:
    """What any fuser is taught with.

    Attributes:
        training: How it is trained.
        lessons: All of them.
        store: The sender's columns.
        receivers: Who answers, in turn.

    Raises:
        UsageError: If another lesson's columns are to be given now and then, and there is no other.
    """

    training: Training
    lessons: Sequence[Lesson]
    store: Store
    receivers: tuple[Receiver, ...]

    def __post_init__(self) -> None:
        if self.training.guard and len(self.lessons) < 2:
            raise UsageError("A guard needs another lesson, and there is but one.", "Give more material, or no guard.")

    def turn(self, number: int, draw: random.Random) -> tuple[Receiver, list[Asked]]:
        """Return who answers a lesson this time, and what is asked of it."""
        asked = self.lessons[number].asked
        return draw.choice(self.receivers), draw.sample(asked, min(self.training.questions, len(asked)))

    def other(self, number: int, draw: random.Random) -> int:
        """Return the number of another lesson."""
        return (number + draw.randrange(1, len(self.lessons))) % len(self.lessons)


@dataclass(frozen=True)
class Translating:
    """Lessons for a translator: the receiver answers from the columns it makes, and sees no text.

    Args:
        fuser: The translator.
        teaching: What it is taught with.
    """

    fuser: Bottleneck
    teaching: Teaching

    def loss(self, number: int, draw: random.Random) -> dict[str, Tensor]:
        """Return the parts of one lesson's loss; another lesson's columns are given instead now and then."""
        training = self.teaching.training
        receiver, asked = self.teaching.turn(number, draw)
        if draw.random() < training.guard:
            return {"guard": self._guard(receiver, asked, self.teaching.other(number, draw))}
        rows = self.fuser(self.teaching.store.rows(number))
        past, exam = receiver.placed(rows), receiver.exam(asked, len(rows))
        if not training.attention:
            return {"answer": answer_loss(receiver.logits(past, exam), exam)}
        heard: list[Tensor] = []
        answered = answer_loss(receiver.logits(past, exam, heard), exam)
        own = self._own_attention(receiver, number, exam)
        return {"answer": answered, "attention": training.attention * attention_loss(heard, own)}

    def _guard(self, receiver: Receiver, asked: Sequence[Asked], other: int) -> Float[Tensor, ""]:
        rows = self.fuser(self.teaching.store.rows(other))
        exam = receiver.exam(asked, len(rows))
        return guard_loss(receiver.logits(receiver.placed(rows), exam), exam, receiver.without(asked))

    def _own_attention(self, receiver: Receiver, number: int, exam: Exam) -> list[Tensor]:
        heard: list[Tensor] = []
        rows = as_rows(content_columns(receiver.own(self.teaching.lessons[number].text)))
        with torch.no_grad():
            receiver.logits(receiver.placed(rows), exam, heard)
        return heard


@dataclass(frozen=True)
class Enriching:
    """Lessons for a C2C fuser: both models read the text, and the receiver answers from its columns as fused.

    Args:
        fuser: The fuser.
        teaching: What it is taught with.
    """

    fuser: C2C
    teaching: Teaching

    def loss(self, number: int, draw: random.Random) -> dict[str, Tensor]:
        """Return one lesson's loss: next-token cross-entropy of the answers, as C2C is trained."""
        receiver, asked = self.teaching.turn(number, draw)
        segment = receiver.own(self.teaching.lessons[number].text).span("content")
        own = [(layer.keys.clone(), layer.values.clone()) for layer in segment.layers]
        fused = self.fuser(self.teaching.store.rows(number), segment.positions.clone(), own)
        exam = receiver.exam(asked, segment.columns)
        return {"answer": answer_loss(receiver.logits(receiver.behind(fused), exam), exam)}


def receivers(engine: Engine) -> tuple[Receiver, ...]:
    """Return the agents that answer in training."""
    return tuple(Receiver(name, engine) for name in AGENTS)
