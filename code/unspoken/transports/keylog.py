"""What lies under a key of a store that never changes anything: a log for each key, whose last record counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import torch

from unspoken.errors import CacheFileError, TransportFailed
from unspoken.transports.blobs import Blobs

RECORDS = 256


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key's log says once: what lies there from then on.

    Attributes:
        nonce: What header and bytes are labelled with, besides the key; "" if nothing lies there any more.
        header_bytes: How long the header is.
        header_digest: blake3 of the header, hex.
        payload_bytes: How long the columns are.
        by: How they are kept.
    """

    nonce: str = ""
    header_bytes: int = 0
    header_digest: str = ""
    payload_bytes: int = 0
    by: Literal["tokens", "bytes"] = "bytes"


@dataclass(frozen=True)
class KeyLog:
    """The log of each key: chunks that follow one another, so that one question finds all that there are.

    Args:
        blobs: Where they are kept.
    """

    blobs: Blobs

    def last(self, key: str) -> Record | None:
        """Return what lies under a key; None if nothing does.

        Raises:
            TransportFailed: If the store does not answer.
            CacheFileError: If what it answers is damaged.
        """
        records = self._all(key)
        return records[-1] if records and records[-1].nonce else None

    def append(self, key: str, record: Record) -> None:
        """Write a record behind all others; whoever else writes at the same time comes before or after.

        Raises:
            TransportFailed: If the store does not answer or does not keep it, or the log is full.
            CacheFileError: If what it answers is damaged.
        """
        blobs = self.blobs
        while True:
            records = self._all(key)
            if len(records) >= RECORDS:
                raise TransportFailed(
                    f"The key '{key}' was put and deleted {RECORDS} times, which is as often as it goes.",
                    "Use another key.",
                )
            lines = [msgspec.json.encode(each).ljust(blobs.size // 2, b"\0") for each in (*records, record)]
            # A chunk has a row of either half; the second half stays empty. What is there already is not written again.
            half = torch.frombuffer(bytearray(b"".join(lines)), dtype=torch.uint8)
            ids = blobs.ids(f"log/{key}", len(lines))
            both = torch.stack((half, torch.zeros_like(half))).view(2, 1, len(ids), -1)
            blobs.space.put(ids, both, blobs.salt)
            now = self._all(key)
            if len(now) <= len(records):
                raise TransportFailed(
                    f"The store at {blobs.server.address} does not keep what was put under '{key}'.",
                    "Give it more memory (`unspoken store up --memory`), or delete something.",
                )
            if now[len(records)] == record:
                return

    def _all(self, key: str) -> list[Record]:
        blobs = self.blobs
        found = blobs.space.get(blobs.ids(f"log/{key}", RECORDS), blobs.salt)
        if found is None:
            return []
        lines = found[0].reshape(-1, blobs.size // 2).numpy()
        try:
            return [msgspec.json.decode(bytes(each).rstrip(b"\0"), type=Record) for each in lines]
        except msgspec.MsgspecError as error:
            raise CacheFileError(
                f"What the store at {blobs.server.address} says of '{key}' is damaged: {error}.", "Use another key."
            ) from error
