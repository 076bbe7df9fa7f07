"""Seals in a kept session: each agent whose card names a key signs the columns that came into its mind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import time

from unspoken.cachefile.header import FileManifest, Header, peek
from unspoken.cachefile.sealed import SECONDS_TO_LIVE, Seal
from unspoken.errors import SealRefused
from unspoken.trust.keys import SigningKey, require_name
from unspoken.trust.seals import signer, verify_seal


@dataclass(frozen=True)
class Sealer:
    """Seals files of columns for the place in which they lie, and takes none back that lies in another.

    Args:
        session: What the session is called.
        keys: The key of each agent that has one, by the agent's name.

    Raises:
        UsageError: If an agent's name is none that a seal can say.
    """

    session: str
    keys: Mapping[str, SigningKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.keys:
            require_name(name)

    def sign(self, path: Path, agent: str) -> Callable[[FileManifest], Seal] | None:
        """Return what seals a file of an agent's columns for its place; None if the agent has no key."""
        if agent not in self.keys:
            return None
        place = self._place(path)
        return signer(self.keys[agent], sender=agent, session=place, seconds_to_live=SECONDS_TO_LIVE)

    def header(self, path: Path, agent: str) -> Header | None:
        """Return the header of a file of an agent's columns, verified; None if the agent has no key.

        Raises:
            SealRefused: If the file is not as the agent has sealed it, or lies in another place.
            CacheFileError: If it is no sound cache file.
            StorageError: If it cannot be read.
        """
        if agent not in self.keys:
            return None
        header = peek(path)
        try:
            verify_seal(header, _Only(agent, self.keys[agent].public.key), now=int(time()), session=self._place(path))
        except SealRefused as error:
            raise SealRefused(
                f"{path} is not as {agent} has kept it. {error.problem}",
                "Bring it back from a copy; or delete it, and the session is read again by its log.",
            ) from error
        return header

    def _place(self, path: Path) -> str:
        return f"{self.session}/{path.name}"


@dataclass(frozen=True)
class _Only:
    """Knows one sender."""

    name: str
    key: str

    def find(self, key: str) -> str | None:
        return self.name if key == self.key else None
