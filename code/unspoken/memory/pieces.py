"""Cut conversations and documents into pieces of text of a size that agents and trainers can use."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from io import BufferedIOBase
from typing import IO, cast

from unspoken.memory.formats import Conversation
from unspoken.memory.stream import Element, is_text

PIECE_LETTERS = 2000
# A line of a whole book's length comes in parts.
_LONG_LINE = 1 << 16
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def spoken(conversation: Conversation, agent: str) -> Iterator[str]:
    """Return a conversation as pieces of lines `user: ...` and `<agent>: ...`, whole messages where they fit."""
    if conversation.text:
        yield from packed(paragraphs(conversation.text))
        return
    names = {"user": "user", "assistant": agent}
    lines = (f"{names[message.role]}: {message.text}" for message in conversation.messages)
    yield from packed(lines, apart="\n")


def packed(parts: Iterable[str], apart: str = "\n\n") -> Iterator[str]:
    """Join parts to pieces of at most `PIECE_LETTERS`; a part that is longer is cut between words."""
    piece = ""
    for part in parts:
        for cut in _cut(part):
            if piece and len(piece) + len(apart) + len(cut) > PIECE_LETTERS:
                yield piece
                piece = ""
            piece = f"{piece}{apart}{cut}" if piece else cut
    if piece:
        yield piece


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def read_pieces(file: BufferedIOBase, offset: int = 0, line: int = 1) -> Iterator[Element]:
    """Read a text file in pieces of whole paragraphs, in little memory.

    Args:
        file: Open at `offset`.
        offset: Bytes of the file that have been read before.
        line: The number of the first line.
    """
    text = io.TextIOWrapper(cast(IO[bytes], file), "utf-8", "surrogateescape", newline="")
    lines: list[str] = []
    begins, letters = line, 0
    while said := text.readline(_LONG_LINE):
        offset += len(said.encode("utf-8", "surrogateescape"))
        begins = begins if lines else line
        line += said.endswith("\n")
        if said.strip() or lines:
            lines.append(said)
            letters += len(said)
        # A piece ends with a paragraph, if it is not too long by then.
        if letters > (PIECE_LETTERS // 2 if not said.strip() else PIECE_LETTERS):
            yield _piece(lines, begins, offset, line)
            lines, letters = [], 0
    if lines:
        yield _piece(lines, begins, offset, line)
    text.detach()


def _piece(lines: list[str], begins: int, offset: int, line: int) -> Element:
    words = "".join(lines).strip()
    problem = "" if is_text(words) else "is no UTF-8"
    return Element(None if problem else {"text": words}, begins, problem, offset, line)


def _cut(part: str) -> Iterator[str]:
    """Cut what is too long at the end of a sentence, else between words, else anywhere."""
    while len(part) > PIECE_LETTERS:
        head = part[:PIECE_LETTERS]
        ends = [found.start() for found in _SENTENCE.finditer(head)]
        at = ends[-1] if ends and ends[-1] > PIECE_LETTERS // 2 else head.rfind(" ")
        at = at if at > 0 else PIECE_LETTERS
        yield part[:at].rstrip()
        part = part[at:].lstrip()
    if part:
        yield part
