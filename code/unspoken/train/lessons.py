"""All lessons of a training, drawn from its materials."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol, runtime_checkable

from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError
from unspoken.train import config
from unspoken.train.choices import Choices
from unspoken.train.config import Facts, Lists, Material, Texts, Training
from unspoken.train.facts import GeneratedFacts
from unspoken.train.lesson import Lesson
from unspoken.train.lists import WordLists
from unspoken.train.places import Places
from unspoken.train.texts import Passages
from unspoken.train.vocabulary import Vocabulary, reserved


@runtime_checkable
class Teacher(Protocol):
    """Makes lessons."""

    def lesson(self, seed: int, number: int) -> Lesson:
        """Return a lesson, the same for the same seed and number."""
        ...


def lessons(training: Training, receiver: Engine) -> tuple[Lesson, ...]:
    """Return all lessons of a training, its materials mixed, in an order that the seed gives.

    Raises:
        UsageError: If there are none, or a material cannot be had.
        StorageError: If a file cannot be read.
    """
    vocabulary = Vocabulary.of(receiver.decode, receiver.spec.vocabulary, reserved())
    made: list[Lesson] = []
    for material in training.material:
        teacher, count = _teacher(material, vocabulary)
        drawn = (teacher.lesson(training.seed, number) for number in range(count))
        made += [each for each in drawn if each.asked]
    if not made:
        raise UsageError("The training's materials make no lesson.", "Ask for more lessons, or give longer texts.")
    random.Random(training.seed).shuffle(made)  # noqa: S311 - reproducible, not secret
    return tuple(made)


def _teacher(material: Material, vocabulary: Vocabulary) -> tuple[Teacher, int]:
    if isinstance(material, Texts):
        passages = Passages.of(Path(material.path), material.letters)
        wanted = len(passages.passages) if material.lessons is None else material.lessons
        return passages, min(wanted, len(passages.passages))
    if isinstance(material, config.Choices):
        return Choices(), material.lessons
    if isinstance(material, config.Places):
        return Places(), material.lessons
    # Tiny vocabularies of tests have hardly a word; models have thousands.
    if len(vocabulary.words) < (material.words if isinstance(material, Lists) else 1):
        raise UsageError(
            f"The receiver's tokenizer has {len(vocabulary.words)} whole words, too few to draw lessons from.",
            "Train on texts.",
        )
    if isinstance(material, Facts):
        return GeneratedFacts(vocabulary, material.facts), material.lessons
    return WordLists(vocabulary, material.words), material.lessons
