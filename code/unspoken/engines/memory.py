"""Keep small results between runs, where losing them costs time and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def recalled(path: Path | None, kind: type[T]) -> T | None:
    """Return what a file holds; None if there is none, or it cannot be read: what it held is then made again."""
    if path is None or not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def remember(path: Path | None, what: msgspec.Struct) -> None:
    """Write something to a file, as a whole or not at all; a folder that cannot be written is no error."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_bytes(msgspec.json.encode(what))
        os.replace(part, path)
    except OSError:
        return  # It costs time at the next start, nothing else.
