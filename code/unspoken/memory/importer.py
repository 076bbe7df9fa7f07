"""Import exports and notes into an agent's memory: one JSONL of pieces of text, each once, with where it comes from.

    <agent>.jsonl            the pieces: text, agent, split, source
    <agent>.skipped.jsonl    what was left out: file, line, why
    <agent>.index.sqlite     which pieces there are, and how far each file has been read

The three are one: the index is written last, in one transaction, and what stands in the others behind the point it
knows is cut off when the import goes on.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from unspoken.errors import StorageError, UsageError
from unspoken.memory.formats import CONVERSATIONS, conversation, shape
from unspoken.memory.pieces import spoken
from unspoken.memory.sources import Source
from unspoken.memory.stream import Element
from unspoken.trust.files import held, private_folder

# How many records, or bytes of them, are written down at once.
RECORDS, BYTES = 2000, 4 << 20
HELD_OUT = 0.1
_TABLES = """
create table if not exists pieces (same blob primary key) without rowid;
create table if not exists files (key text primary key, offset integer, line integer, done integer);
create table if not exists counts (name text primary key, number integer);
"""
_MEND = "Bring its files back from a copy, or delete all of them and import again."

Watcher = Callable[[int, int], None]
"""Is told how many bytes have been read, and of how many."""


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a piece of text comes from.

    Attributes:
        file: The file's name.
        line: The line its record begins in.
        format: The record's shape.
        title: Of the conversation.
        when: When it began, as the service writes it.
    """

    file: str
    line: int
    format: str
    title: str = ""
    when: str = ""


class Piece(msgspec.Struct, frozen=True):
    """One piece of an agent's memory.

    Attributes:
        text: The words.
        agent: Whose memory it is.
        split: "train", or "held-out" for what nothing may be trained on; a conversation is in one of them as a whole.
        source: Where it comes from.
    """

    text: str
    agent: str
    split: str
    source: Origin


class Skipped(msgspec.Struct, frozen=True):
    """What was left out, why, and how often."""

    file: str
    line: int
    why: str
    times: int = 1


COUNTED = ("files", "records", "pieces", "duplicates", "letters", "broken")


class Report(msgspec.Struct, frozen=True):
    """What is in a memory, and what it took to get there, all imports together.

    Attributes:
        files, records, pieces, duplicates, letters: How many there were; duplicates are pieces that were there already.
        broken: Records that could not be read.
        skipped: How often something was left out, by reason.
    """

    files: int
    records: int
    pieces: int
    duplicates: int
    letters: int
    broken: int
    skipped: dict[str, int]


class Memory:
    """An agent's memory in a folder, open to one process at a time; a context manager.

    Args:
        folder: Where it lies; made, for its owner alone, if it is not there.
        agent: Whose it is.

    Raises:
        UsageError: If the name can be none of a file.
        StorageError: If another process has it open, it cannot be written, or its files do not belong together.
    """

    def __init__(self, folder: Path, agent: str) -> None:
        if not agent.replace("-", "").replace("_", "").isalnum():
            raise UsageError(f"'{agent}' cannot be the name of a memory.", "Use letters, digits, '-' and '_'.")
        self.agent = agent
        self.pieces = private_folder(folder, "memories") / f"{agent}.jsonl"
        self.left_out = folder / f"{agent}.skipped.jsonl"
        self._lock = held(folder / f"{agent}.lock", f"memory of {agent}")
        try:
            self._index = sqlite3.connect(folder / f"{agent}.index.sqlite", isolation_level=None)
            self._index.executescript(_TABLES)
            for path in (self.pieces, self.left_out):
                self._cut(path)
        except (sqlite3.Error, OSError, StorageError) as error:
            self._lock.release()
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"The memory of {agent} in {folder} cannot be used: {error}.", _MEND) from error

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes open it."""
        self._index.close()
        self._lock.release()

    def report(self) -> Report:
        """Return what is in it."""
        counted = dict(self._index.execute("select name, number from counts"))
        skipped = {name.removeprefix("- "): number for name, number in counted.items() if name.startswith("- ")}
        return Report(skipped=dict(sorted(skipped.items())), **{name: counted.get(name, 0) for name in COUNTED})

    def add(self, source: Source, watch: Watcher = lambda bytes_read, of: None) -> None:
        """Read a file into the memory, from where an earlier call was ended.

        Args:
            source: The file.
            watch: Is told how far it is.

        Raises:
            StorageError: If the file cannot be read, or the memory not be written.
        """
        key, size = source.digest(), source.size_bytes()
        found = self._index.execute("select offset, line, done from files where key = ?", (key,)).fetchone()
        offset, line, done = found or (0, 1, 0)
        if done:
            watch(size, size)
            return
        kinds: set[str | None] = set()  # The file's own: a part of its records must not be taken for one.
        batch = _Batch()
        for element in source.elements(lambda value: shape(value) in (kinds or CONVERSATIONS), offset, line):
            kinds.update({shape(element.value)} - {None})
            batch.take(element, source.name, self.agent)
            if batch.is_full():
                self._write(batch, key, element.stop, element.stop_line, done=0)
                batch = _Batch()
                watch(element.stop, size)
        batch.counts["files"] += 1
        self._write(batch, key, size, 0, done=1)
        watch(size, size)

    def _write(self, batch: _Batch, key: str, offset: int, line: int, done: int) -> None:
        try:
            self._index.execute("begin immediate")
            fresh = [piece for piece in batch.pieces if self._is_new(piece)]
            batch.counts["pieces"] += len(fresh)
            batch.counts["duplicates"] += len(batch.pieces) - len(fresh)
            batch.counts["letters"] += sum(len(piece.text) for piece in fresh)
            for path, lines in ((self.pieces, fresh), (self.left_out, batch.skipped)):
                batch.counts[path.name] += _appended(path, lines)
            self._index.executemany(
                "insert into counts values (?, ?) on conflict (name) do update set number = number + excluded.number",
                batch.counts.items(),
            )
            self._index.execute("insert or replace into files values (?, ?, ?, ?)", (key, offset, line, done))
            self._index.execute("commit")
        except (sqlite3.Error, OSError) as error:
            if self._index.in_transaction:
                self._index.execute("rollback")
            for path in (self.pieces, self.left_out):
                self._cut(path)
            raise StorageError(
                f"The memory of {self.agent} cannot be written: {error}.", "Make room, and import it again: it goes on."
            ) from error

    def _is_new(self, piece: Piece) -> bool:
        same = hashlib.sha256(" ".join(piece.text.casefold().split()).encode()).digest()[:16]
        return self._index.execute("insert or ignore into pieces values (?)", (same,)).rowcount == 1

    def _cut(self, path: Path) -> None:
        """Cut off what was written after the index was."""
        known = self._index.execute("select number from counts where name = ?", (path.name,)).fetchone()
        there, wanted = path.stat().st_size if path.exists() else 0, known[0] if known else 0
        if there < wanted:
            raise StorageError(f"{path} has {there} bytes, and its index knows {wanted}.", _MEND)
        if there > wanted:
            os.truncate(path, wanted)


class _Batch:
    """What is written down at once."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.skipped: list[Skipped] = []
        self.counts: Counter[str] = Counter()
        self._letters = 0

    def is_full(self) -> bool:
        """Whether it is time to write it down."""
        return self.counts["records"] + self.counts["broken"] >= RECORDS or self._letters > BYTES

    def take(self, element: Element, file: str, agent: str) -> None:
        """Take one record apart."""
        found = element.problem or conversation(element.value)
        if isinstance(found, str):
            self.counts["broken"] += 1
            self.skipped.append(Skipped(file, element.line, found))
            return
        self.counts["records"] += 1
        for why, times in found.skipped.items():
            if times:
                self.skipped.append(Skipped(file, element.line, why, times))
                self.counts[f"- {why}"] += times
        origin = Origin(file, element.line, found.format, found.title, found.when)
        texts = list(spoken(found, agent))
        split = _split(texts[0]) if texts else ""
        self.pieces += [Piece(text, agent, split, origin) for text in texts]
        self._letters += sum(map(len, texts))


def _split(text: str) -> str:
    """Return which split a conversation is in, by its first words: the same in every import."""
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") / 2**32
    return "held-out" if drawn < HELD_OUT else "train"


def _appended(path: Path, lines: Sequence[msgspec.Struct]) -> int:
    """Append lines to a file, wait until they lie on the disk, and return their bytes."""
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return len(data)
