"""How facts are stated: in English prose, in another layout, or in another language."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import msgspec

from unspoken.errors import UsageError


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A way to state facts.

    Attributes:
        statements: One for each kind of fact, with `{place}` and `{value}`.
        between: Stands between statements.
        before: Stands before all of them.
        after: Stands behind all of them.
        fillers: Sentences that say nothing, to stand between the facts; a layout has none.
        values: What a value is called here, where it is not the same word.
    """

    statements: tuple[str, ...]
    between: str = " "
    before: str = ""
    after: str = ""
    fillers: tuple[str, ...] = ()
    values: dict[str, str] = {}

    def states(self, kind: int, place: str, value: str) -> str:
        """Return a fact as it is stated here.

        Args:
            kind: Its kind's place among all kinds.
            place: What it is about.
            value: Its value, in English.
        """
        return self.statements[kind].format(place=place, value=self.values.get(value, value))


@cache
def _forms() -> dict[str, Form]:
    found = files("unspoken.lab.tasks").joinpath("forms.yaml").read_bytes()
    return msgspec.yaml.decode(found, type=dict[str, Form])


def form_named(name: str) -> Form:
    """Return a form.

    Raises:
        UsageError: If there is none of this name.
    """
    if name not in _forms():
        raise UsageError(f"Facts cannot be stated as '{name}'.", f"There are prose, {', '.join(_forms())}.")
    return _forms()[name]
