"""The caches a server keeps for its agents: each for a while, each under a handle that only those named may use."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from unspoken.cachefile.header import Header
from unspoken.trust.files import private_folder

HANDLE_BYTES = 18
SUFFIX = ".kv.safetensors"


class NoSuchCache(Exception):
    """There is no cache of this handle, or none that this agent may use: which of the two is not told."""


class QuotaSpent(Exception):
    """An agent has as many caches, or as many bytes of them, as it may have."""


@dataclass(frozen=True)
class Limits:
    """What an agent may keep.

    Attributes:
        caches: Most caches.
        bytes: Most bytes of them together.
        seconds: Longest that one is kept.
    """

    caches: int = 100
    bytes: int = 1 << 30
    seconds: float = 3600.0


@dataclass(frozen=True)
class Entry:
    """One cache that is kept.

    Attributes:
        handle: Its name; as good as random, so that it cannot be guessed.
        owner: Whose it is.
        readers: Who else may go on from it.
        path: The file.
        header: What the file says it is.
        bytes: Its size.
        expires: Seconds of the clock at which it is gone.
        sealed_by: The known sender that vouches for it; None if nobody does.
    """

    handle: str
    owner: str
    readers: frozenset[str]
    path: Path = field(repr=False)
    header: Header = field(repr=False)
    bytes: int
    expires: float
    sealed_by: str | None = None

    def is_open_to(self, agent: str) -> bool:
        """Whether an agent may use it."""
        return agent == self.owner or agent in self.readers


class Vault:
    """Caches in a folder that is this process's own.

    Args:
        folder: The folder; what lies in it is removed, as nobody can have a handle of it.
        limits: What each agent may keep.
        clock: Tells the time in seconds.
    """

    def __init__(self, folder: Path, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self.folder, self.limits, self._clock = private_folder(folder, "caches"), limits, clock
        self._entries: dict[str, Entry] = {}
        self._turn = threading.RLock()
        for left in folder.glob(f"*{SUFFIX}*"):
            left.unlink()

    def room(self, agent: str) -> int:
        """Return how many bytes an agent may still add.

        Raises:
            QuotaSpent: If none.
        """
        with self._turn:
            self._forget()
            mine = [entry for entry in self._entries.values() if entry.owner == agent]
            left = self.limits.bytes - sum(entry.bytes for entry in mine)
            if len(mine) >= self.limits.caches or left <= 0:
                raise QuotaSpent
            return left

    def new_path(self) -> Path:
        """Return where a file can be written that is not kept yet."""
        return self.folder / f"{secrets.token_urlsafe(HANDLE_BYTES)}{SUFFIX}"

    def put(
        self,
        path: Path,
        header: Header,
        owner: str,
        readers: Iterable[str] = (),
        *,
        seconds: float | None = None,
        sealed_by: str | None = None,
    ) -> Entry:
        """Keep a file that lies at a `new_path`.

        Raises:
            QuotaSpent: If it is more than its owner may keep; the file is removed.
        """
        size = path.stat().st_size
        with self._turn:
            try:
                if size > self.room(owner):
                    raise QuotaSpent
            except QuotaSpent:
                path.unlink()
                raise
            kept = min(seconds or self.limits.seconds, self.limits.seconds)
            handle = path.name.removesuffix(SUFFIX)
            made = Entry(handle, owner, frozenset(readers), path, header, size, self._clock() + kept, sealed_by)
            self._entries[handle] = made
            return made

    def get(self, handle: str, agent: str) -> Entry:
        """Return a cache that an agent may use.

        Raises:
            NoSuchCache: If there is none.
        """
        with self._turn:
            self._forget()
            found = self._entries.get(handle)
            if found is None or not found.is_open_to(agent):
                raise NoSuchCache
            return found

    def delete(self, handle: str, agent: str) -> None:
        """Remove a cache of an agent's own.

        Raises:
            NoSuchCache: If it has none of this handle.
        """
        with self._turn:
            if self.get(handle, agent).owner != agent:
                raise NoSuchCache
            self._remove(handle)

    def held(self) -> tuple[int, int]:
        """Return how many caches are kept, and how many bytes."""
        with self._turn:
            self._forget()
            return len(self._entries), sum(entry.bytes for entry in self._entries.values())

    def close(self) -> None:
        """Remove everything."""
        with self._turn:
            for handle in list(self._entries):
                self._remove(handle)

    def _forget(self) -> None:
        now = self._clock()
        for handle, entry in list(self._entries.items()):
            if entry.expires <= now:
                self._remove(handle)

    def _remove(self, handle: str) -> None:
        # Who has it open goes on reading it: its blocks stay until then.
        self._entries.pop(handle).path.unlink(missing_ok=True)
