"""What people write for the lab: YAML files, read as values of a type."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from unspoken.errors import StorageError, UsageError

T = TypeVar("T")


def read_yaml(path: Path, kind: type[T], what: str, hint: str) -> T:
    """Read a YAML file as a value of a type; of a `Struct` that forbids them, unknown keys are errors.

    Args:
        path: The file.
        kind: The type.
        what: What the file is, for messages: "experiment".
        hint: What to do about a file that is not valid.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If it is no value of the type.
    """
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise StorageError(
            f"The {what} {path} cannot be read: {error.strerror}.", "Give an existing YAML file."
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"The {what} {path} is not valid: {error}.", hint) from error
