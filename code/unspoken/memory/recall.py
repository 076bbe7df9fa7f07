"""What of a memory an agent has in mind from the beginning: the latest of it, as much as it may have."""

from __future__ import annotations

from pathlib import Path

import msgspec

from unspoken.errors import StorageError, UsageError

# A letter of JSON is at most six bytes of its file, and a piece brings its source along.
_BYTES_PER_LETTER, _LEAST_BYTES = 8, 1 << 16


class _Line(msgspec.Struct):
    """A line of a memory, as far as it is recalled."""

    text: str


def recall(path: Path, letters: int) -> str:
    """Return the last pieces of a memory that fit, oldest first, with empty lines between them.

    Args:
        path: A memory, or any JSON lines with a field `text`. Only its end is read.
        letters: Most letters; a single piece that is longer is left out.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If a line is none of a memory, or not one piece fits.
    """
    pieces: list[str] = []
    left = letters
    for line in reversed(_last_lines(path, _LEAST_BYTES + letters * _BYTES_PER_LETTER)):
        try:
            text = msgspec.json.decode(line, type=_Line).text.strip()
        except msgspec.DecodeError as error:
            raise UsageError(
                f"{path} is no memory: {error}.", "Make one with `unspoken data import PATH --agent NAME`."
            ) from error
        if len(text) > left:
            break
        if text:
            pieces.append(text)
            left -= len(text) + 2
    if not pieces:
        raise UsageError(f"No piece of {path} has at most {letters} letters.", "Allow more letters, or import texts.")
    return "\n\n".join(reversed(pieces))


def _last_lines(path: Path, most_bytes: int) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most_bytes))
            data = file.read()
    except OSError as error:
        raise StorageError(f"The memory {path} cannot be read: {error.strerror}.", "Give an existing file.") from error
    lines = data.split(b"\n")
    whole = lines if size <= most_bytes else lines[1:]
    return [line for line in whole if line.strip()]
