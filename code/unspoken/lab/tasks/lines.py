"""Tasks from a local file of JSON lines: reading it, and choosing from it in an order that a seed gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from unspoken.errors import StorageError, UsageError
from unspoken.lab.tasks.protocol import Item, Source

Words = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""A text that is not blank."""

T = TypeVar("T")


def is_file(path: str) -> bool:
    """Tell whether there is such a file; there is none of a name that no file can have."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def read_lines(path: str, kind: type[T], described: str) -> tuple[T, ...]:
    """Read a file of JSON lines; empty lines are passed over.

    Args:
        path: The file; a relative path is relative to the current directory.
        kind: What a line holds.
        described: What a line should hold, for whoever has to repair it.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If a line is not of this kind, or there is none.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise StorageError(
            f"The data file {path} cannot be read: {error.strerror}.", f"Give a file with {described}."
        ) from error
    except ValueError as error:  # A name with a zero byte.
        raise StorageError(f"The data file {path!r} cannot be read: {error}.", "Give another name.") from error
    found = tuple(_decoded(path, at, line, kind, described) for at, line in enumerate(lines, start=1) if line.strip())
    if not found:
        raise UsageError(f"The data file {path} has no lines.", f"Give a file with {described}.")
    return found


def grouped(rows: Iterable[tuple[str, T]], item: Callable[[str, T], Item]) -> tuple[Source, ...]:
    """Return a source for each different text, with the questions of all rows that have it.

    The same text twice would be two clusters that are one, and could stand in for itself as another source's.

    Args:
        rows: A text, and what is asked about it.
        item: Makes the question, given its id.
    """
    held: dict[str, list[T]] = {}
    for text, row in rows:
        held.setdefault(text.strip(), []).append(row)
    return tuple(
        Source(f"{at:05d}", text, tuple(item(f"{at:05d}-{nth:03d}", row) for nth, row in enumerate(found)))
        for at, (text, found) in enumerate(held.items())
    )


def drawn(task: str, path: str, sources: Sequence[Source], items: int, seed: int) -> tuple[Source, ...]:
    """Return sources with at least so many questions, in an order that the seed gives; more only add.

    Raises:
        UsageError: If there are not so many questions.
    """
    order = list(sources)
    random.Random(f"{task}/{seed}").shuffle(order)  # noqa: S311 - reproducible, not secret
    chosen = tuple(_enough(order, items))
    held = sum(len(source.items) for source in chosen)
    if held < items:
        raise UsageError(
            f"The data file {path} holds {held} questions, and {items} were asked for.",
            f"Set `items` to {held} or fewer, or give a larger file.",
        )
    return chosen


def _enough(order: Sequence[Source], items: int) -> Iterator[Source]:
    held = 0
    for source in order:
        if held >= items:
            return
        held += len(source.items)
        yield source


def _decoded(path: str, at: int, line: bytes, kind: type[T], described: str) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Line {at} of the data file {path} is not what it should be: {error}.", f"Expected: {described}."
        ) from error
