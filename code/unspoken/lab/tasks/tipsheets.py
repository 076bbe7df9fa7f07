"""Tip sheets: the sender has read what is said of three companies, the receiver must choose the one to invest in.

Source: the data of KVComm (arXiv 2510.03346), after Ramesh and Li (arXiv 2501.14082). Chance is one in three, and a
receiver without the sheet has nothing to go by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec

from unspoken.lab.tasks.lines import Words, drawn, grouped, read_lines
from unspoken.lab.tasks.protocol import Item, Measure, Source


class Sheet(msgspec.Struct, frozen=True):
    """One line of the file."""

    prompt_A: Words  # noqa: N815 - the file's own name
    prompt_B: Words  # noqa: N815
    options: Annotated[list[Words], msgspec.Meta(min_length=2)]
    label: Words

    def __post_init__(self) -> None:
        if self.options.count(self.label) != 1:
            raise ValueError(f"the label '{self.label}' is not one of the options {self.options}")


@dataclass(frozen=True)
class TipSheets:
    """One sheet and one question with its options a line.

    Args:
        data: The file.
    """

    FORMAT: ClassVar[str] = "one JSON object per line: prompt_A, prompt_B, options, label"

    data: str
    name: str = "tipsheets"
    version: str = "1"
    measure: Measure = "options"

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return so many sheets, in an order that the seed gives.

        Raises:
            StorageError: If the file cannot be read.
            UsageError: If a line is malformed, or there are too few.
        """
        lines = read_lines(self.data, Sheet, self.FORMAT)
        sources = grouped(((line.prompt_A, line) for line in lines), _item)
        return drawn(f"{self.name}/{self.version}", self.data, sources, items, seed)


def _item(name: str, line: Sheet) -> Item:
    """The question's last line, where it is left open ("The company name is:"), begins the answer."""
    question, _, last = line.prompt_B.strip().rpartition("\n")
    if not (question and last.endswith(":")):
        question, last = line.prompt_B.strip(), ""
    return Item(name, question.strip(), line.label, tuple(line.options), last)
