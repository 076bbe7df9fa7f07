"""Known senders: whose key is whose, as this receiver has decided."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from unspoken.cachefile.sealed import CREATED, Digest, Name, fingerprint
from unspoken.errors import StorageError, UsageError
from unspoken.trust.files import OTHERS_WRITE, locked, read_small, write_small
from unspoken.trust.keys import require_name

STORE_BYTES = 1 << 22
NOTE_LETTERS = 500


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One known sender: its public key in hex, when it was added (seconds of UTC since 1970), and a note."""

    key: Digest
    added: Annotated[int, Meta(ge=0, le=CREATED)]
    note: Annotated[str, Meta(max_length=NOTE_LETTERS)] = ""


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    senders: dict[Name, Known]


@dataclass(frozen=True)
class TrustStore:
    """The senders known in a folder, in its file `trusted.json`.

    Attributes:
        folder: The folder; made, for its owner alone, when the first sender is added.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "trusted.json"

    def known(self) -> dict[str, Known]:
        """Return all known senders by name, sorted.

        Raises:
            StorageError: If the file cannot be read, is damaged, or others could change it.
        """
        if not os.path.lexists(self.path):
            return {}
        try:
            stored = msgspec.json.decode(read_small(self.path, "trust store", STORE_BYTES, OTHERS_WRITE), type=_Stored)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise self._damaged(str(error)) from error
        if stored.version != 1:
            raise self._damaged(f"it has version {stored.version}, this program knows version 1")
        if len({each.key for each in stored.senders.values()}) != len(stored.senders):
            raise self._damaged("one key has two names")
        return dict(sorted(stored.senders.items()))

    def names(self) -> list[str]:
        """Return the names of all known senders, sorted."""
        return list(self.known())

    def find(self, key: str) -> str | None:
        """Return whose a public key is, given in hex; None for a stranger's."""
        return next((name for name, each in self.known().items() if each.key == key), None)

    def add(self, name: str, key: str, note: str = "", now: int | None = None) -> Known:
        """Trust a key from now on; to trust the same key of the same name again changes nothing.

        Args:
            name: The sender's name, which its seals must have.
            key: Its public key, in hex.
            note: Anything to remember: who vouched for the key, and how.
            now: Seconds of UTC since 1970; by default the clock's.

        Raises:
            UsageError: If the name is known with another key, the key by another name, or one of them is none.
            StorageError: If the store cannot be read or written.
        """
        added = Known(key, int(time.time()) if now is None else now, note)
        try:
            msgspec.convert(msgspec.to_builtins(added), type=Known)
        except msgspec.ValidationError as error:
            raise UsageError(f"This sender cannot be known: {error}.", "Give a public key and a short note.") from error
        with locked(self.folder, "known senders"):
            known = self.known()
            _require_new(require_name(name), key, known)
            if name in known:
                return known[name]
            self._write(known | {name: added})
        return added

    def remove(self, name: str) -> Known:
        """Trust a sender no longer; return what was known of it.

        Raises:
            UsageError: If there is no such sender.
            StorageError: If the store cannot be read or written.
        """
        with locked(self.folder, "known senders"):
            known = self.known()
            if name not in known:
                raise UsageError(f"There is no known sender '{name}'.", f"Known: {', '.join(known) or 'nobody'}.")
            removed = known.pop(name)
            self._write(known)
        return removed

    def _write(self, senders: dict[str, Known]) -> None:
        text = msgspec.json.encode(_Stored(1, dict(sorted(senders.items()))))
        write_small(self.path, "trust store", msgspec.json.format(text, indent=1) + b"\n")

    def _damaged(self, why: str) -> StorageError:
        return StorageError(
            f"The trust store {self.path} is damaged: {why}.", "Restore it from a copy, or delete it and trust anew."
        )


def _require_new(name: str, key: str, known: dict[str, Known]) -> None:
    hint = "If you are sure, remove the old one first: `unspoken keys distrust NAME`."
    if name in known and known[name].key != key:
        raise UsageError(
            f"The sender '{name}' is known with the key {fingerprint(known[name].key)}, not {fingerprint(key)}.", hint
        )
    other = next((other for other, each in known.items() if each.key == key and other != name), None)
    if other is not None:
        raise UsageError(f"The key {fingerprint(key)} is known as that of '{other}', not of '{name}'.", hint)
