"""Read the records of a large JSON file one by one, in little memory, past what is broken in between.

The libraries for this (ijson, json-stream) end at the first broken byte and do not tell its line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any, NamedTuple

CHUNK_BYTES = 1 << 20
# A conversation of this size would take gigabytes as Python objects.
MOST_LETTERS = 1 << 26
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
_NEXT = re.compile(r",\s*(?=\{)")
# What a text that is merely cut off fails with: at its end, or at the beginning of a string that has none.
_UNFINISHED = "Unterminated string"
_TAIL = 64


class Element(NamedTuple):
    """One record, or what stands where one should.

    Attributes:
        value: The record; None if it is broken.
        line: The line it begins in, from 1.
        problem: What is wrong with it; empty if nothing is.
        stop: How many bytes of the file are behind us.
        stop_line: The line there.
    """

    value: Any
    line: int
    problem: str
    stop: int
    stop_line: int


def jsonl(file: BufferedIOBase, offset: int = 0, line: int = 1) -> Iterator[Element]:
    """Read a JSON object from each line; empty lines are no records.

    Args:
        file: Open at `offset`.
        offset: Bytes of the file that have been read before.
        line: The number of the first line.
    """
    while data := file.readline(MOST_LETTERS):
        offset += len(data)
        if len(data) == MOST_LETTERS and not data.endswith(b"\n"):
            while (rest := file.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
                offset += len(rest)
            offset += len(rest)
            yield Element(None, line, f"is longer than {MOST_LETTERS} bytes", offset, line + 1)
        elif data.strip():
            value, problem = _decoded(data)
            yield Element(value, line, problem, offset, line + 1)
        line += 1


def _decoded(data: bytes) -> tuple[Any, str]:
    try:
        return json.loads(data.decode()), ""
    except UnicodeDecodeError:
        return None, "is no UTF-8"
    except (ValueError, RecursionError) as error:
        return None, f"is no JSON: {_brief(error)}"


@dataclass
class _Window:
    """The part of a text that is in memory.

    Attributes:
        file: Where more of it comes from.
        offset: Bytes before the window.
        line: The line the window begins in.
    """

    file: BufferedIOBase
    offset: int
    line: int

    def __post_init__(self) -> None:
        # Other bytes get through as lone surrogates, so that lengths in bytes stay known.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.ended = "", False

    def more(self) -> None:
        """Read on: as much again as there is, so that trying anew costs no more than reading did."""
        data = self.file.read(max(CHUNK_BYTES, len(self.text)))
        self.ended = not data
        self.text += self._decoder.decode(data, final=self.ended)

    def drop(self, letters: int) -> None:
        """Leave the beginning of the window behind."""
        gone, self.text = self.text[:letters], self.text[letters:]
        self.offset += len(gone.encode("utf-8", "surrogateescape"))
        self.line += gone.count("\n")

    def skip(self, wanted: str = "") -> str:
        """Leave white space behind, and return the letter after it; one of `wanted` is left behind with it."""
        while True:
            self.drop(_SPACE.match(self.text).end())  # type: ignore[union-attr]  # It matches nothing at least.
            if self.text or self.ended:
                break
            self.more()
        found = self.text[:1]
        if found and found in wanted:
            self.drop(1)
        return found


def array(file: BufferedIOBase, known: Callable[[Any], bool], offset: int = 0, line: int = 1) -> Iterator[Element]:
    """Read the objects of a JSON array, or one object; what is broken is told, and reading goes on behind it.

    Args:
        file: Open at `offset`.
        known: Tells whether an object is a record, and not just a part of one. Behind something broken, only such an
            object is taken for the next record.
        offset: Bytes of the file that have been read before: 0, or the `stop` of an element.
        line: The line at that place.
    """
    window = _Window(file, offset, line)
    window.more()
    is_array = True
    if offset == 0:
        window.drop(len(window.text) - len(window.text.removeprefix("\ufeff")))
        is_array = window.skip("[") == "["
    while (letter := window.skip(",]")) and letter != "]":
        if letter != ",":
            yield _element(window, known)
    if is_array and not letter:
        yield Element(
            None, window.line, "is the end of the file, and the array is not closed", window.offset, window.line
        )
    elif is_array and window.skip():
        yield Element(None, window.line, "stands behind the end of the array", window.offset, window.line)


def _element(window: _Window, known: Callable[[Any], bool]) -> Element:
    """Return the record at the beginning of the window and leave it behind, or what is broken there."""
    while True:
        try:
            value, stop = _DECODER.raw_decode(window.text)
        except (json.JSONDecodeError, RecursionError) as error:
            if not window.ended and _cut_off(error, window.text) and len(window.text) < MOST_LETTERS:
                window.more()
                continue
            return _recovered(window, known, _brief(error))
        line = window.line
        text = window.text[:stop]
        window.drop(stop)
        problem = "" if text.isascii() or is_text(text) else "is no UTF-8"
        return Element(None if problem else value, line, problem, window.offset, window.line)


def _cut_off(error: Exception, text: str) -> bool:
    """Whether a text may merely go on where the window ends."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.pos >= len(text) - _TAIL or error.msg.startswith(_UNFINISHED)


def _recovered(window: _Window, known: Callable[[Any], bool], problem: str) -> Element:
    """Leave everything behind up to the next record, or all that is left, and tell of it."""
    line, searched = window.line, 1
    while True:
        for found in _NEXT.finditer(window.text, searched):
            try:
                value, _ = _DECODER.raw_decode(window.text, found.end())
            except (json.JSONDecodeError, RecursionError):
                continue
            if known(value):
                window.drop(found.end())
                told = f"is no JSON: {problem}; left out up to line {window.line}"
                return Element(None, line, told, window.offset, window.line)
        if window.ended:
            window.drop(len(window.text))
            return Element(
                None, line, f"is no JSON, and neither is what follows: {problem}", window.offset, window.line
            )
        # The next record may begin in this window and end in the next.
        if len(window.text) > MOST_LETTERS:
            window.drop(len(window.text) - CHUNK_BYTES)
        window.more()


def is_text(text: str) -> bool:
    """Whether a text has no bytes in it that are no UTF-8; these get here as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _brief(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
