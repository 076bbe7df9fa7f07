"""Folders of results: how they are named, found again unfinished, and written so that a kill leaves whole files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock

from unspoken.errors import StorageError
from unspoken.spec import fingerprint


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn a failure to write into an error that says what to do.

    Raises:
        StorageError: If something cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"The folder {folder} cannot be written: {error.strerror}.",
            "Make room, or choose another with --results; started again, a run goes on where it was.",
        ) from error


def opened(parent: Path, same: object) -> Path:
    """Return the newest unfinished run in a folder that was begun with the same, or the folder of a new one.

    Args:
        parent: The experiment's folder below the results.
        same: What makes two runs one, as JSON can hold it.

    Raises:
        StorageError: If the folder cannot be written.
    """
    short = fingerprint(json.dumps(same, sort_keys=True))[:8]
    with writable(parent):
        parent.mkdir(parents=True, exist_ok=True)
        # Two processes that begin the same at once have to find one folder.
        with FileLock(parent / ".lock"):
            return unfinished(parent, short) or new_folder(parent, short)


def unfinished(parent: Path, short: str) -> Path | None:
    """Return the newest unfinished run with a short id, if there is one."""
    found = [each for each in sorted(parent.glob(f"*-{short}")) if not (each / "metrics.json").exists()]
    return found[-1] if found else None


def new_folder(parent: Path, short: str) -> Path:
    """Make a folder named for this second, or for the next that is free: a run folder is never used twice."""
    at = datetime.now(UTC)
    while (path := parent / f"{at:%Y%m%dT%H%M%SZ}-{short}").exists():
        at += timedelta(seconds=1)
    path.mkdir()
    return path


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a JSON file as a whole."""
    write(path, json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n")


def write(path: Path, data: bytes) -> None:
    """Replace a file as a whole: a kill leaves the old one or the new one."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        # Otherwise a power cut could leave the new name with nothing behind it.
        os.fsync(file.fileno())
    os.replace(part, path)
