"""What a transport is: it keeps caches under keys, where another process, or another machine, gets them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from unspoken.cache import KVCache
from unspoken.cachefile import FileManifest, Header, Seal
from unspoken.errors import UsageError

Sign = Callable[[FileManifest], Seal]
"""Seals what is put (see `unspoken.trust.seals.signer`)."""

Judge = Callable[[Header], object]
"""Looks at what a cache says of itself, its seal with it, before any of its columns move; refuses by an error."""

# Keys are names of files, and are shown to people.
KEY = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


@dataclass(frozen=True)
class Arrived:
    """What came under a key.

    Attributes:
        cache: The columns, compared with the digests of the header.
        header: What the cache says of itself.
        bytes_moved: Payload it came in.
        missing: Token ids behind these columns that did not travel, and have to be read again.
    """

    cache: KVCache
    header: Header
    bytes_moved: int
    missing: tuple[int, ...] = ()


@runtime_checkable
class Transport(Protocol):
    """Keeps caches under keys; a context manager that closes itself.

    Every method raises `TransportFailed` if the store is not there, does not answer in time, or answers nonsense.
    """

    def __enter__(self) -> Transport: ...

    def __exit__(self, *_: object) -> None: ...

    def put(self, key: str, cache: KVCache, codec: str | None = None, sign: Sign | None = None) -> FileManifest:
        """Keep a cache under a key, in the place of what was there, and return its manifest with digests.

        Args:
            key: What it is asked for by.
            cache: The columns.
            codec: What keys and values are packed with, see `unspoken.cachefile.write_cache`.
            sign: Seals it; by default it has no seal.

        Raises:
            UsageError: If the key is none, or no reader would accept the cache.
            StorageError: If there is no room.
        """
        ...

    def get(self, key: str, judge: Judge | None = None) -> Arrived:
        """Return what was put under a key; all of it is sound, or nothing comes.

        Args:
            key: What it was put under.
            judge: Looks at the header before any column moves.

        Raises:
            TransportFailed: If there is nothing under this key.
            CacheFileError: If it is not what was put.
            UnspokenError: What `judge` refuses it with.
        """
        ...

    def delete(self, key: str) -> None:
        """Forget what was put under a key.

        Raises:
            TransportFailed: If there is nothing under this key.
        """
        ...

    def close(self) -> None:
        """Give back what the transport holds; what was put stays where the store outlives it."""
        ...


def require_key(key: str) -> str:
    """Return a key that every store can have.

    Raises:
        UsageError: If it is none.
    """
    if re.fullmatch(KEY, key) is None:
        raise UsageError(
            f"'{key}' is no key: it has 1 to 128 letters of the English alphabet, digits, '.', '_' or '-', and begins "
            "with a letter or digit.",
            "Choose another key.",
        )
    return key
