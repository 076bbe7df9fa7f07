"""Names for things that can be plugged in: a name leads to a class, loaded on first use."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from unspoken.errors import UsageError


class Registry:
    """A table from name to `"module:attribute"`, extended by installed packages.

    Args:
        what: The word for one entry, used in messages ("channel").
        group: The entry-point group other packages may add to.
        entries: The built-in entries.
    """

    def __init__(self, what: str, group: str, entries: Mapping[str, str]) -> None:
        self._what = what
        self._group = group
        self._entries = dict(entries)

    def names(self) -> list[str]:
        """Return every known name, sorted."""
        return sorted({*self._entries, *self._plugged()})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def load(self, name: str) -> Any:
        """Return the class or function behind a name.

        Raises:
            UsageError: If nobody registered the name.
        """
        target = self._entries.get(name) or self._plugged().get(name)
        if target is None:
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(self.names())}."
            raise UsageError(f"There is no {self._what} named '{name}'.", hint)
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def _plugged(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for point in entry_points(group=self._group):
            if ":" in point.value:
                found[point.name] = point.value
            else:
                # A broken plug-in must not take the program down with it.
                warnings.warn(f"plug-in '{point.name}' of {self._group} names no attribute", stacklevel=2)
        return found
