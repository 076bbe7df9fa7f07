"""What a fuser is taught with: a text that only the sender reads, and answers the receiver should give about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """One question about a text.

    Attributes:
        question: What the receiver is asked.
        answer: What it should say.
        stem: The words the answer begins with.
    """

    question: str
    answer: str
    stem: str = ""


@dataclass(frozen=True)
class Lesson:
    """A text and questions about it."""

    text: str
    asked: tuple[Asked, ...]
