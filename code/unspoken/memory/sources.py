"""Which files an export consists of, and how each is read."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

from unspoken.errors import StorageError, UsageError
from unspoken.memory.pieces import read_pieces
from unspoken.memory.stream import CHUNK_BYTES, Element, array, jsonl

JSON, LINES, TEXT = (".json",), (".jsonl", ".ndjson"), (".md", ".markdown", ".txt")
KINDS = (*JSON, *LINES, *TEXT)


@dataclass(frozen=True)
class Source:
    """A file of an export, or a member of a zip file.

    Attributes:
        path: The file.
        member: The member; None for the file itself.
    """

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.path.name if self.member is None else f"{self.path.name}/{self.member}"

    @property
    def kind(self) -> str:
        """The ending of its name."""
        return Path(self.member or self.path.name).suffix.lower()

    def size_bytes(self) -> int:
        """Return how many bytes it has.

        Raises:
            StorageError: If it cannot be read.
        """
        if self.member is None:
            with _readable(self.path):
                return self.path.stat().st_size
        with _zipped(self.path) as archive:
            return archive.getinfo(self.member).file_size

    def digest(self) -> str:
        """Return what tells this file, as it is now, from others and from what it was: its place, size and time.

        Raises:
            StorageError: If it cannot be read.
        """
        with _readable(self.path):
            state = self.path.stat()
        parts = (str(self.path.resolve()), self.member, state.st_size, state.st_mtime_ns)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def elements(self, known: Callable[[Any], bool], offset: int, line: int) -> Iterator[Element]:
        """Read its records from a place on.

        Args:
            known: Tells whether an object is a record of this file.
            offset: Bytes that have been read before.
            line: The line there.

        Raises:
            StorageError: If it cannot be read.
        """
        with self._open(offset) as file:
            if self.kind in LINES:
                yield from jsonl(file, offset, line)
            elif self.kind in JSON:
                yield from array(file, known, offset, line)
            else:
                yield from read_pieces(file, offset, line)

    @contextmanager
    def _open(self, offset: int) -> Iterator[BufferedIOBase]:
        if self.member is None:
            with _readable(self.path), open(self.path, "rb") as file:
                file.seek(offset)
                yield file
            return
        with _zipped(self.path) as archive, _member(archive, self.path, self.member) as member:
            while offset:  # To go to a place in a member is to read everything before it.
                offset -= len(member.read(min(offset, CHUNK_BYTES)))
            yield member


def sources(path: Path) -> tuple[list[Source], list[str]]:
    """Return the files of an export that can be read, in order of their names, and the names of the others.

    Args:
        path: A file, a zip file, or a folder of such.

    Raises:
        StorageError: If it cannot be read.
        UsageError: If nothing in it can be.
    """
    with _readable(path):
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory")
    found: list[Source] = []
    for file in files:
        found += _members(file) if file.suffix.lower() == ".zip" else [Source(file)]
    readable = [each for each in found if each.kind in KINDS]
    if not readable:
        raise UsageError(
            f"There is nothing to import in {path}.", f"Give a file, a folder or a zip file with {', '.join(KINDS)}."
        )
    return readable, [each.name for each in found if each.kind not in KINDS]


def _members(path: Path) -> list[Source]:
    with _zipped(path) as archive:
        return [Source(path, each.filename) for each in archive.infolist() if not each.is_dir()]


@contextmanager
def _zipped(path: Path) -> Iterator[zipfile.ZipFile]:
    with _readable(path):
        try:
            with zipfile.ZipFile(path) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _unreadable(path, error) from error


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> BufferedIOBase:
    try:
        return cast(BufferedIOBase, archive.open(name))
    except (NotImplementedError, RuntimeError) as error:  # Packed in a way that is not known; or with a password.
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> StorageError:
    told = str(error).rstrip(".") or type(error).__name__
    return StorageError(f"The zip file {path} cannot be read: {told}.", "Fetch it again, or unpack it and import that.")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.", "Give an existing file or folder.") from error
