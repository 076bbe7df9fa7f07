"""Small files read with limits, and files replaced as a whole: what keys, stores and containers have in common."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from unspoken.errors import StorageError

# Permission bits of everybody but the owner: all of them, and those to write.
OTHERS = 0o077
OTHERS_WRITE = 0o022


@contextlib.contextmanager
def readable(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a pipe, which would block, is refused.

    Raises:
        StorageError: If it cannot be read.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StorageError(f"The {what} {path} cannot be read: it is no regular file.", "Give a file.")
            yield file
    except OSError as error:
        raise StorageError(
            f"The {what} {path} cannot be read: {error.strerror}.", "Give an existing file that you may read."
        ) from error


def read_small(path: Path, what: str, most_bytes: int, forbidden: int = 0) -> bytes:
    """Return what lies in a small file.

    Args:
        path: The file.
        what: What it is, for the error: "private key".
        most_bytes: Its largest size.
        forbidden: Permission bits it must not have, such as `OTHERS`.

    Raises:
        StorageError: If it cannot be read, is larger, or others have permissions that they must not have.
    """
    with readable(path, what) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & forbidden:
            can, wanted = ("used", "600") if forbidden == OTHERS else ("changed", "go-w")
            raise StorageError(
                f"The {what} {path} can be {can} by others (its mode is {mode:03o}).", f"Run `chmod {wanted} {path}`."
            )
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise StorageError(f"The {what} {path} is larger than {most_bytes} bytes.", "It is none; give another file.")
    return data


@contextlib.contextmanager
def replacing(path: Path, what: str, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of another one at the end, or, after any error, leaves no trace.

    Args:
        path: The file to replace or make.
        what: What it is, for the error.
        mode: Its permissions, from the first byte on.

    Raises:
        StorageError: If it cannot be written.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # What was asked for, whatever the process masks.
            yield file
        os.replace(part, path)
    except OSError as error:
        raise StorageError(
            f"The {what} {path} cannot be written: {error.strerror}.", "Choose a folder you may write to, with room."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # In a folder that cannot be written, nothing was left behind.
            part.unlink(missing_ok=True)


def write_small(path: Path, what: str, data: bytes, mode: int = 0o600) -> None:
    """Write a small file as a whole, and wait until it lies on the disk.

    Raises:
        StorageError: If it cannot be written.
    """
    with replacing(path, what, mode) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def private_folder(path: Path, what: str) -> Path:
    """Return a folder, made for its owner alone if it was not there.

    Raises:
        StorageError: If it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder of {what} {path} cannot be made: {error.strerror}.",
            "Set UNSPOKEN_HOME to a folder you may write to.",
        ) from error
    return path


def held(path: Path, what: str) -> FileLock:
    """Return the lock of something that one process has open at a time, taken; the caller releases it.

    Args:
        path: The lock's file.
        what: What it is, for the error: "session in ...".

    Raises:
        StorageError: If another process has it, or the file cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StorageError(
            f"The {what} is open in another process.", "Wait until that has ended, or end it."
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.", "Mend its folder's permissions.") from error
    return lock


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes out of a folder's files while they are changed.

    The lock stays in the folder: to delete it would take it from a process that is about to lock it.

    Raises:
        StorageError: If the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(private_folder(folder, what) / ".lock"))
        except OSError as error:
            raise StorageError(
                f"The folder of {what} {folder} cannot be written: {error.strerror}.",
                "Set UNSPOKEN_HOME to a folder you may write to.",
            ) from error
        yield
