"""What a task is: sources that one agent or several read, and questions that another is asked."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import msgspec

Measure = Literal["options", "f1", "contained"]
"""What an answer is judged by, from 0 to 1.

`options`: whether the right option is the most probable one. `contained`: whether the right answer's words stand in
the answer. `f1`: the overlap of their words.
"""

STATES = ("a", "b")
"""The two states of mind in which twins, sources of the same words, are read."""


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """One question about a source.

    Attributes:
        id: Unique within the task.
        question: What the receiver is asked.
        gold: The right answer.
        options: All answers it could be, the right one among them, where they are known; chance is one in so many.
        stem: The words the answer begins with; options go on from there.
        others: Further answers that are right, too; an open answer is judged by the one it comes closest to.
    """

    id: str
    question: str
    gold: str
    options: tuple[str, ...] = ()
    stem: str = ""
    others: tuple[str, ...] = ()

    @property
    def golds(self) -> tuple[str, ...]:
        """Every right answer."""
        return (self.gold, *self.others)


class Character(msgspec.Struct, frozen=True):
    """An agent's name and its card."""

    name: str
    card: str


class Cast(msgspec.Struct, frozen=True):
    """Who reads a source and who is asked about it."""

    sender: Character
    receiver: Character


# Defaults are left out when a task is written down, so that a field that is new changes the hash of no older task.
class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """A text that only the sender reads, and the questions about it. A cluster, for statistics.

    Attributes:
        id: Unique within the task.
        text: All of it.
        items: The questions.
        parts: What different senders read, in this order, where there are several; `text` is these joined.
        cast: Who the sender and the receiver are, where that belongs to the task; None for the experiment's agents.
    """

    id: str
    text: str
    items: tuple[Item, ...]
    parts: tuple[str, ...] = ()
    cast: Cast | None = None

    @property
    def read(self) -> tuple[str, ...]:
        """What each sender reads: the parts, or the whole text if there is one sender."""
        return self.parts or (self.text,)


@runtime_checkable
class Task(Protocol):
    """Sources made or loaded the same way each time.

    Attributes:
        name: The registered name.
        version: Changes whenever what is asked changes.
        measure: What an answer is judged by.
    """

    name: str
    version: str
    measure: Measure

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return sources with at least so many questions in all, the same for the same seed.

        Raises:
            UsageError: If the task has not so many, or its file is not what it should be.
            StorageError: If its file cannot be read.
        """
        ...


def twin_id(words: str, state: str) -> str:
    """Return the id of a source that is read in several states of mind."""
    return f"{words}/{state}"


def words_of(source: str) -> str:
    """Return what twins have in common: the id of the words."""
    return source.rpartition("/")[0] if state_of(source) else source


def state_of(source: str) -> str:
    """Return which state of mind a source is read in; empty where there is one only."""
    state = source.rpartition("/")[2]
    return state if state in STATES and "/" in source else ""


def cluster_of(source: str) -> str:
    """Return the cluster of a source for statistics: what stands before the first point of an id of twins.

    Sentences with one word, or remarks by several people, are not independent of one another.
    """
    return words_of(source).partition(".")[0] if state_of(source) else source
