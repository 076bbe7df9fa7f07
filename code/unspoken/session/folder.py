"""A session that outlives its process: a folder with its log, and the columns that each exchange added.

    <folder>/session.json      agents, topology, channels, budget
    <folder>/log.jsonl         one line for each thing that happened: its events, and the columns kept of it
    <folder>/columns/          what each agent got into its mind, a cache file for each exchange
    <folder>/lock              held while a process has the session open

A line is written, as a whole, after the columns it names: what was killed half-way has not happened. Where columns are
lost, the session is read again by the log.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import msgspec

from unspoken.cache import KVCache
from unspoken.cachefile import read_cache, write_cache
from unspoken.errors import CacheFileError, IncompatibleCache, StorageError, UsageError
from unspoken.manifest import require_compatible
from unspoken.session.config import VERSION, SessionConfig
from unspoken.session.events import Event, Passage
from unspoken.session.mind import Held, Mind
from unspoken.session.replay import replay
from unspoken.session.sealing import Sealer
from unspoken.session.session import Session
from unspoken.trust.files import held, private_folder, write_small
from unspoken.trust.keys import SigningKey

CONFIG, LOG, COLUMNS, LOCK = "session.json", "log.jsonl", "columns", "lock"


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Columns that came into an agent's mind: `start` is in, `stop` is out.

    Attributes:
        agent: Whose mind.
        file: Where they lie.
        start, stop: Which columns of the mind they are.
        begun: Whether the user's turn has begun behind them.
        held: The passages that came with them: passage, first column, and the one after the last.
    """

    agent: str
    file: str
    start: int
    stop: int
    begun: bool
    held: tuple[tuple[Passage, int, int], ...]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the log."""

    events: tuple[Event, ...]
    kept: tuple[Kept, ...]


class SessionFolder:
    """The folder of one session, held by one process at a time; a context manager.

    Args:
        path: The folder; made, for its owner alone, by `begin`.

    Attributes:
        keys: What each agent seals its columns with, by the agent's name; those without a key seal nothing.

    Raises:
        StorageError: If another process has it open, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: Mapping[str, SigningKey] = {}
        private_folder(path, "session")
        private_folder(path / COLUMNS, "session")
        self._lock = held(path / LOCK, f"session in {path}")
        self._columns: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._entries = 0

    def __enter__(self) -> SessionFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes open the session."""
        self._lock.release()

    def begin(self, config: SessionConfig) -> None:
        """Write what the session is made of.

        Raises:
            UsageError: If there is one in this folder already.
            StorageError: If it cannot be written.
        """
        if self.exists():
            raise UsageError(f"There is a session in {self.path} already.", "Go on with it, or choose another name.")
        write_small(self.path / CONFIG, "session", msgspec.json.format(msgspec.json.encode(config), indent=1))

    def exists(self) -> bool:
        """Whether there is a session in the folder."""
        return (self.path / CONFIG).exists()

    def config(self) -> SessionConfig:
        """Return what the session is made of.

        Raises:
            StorageError: If there is no session, or it is damaged or of another version.
        """
        path = self.path / CONFIG
        try:
            found = msgspec.json.decode(path.read_bytes(), type=SessionConfig)
        except OSError as error:
            raise StorageError(f"There is no session in {self.path}: {error.strerror}.", "Begin one.") from error
        except msgspec.DecodeError as error:
            raise StorageError(f"{path} describes no session: {error}.", "Bring it back from a copy.") from error
        if found.version != VERSION:
            raise StorageError(
                f"{path} is of version {found.version}, expected {VERSION}.", "Open it with the release that made it."
            )
        return found

    def resume(self, session: Session) -> str | None:
        """Bring a session in which nothing has happened to where this folder's is, and keep it from now on.

        Returns:
            Why everything had to be read again, if it had to.

        Raises:
            StorageError: If the log cannot be read, or is damaged before its end.
            SealRefused: If an agent has a key, and columns of its mind are not as it has sealed them.
            UnspokenError: As reading again may.
        """
        entries, sound = self._logged()
        if sound is not None:
            os.truncate(self.path / LOG, sound)  # What was killed half-way has not happened.
        events = tuple(event for entry in entries for event in entry.events)
        self._entries, lost = len(entries), None
        try:
            session.restore(events, self._opened(session, entries))
        except (StorageError, CacheFileError, IncompatibleCache) as error:
            lost = error.problem
            replay(session, events)
            self._columns, self._held = {}, {}
            self.keep((), {name: session.mind(name) for name in session.agents})
        session.keep = self.keep
        return lost

    def keep(self, events: Sequence[Event], minds: Mapping[str, Mind]) -> None:
        """Write down what has happened, and the columns it has added; all of it, or nothing.

        Raises:
            StorageError: If it cannot be written.
        """
        kept = tuple(self._written(f"{self._entries:06}-{at}", mind) for at, mind in enumerate(minds.values()))
        line = msgspec.json.encode(Entry(tuple(events), kept)) + b"\n"
        path = self.path / LOG
        try:
            with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                before = file.tell()
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(path, before)
                    raise
        except OSError as error:
            raise StorageError(
                f"The session's log {path} cannot be written: {error.strerror}.", "Make room, and say it again."
            ) from error
        self._entries += 1
        self._columns |= {name: mind.columns for name, mind in minds.items()}
        self._held |= {name: len(mind.held) for name, mind in minds.items()}

    def _written(self, stem: str, mind: Mind) -> Kept:
        start, known = self._columns.get(mind.name, 0), self._held.get(mind.name, 0)
        file = f"{stem}.kv.safetensors"
        if start < mind.columns:
            # Whoever its columns came from: they are this agent's now.
            columns, path = (
                mind.prefix.slice(start, mind.columns).labelled(sender=mind.name),
                self.path / COLUMNS / file,
            )
            write_cache(columns, path, sign=self._sealer.sign(path, mind.name))
        passages = tuple((each.passage, each.start, each.stop) for each in mind.held[known:])
        return Kept(mind.name, file, start, mind.columns, mind.begun, passages)

    def _read(self, kept: Kept) -> KVCache:
        path = self.path / COLUMNS / kept.file
        return read_cache(path, header=self._sealer.header(path, kept.agent))

    @property
    def _sealer(self) -> Sealer:
        return Sealer(self.path.name, self.keys)

    def _logged(self) -> tuple[list[Entry], int | None]:
        """Return the log's lines, and where it is to be cut if its last one was not written to the end."""
        path = self.path / LOG
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return [], None
        except OSError as error:
            raise StorageError(f"The log {path} cannot be read: {error.strerror}.", "Mend its permissions.") from error
        *lines, rest = data.split(b"\n")
        entries = []
        for number, line in enumerate(lines, start=1):
            try:
                entries.append(msgspec.json.decode(line, type=Entry))
            except msgspec.DecodeError as error:
                raise StorageError(
                    f"Line {number} of {path} is damaged: {error}.",
                    f"Bring it back, or cut the log before line {number}.",
                ) from error
        return entries, len(data) - len(rest) if rest else None

    def _opened(self, session: Session, entries: Sequence[Entry]) -> dict[str, Mind]:
        """Return each agent's mind from the columns kept, all of them sound."""
        minds = {}
        for name in sorted({each.agent for entry in entries for each in entry.kept}):
            session.agent(name)
            kept = [each for entry in entries for each in entry.kept if each.agent == name]
            first = max(at for at, each in enumerate(kept) if each.start == 0)
            minds[name] = self._joined(session, kept[first:])
            self._columns[name], self._held[name] = minds[name].columns, len(minds[name].held)
        return minds

    def _joined(self, session: Session, kept: Sequence[Kept]) -> Mind:
        agent = session.agent(kept[0].agent)
        columns = [self._read(each) for each in kept if each.start < each.stop]
        for each in columns:
            require_compatible(each.spec, agent.engine.spec)
        cache = reduce(KVCache.concat, columns)
        if cache.columns != kept[-1].stop:
            raise StorageError(
                f"{agent.name} has {cache.columns} columns kept in {self.path}, expected {kept[-1].stop}.",
                "Bring the folder back from a copy.",
            )
        passages = tuple(Held(*each) for part in kept for each in part.held)
        return Mind(agent, cache, passages, kept[-1].begun)
