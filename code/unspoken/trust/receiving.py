"""Receive a sealed cache file: nothing of it but its header is read before its seal has been verified."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unspoken.cachefile.header import CAPS, Caps, Header, peek
from unspoken.trust.nonces import Ledger
from unspoken.trust.seals import Trusted, verify_seal
from unspoken.trust.store import TrustStore

if TYPE_CHECKING:
    from unspoken.cache import KVCache


@dataclass(frozen=True)
class Admitted:
    """A file whose seal has been verified.

    Attributes:
        header: Its header. Give it to `read_cache`, which then takes no file but this one.
        trusted: Who vouches for it.
    """

    header: Header
    trusted: Trusted


def admit(
    path: str | Path,
    store: TrustStore,
    ledger: Ledger | None = None,
    *,
    now: int | None = None,
    session: str | None = None,
    expected_sender: str | None = None,
    caps: Caps = CAPS,
) -> Admitted:
    """Read a file's header, verify its seal, and record its nonce; no tensor is touched.

    Args:
        path: The file.
        store: The senders the receiver knows.
        ledger: Where nonces are recorded; without one, a file may come any number of times.
        now: Seconds of UTC since 1970; by default the clock's.
        session: What the file has to be sealed for; None accepts any session.
        expected_sender: Who has to have sealed it; None accepts any known sender.
        caps: Most that the file may claim.

    Raises:
        CacheFileError: If the header is not sound.
        SealRefused: If the seal is refused, or was accepted before.
        StorageError: If file, store or ledger cannot be read, or the ledger not written.
    """
    header = peek(path, caps)
    moment = int(time.time()) if now is None else now
    trusted = verify_seal(header, store, now=moment, session=session, expected_sender=expected_sender)
    if ledger is not None:
        ledger.record(trusted.seal, moment)
    return Admitted(header, trusted)


def receive(
    path: str | Path,
    store: TrustStore,
    ledger: Ledger | None = None,
    *,
    layers: Collection[int] | None = None,
    now: int | None = None,
    session: str | None = None,
    expected_sender: str | None = None,
    caps: Caps = CAPS,
) -> tuple[KVCache, Trusted]:
    """Return the cache of a sealed file and who vouches for it; arguments and errors are those of `admit`.

    The tensors are compared with the digests of the header that was verified: a file put in its place meanwhile is
    refused. What cannot be refused is somebody who may write into the file and changes it after it was compared,
    while it is memory-mapped: keep files where only you can write.

    Args:
        path: The file.
        store: The senders the receiver knows.
        ledger: Where nonces are recorded; without one, a file may come any number of times.
        layers: Indices of the layers wanted; by default all.
        now: Seconds of UTC since 1970; by default the clock's.
        session: What the file has to be sealed for; None accepts any session.
        expected_sender: Who has to have sealed it; None accepts any known sender.
        caps: Most that the file may claim.

    Raises:
        CacheFileError: If the file is not sound, or not the one whose seal was verified.
        SealRefused: If the seal is refused, or was accepted before.
        UsageError: If a wanted layer is not in it.
        StorageError: If file, store or ledger cannot be read, or the ledger not written.
    """
    admitted = admit(path, store, ledger, now=now, session=session, expected_sender=expected_sender, caps=caps)
    from unspoken.cachefile import read_cache  # Imports torch, which nobody needs who is refused.

    return read_cache(path, layers, caps, admitted.header), admitted.trusted
