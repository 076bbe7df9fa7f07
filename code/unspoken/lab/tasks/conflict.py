"""Two senders that contradict each other: which does the receiver believe?

Both read the same six facts about the same places, and of each fact the second reads another value. The receiver gets
both, one by a cache and one by text, say (`parts:kv,full-text`), and is asked; the options are both values and four
that nobody read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import msgspec

from unspoken.errors import UsageError
from unspoken.lab.tasks.private_facts import FACTS_PER_KIND, PrivateFacts
from unspoken.lab.tasks.protocol import Measure, Source

SAYS = ("first", "second")


@dataclass(frozen=True)
class Conflict:
    """Six facts a source, told in two ways; chance one in six.

    Args:
        says: Whose value counts as right: the `first` sender's, or the `second`'s.

    Raises:
        UsageError: If it is neither's.
    """

    NOTE: ClassVar[str] = "Somebody else writes about the same places: "

    says: str = "first"
    name: str = "conflict"
    version: str = "1"
    measure: Measure = "options"

    def __post_init__(self) -> None:
        if self.says not in SAYS:
            raise UsageError(f"There is no sender '{self.says}'.", f"Write conflict:says={' or '.join(SAYS)}.")

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return enough sources for so many items; questions and options do not depend on `says`."""
        return tuple(self._contradicted(source) for source in PrivateFacts().sources(items, seed))

    def _contradicted(self, source: Source) -> Source:
        """Swap the values of the two facts of each kind in what the second sender reads."""
        values = {item.id: item.gold for item in source.items}
        swapped = {name: values[_twin(name)] for name in values}
        other = source.text
        for item in source.items:
            other = other.replace(f"{item.stem} {item.gold}.", f"{item.stem} {swapped[item.id]}.")
        parts = (source.text, f" {self.NOTE}{other}")
        golds = values if self.says == SAYS[0] else swapped
        items = tuple(msgspec.structs.replace(item, gold=golds[item.id]) for item in source.items)
        return Source(source.id, "".join(parts), items, parts)


def _twin(name: str) -> str:
    """Return the id of the other fact of the same kind: facts of a kind have neighbouring numbers."""
    source, _, number = name.rpartition("-")
    first = int(number) // FACTS_PER_KIND * FACTS_PER_KIND
    return f"{source}-{first + FACTS_PER_KIND - 1 - (int(number) - first)}"
