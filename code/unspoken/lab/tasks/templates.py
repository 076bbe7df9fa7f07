"""Templates of a task's description, filled in from a row: jinja2, in a sandbox, and nothing missing passes."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unspoken.errors import UsageError


def _present(value: Any) -> Any:
    if value is None:
        raise UndefinedError("a value is empty (null)")
    return value


# Rows come from anywhere: a template sees their values, and can call nothing that changes or leaves them.
_SANDBOX = ImmutableSandboxedEnvironment(undefined=StrictUndefined, finalize=_present, keep_trailing_newline=True)


@dataclass(frozen=True)
class Row:
    """One row of a data set.

    Attributes:
        at: Its number, from 1.
        fields: What it holds.
    """

    at: int
    fields: Mapping[str, Any]


class Filled:
    """One template of a description. A single word is a field's name and stands for the field.

    Args:
        key: The description's key it stands under, for messages.
        text: The template.
        where: The description's file, for messages.

    Raises:
        UsageError: If it is no template.
    """

    def __init__(self, key: str, text: str, where: str) -> None:
        self._key, self._text, self._where = key, text, where
        try:
            self._template: Template = _SANDBOX.from_string(text)
        except (TemplateError, RecursionError) as error:
            raise UsageError(
                f"The template `{key}` of {where} cannot be read: {_told(error)}.", "Write jinja2: {{ field }}."
            ) from error

    def text(self, row: Row) -> str:
        """Return what it says for a row, without space around it.

        Raises:
            UsageError: If a field is missing, or nothing is left.
        """
        made = self._made(row).strip()
        if not made:
            raise UsageError(
                f"The template `{self._key}` of {self._where} leaves nothing for row {row.at}.", _fields(row)
            )
        return made

    def texts(self, row: Row) -> tuple[str, ...]:
        """Return the list it says for a row: that of a field, or one written as Python or JSON writes it.

        Raises:
            UsageError: If a field is missing, or it is no list of texts or numbers.
        """
        found = row.fields.get(self._text)
        if found is None:
            found = _literal(self._made(row))
        if not isinstance(found, list | tuple) or not all(isinstance(each, str | int | float) for each in found):
            raise UsageError(
                f"The template `{self._key}` of {self._where} makes no list of texts for row {row.at}: "
                f"{str(found)[:80]!r}.",
                f"Name a field that holds a list, or make one: {{{{ [first, second] }}}}. {_fields(row)}",
            )
        return tuple(str(each).strip() for each in found)

    def holds(self, row: Row) -> bool:
        """Tell whether it says `True` for a row.

        Raises:
            UsageError: If a field is missing, or it says neither `True` nor `False`.
        """
        made = self._made(row).strip()
        if made not in ("True", "False"):
            raise UsageError(
                f"The template `{self._key}` of {self._where} says {made[:80]!r} for row {row.at}, "
                "neither True nor False.",
                f"Write a comparison: {{{{ field == 'value' }}}}. {_fields(row)}",
            )
        return made == "True"

    def _made(self, row: Row) -> str:
        if self._text in row.fields:
            return str(row.fields[self._text]) if row.fields[self._text] is not None else ""
        if self._text.isidentifier():
            raise UsageError(
                f"`{self._key}` of {self._where} is '{self._text}', and row {row.at} has no such field.", _fields(row)
            )
        try:
            return self._template.render(row.fields)
        except Exception as error:  # A template may do anything with a value that is not of the type it expects.
            raise UsageError(
                f"The template `{self._key}` of {self._where} cannot be filled in for row {row.at}: {_told(error)}.",
                _fields(row),
            ) from error


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _told(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _fields(row: Row) -> str:
    return f"The row's fields are {', '.join(map(str, row.fields)) or 'none'}."
