"""Agent cards: who an agent is, in a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from unspoken.errors import StorageError, UsageError
from unspoken.memory.recall import recall

REMEMBERED = "\n\nYou remember this:\n\n"
MOST_BYTES = 1_000_000


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who an agent is.

    Attributes:
        name: What it is called.
        card: Its system prompt.
        role: What it is for, in a line, for people.
        model, engine: What it runs on, as `load_model` takes them; None for what the others run on.
        memory: A memory (`unspoken data import`) of which it has the latest in mind, as a path from the card's folder.
        memory_letters: Most letters of it.
        key: Name of a key (`unspoken keys`) that it seals the columns of kept sessions with.
    """

    name: str
    card: str
    role: str = ""
    model: str | None = None
    engine: str | None = None
    memory: str | None = None
    memory_letters: Annotated[int, msgspec.Meta(ge=1)] = 4000
    key: str | None = None

    def system(self, folder: Path) -> str:
        """Return the system prompt with what the agent remembers.

        Args:
            folder: Where the card lies.

        Raises:
            StorageError: If the memory cannot be read.
            UsageError: If it is none.
        """
        if self.memory is None:
            return self.card
        return f"{self.card.rstrip()}{REMEMBERED}{recall(folder / Path(self.memory).expanduser(), self.memory_letters)}"


def read_card(path: str | Path) -> Card:
    """Return the card of a YAML file.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If it is no such card.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise StorageError(
            f"The card {path} cannot be read: {error.strerror}.", "Give an existing YAML file."
        ) from error
    wanted = f"It needs a name and a card, and may have {', '.join(Card.__struct_fields__[2:])}."
    if len(data) > MOST_BYTES:
        raise UsageError(f"The card {path} is larger than {MOST_BYTES} bytes.", wanted)
    try:
        found = msgspec.yaml.decode(data, type=Card, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The card {path} is none: {error}.", wanted) from error
    if not found.name.strip():
        raise UsageError(f"The card {path} has an empty name.", wanted)
    return found
