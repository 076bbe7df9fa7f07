"""Nonces seen: a sealed file is accepted once, by whichever process meets it first."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from unspoken.cachefile.sealed import Seal
from unspoken.errors import SealRefused, StorageError
from unspoken.trust.files import private_folder

# Clocks of two machines may differ by as much, and a nonce is remembered as much longer than its seal lives.
SKEW_SECONDS = 300
# How long one process waits for others that are writing.
WAIT_SECONDS = 30.0
# One thread at a time: to close a file takes away all locks that the process holds on it, and sqlite's are such. A
# thread that opened the ledger would let another process write into what a second thread is writing.
_TURN = threading.Lock()


@dataclass(frozen=True)
class Ledger:
    """The nonces seen in a folder, in its file `nonces.sqlite`.

    A nonce counts together with the key it came with: a sender cannot use up another one's.

    Attributes:
        folder: The folder; made, for its owner alone, when the first nonce is recorded.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "nonces.sqlite"

    def record(self, seal: Seal, now: int) -> None:
        """Remember a seal's nonce until the seal has expired, and forget those that have.

        Args:
            seal: A seal that has been verified.
            now: Seconds of UTC since 1970.

        Raises:
            SealRefused: If the nonce was recorded before.
            StorageError: If the ledger cannot be read or written.
        """
        try:
            with _TURN, closing(self._opened()) as database:
                self._insert(database, seal, now)
        except sqlite3.Error as error:
            raise StorageError(
                f"The ledger of nonces {self.path} cannot be used: {error}.",
                "Mend its folder's permissions, or delete the file: sealed files are then accepted once more.",
            ) from error

    def _opened(self) -> sqlite3.Connection:
        private_folder(self.folder, "nonces")
        try:  # sqlite would make the file readable by others.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise StorageError(
                f"The ledger of nonces {self.path} cannot be written: {error.strerror}.",
                "Set UNSPOKEN_HOME to a folder you may write to.",
            ) from error
        return sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)

    def _insert(self, database: sqlite3.Connection, seal: Seal, now: int) -> None:
        database.execute("BEGIN IMMEDIATE")  # From here on no other process writes; closing takes back what is open.
        database.execute(
            "CREATE TABLE IF NOT EXISTS nonces (key TEXT, nonce TEXT, until INTEGER NOT NULL,"
            " PRIMARY KEY (key, nonce)) WITHOUT ROWID"
        )
        database.execute("DELETE FROM nonces WHERE until + ? <= ?", (SKEW_SECONDS, now))
        try:
            database.execute("INSERT INTO nonces VALUES (?, ?, ?)", (seal.key, seal.nonce, seal.until))
        except sqlite3.IntegrityError as error:
            raise SealRefused(
                f"This sealed file of '{seal.sender}' was accepted before: it is replayed.",
                "Ask the sender to seal it again if it shall be used again.",
            ) from error
        database.execute("COMMIT")
