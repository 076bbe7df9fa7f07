"""What people write for the lab: YAML files, read as values of a type."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from unspoken.errors import StorageError, UsageError

T = TypeVar("T")


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
        return msgspec.convert(_decoded(path.read_bytes()), kind, builtin_types=(datetime, date))
    except OSError as error:
        raise StorageError(
            f"The {what} {path} cannot be read: {error.strerror}.", "Give an existing YAML file."
        ) from error
    # Of values such as 2024-02-30 YAML's own readers raise a ValueError; of a thousand brackets they run out of stack.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"The {what} {path} is not valid: {error}.", hint) from error


def _decoded(data: bytes) -> Any:
    """Return what YAML says, in Python's own types.

    Raises:
        YAMLError: If it is none.
        ValueError: If a key stands twice in a mapping: of two blocks `cells`, one would never run.
    """
    loader = yaml.SafeLoader(data)
    try:
        node = loader.get_single_node()
        _require_single_keys(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _require_single_keys(root: yaml.Node | None) -> None:
    left, seen = [root], set[int]()
    while left:
        node = left.pop()
        if id(node) in seen:  # An alias may lead back.
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    if key.value in lines:
                        raise ValueError(f"the key `{key.value}` stands on lines {lines[key.value]} and {line}")
                    lines[key.value] = line
            left += [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            left += node.value
