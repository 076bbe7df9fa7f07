"""Countries: the sender knows at which landmark somebody is, the receiver is asked for the country.

Source: the data of KVComm (arXiv 2510.03346), after Ramesh and Li (arXiv 2501.14082). Not a proof by itself: many
landmarks stand in the same few countries, so another source's cache is right by chance now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import msgspec

from unspoken.lab.tasks.lines import Words, drawn, grouped, read_lines
from unspoken.lab.tasks.protocol import Item, Measure, Source
from unspoken.session import BRIEFLY

PHRASING, STEM = BRIEFLY, "Answer:"


class Placed(msgspec.Struct, frozen=True):
    """One line of the file."""

    prompt_A: Words  # noqa: N815 - the file's own name
    prompt_B: Words  # noqa: N815
    country: Words


@dataclass(frozen=True)
class Countries:
    """One sentence and one open question a line; right if the country stands in the answer.

    Args:
        data: The file.
    """

    FORMAT: ClassVar[str] = "one JSON object per line: prompt_A, prompt_B, country"

    data: str
    name: str = "countries"
    version: str = "1"
    measure: Measure = "contained"

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return so many lines, in an order that the seed gives.

        Raises:
            StorageError: If the file cannot be read.
            UsageError: If a line is malformed, or there are too few.
        """
        lines = read_lines(self.data, Placed, self.FORMAT)
        sources = grouped(((line.prompt_A, line) for line in lines), _item)
        return drawn(f"{self.name}/{self.version}", self.data, sources, items, seed)


def _item(name: str, line: Placed) -> Item:
    return Item(name, PHRASING.format(question=line.prompt_B.strip()), line.country.strip(), stem=STEM)
