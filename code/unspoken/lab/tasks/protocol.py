"""What a task is: sources that one agent reads and questions that another is asked."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec


class Item(msgspec.Struct, frozen=True):
    """One question about a source.

    Attributes:
        id: Unique within the task.
        question: What the receiver is asked.
        gold: The right answer.
        options: All answers it could be, the right one among them, where they are known; chance is one in so many.
        stem: The words the answer begins with; options go on from there.
    """

    id: str
    question: str
    gold: str
    options: tuple[str, ...] = ()
    stem: str = ""


class Source(msgspec.Struct, frozen=True):
    """A text that only the sender reads, and the questions about it. A cluster, for statistics."""

    id: str
    text: str
    items: tuple[Item, ...]


@runtime_checkable
class Task(Protocol):
    """Sources made or loaded the same way each time.

    Attributes:
        name: The registered name.
        version: Changes whenever what is asked changes.
    """

    name: str
    version: str

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return sources with at least so many questions in all, the same for the same seed."""
        ...
