"""Reading comprehension: questions about paragraphs, answered in words, from a file in SQuAD's manner.

The sender reads a paragraph, the receiver is asked about it and answers freely; answers are judged by F1 of words, as
for SQuAD (arXiv 1606.05250). The paragraphs are public, so a model may know some answers without any: that is what the
arm `none` and another paragraph's cache are there for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec

from unspoken.lab.tasks.lines import Words, drawn, grouped, read_lines
from unspoken.lab.tasks.protocol import Item, Measure, Source
from unspoken.session import BRIEFLY

# How a question is put, and how the answer begins. Without both, small models answer in sentences: with the stem, F1
# on all columns more than doubles on Qwen2.5-Coder-0.5B (docs/log.md).
PHRASING, STEM = BRIEFLY, "Answer:"


class Asked(msgspec.Struct, frozen=True):
    """A question about a paragraph, with every answer that is right."""

    question: Words
    answers: Annotated[list[Words], msgspec.Meta(min_length=1)]


class Paragraph(msgspec.Struct, frozen=True):
    """One line of the file."""

    context: Words
    qas: Annotated[list[Asked], msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class ReadingComprehension:
    """Paragraphs and open questions from a file; whole paragraphs are asked, in an order that the seed gives.

    Args:
        data: The file.
    """

    FORMAT: ClassVar[str] = (
        "one JSON object per line and paragraph: title, context, qas[id, question, answers], answers being texts"
    )

    data: str
    name: str = "reading"
    version: str = "1"
    measure: Measure = "f1"

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return paragraphs with at least so many questions in all.

        Raises:
            StorageError: If the file cannot be read.
            UsageError: If a line is malformed, or there are too few questions.
        """
        paragraphs = read_lines(self.data, Paragraph, self.FORMAT)
        sources = grouped(((each.context, asked) for each in paragraphs for asked in each.qas), _item)
        return drawn(f"{self.name}/{self.version}", self.data, sources, items, seed)


def _item(name: str, asked: Asked) -> Item:
    gold, *others = dict.fromkeys(asked.answers)
    return Item(name, PHRASING.format(question=asked.question.strip()), gold, stem=STEM, others=tuple(others))
