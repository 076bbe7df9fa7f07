"""What people write for the lab: YAML files, read as values of a type."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from unspoken.errors import StorageError, UsageError

T = TypeVar("T")
MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: of two blocks `cells`, one would silently never run."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping whose keys are all different."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        if twice := [key for at, key in enumerate(keys) if key in keys[:at]]:
            raise yaml.constructor.ConstructorError(None, None, f"the key `{twice[0]}` stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path, kind: type[T], what: str, hint: str) -> T:
    """Read a YAML file as a value of a type; a key that stands twice is an error.

    Of a `Struct` that forbids them, so are unknown keys.

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
        held = yaml.load(path.read_bytes(), _Loader)  # noqa: S506 - a safe loader's child
        return msgspec.convert(held, kind, builtin_types=(datetime, date))
    except OSError as error:
        raise StorageError(
            f"The {what} {path} cannot be read: {error.strerror}.", "Give an existing YAML file."
        ) from error
    # Of values such as 2024-02-30 YAML's own readers raise a ValueError; of a thousand brackets they run out of stack.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"The {what} {path} is not valid: {error}.", hint) from error
