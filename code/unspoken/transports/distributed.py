"""Caches in a store of many machines, LMCache: by their tokens where these say it all, as bytes where they do not.

A store keeps what it has been given under hashes and never changes it; three things are made of that here.

- The columns. Those of a plain reading are kept under its tokens, whole chunks of them: who reads the same finds them
  there, whoever it is. The tail behind the last whole chunk does not travel; who gets the cache reads it again. All
  other caches (moved, merged, packed, without tokens) are kept as the bytes of their file, under ids of their own.
- The header of the cache file, with the digests of the columns and the seal.
- A log for each key: one record for each time something was put there, or deleted. The last one counts.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Literal

import blake3
import torch
from torch import Tensor

from unspoken.cache import DTYPES, KVCache
from unspoken.cachefile import CAPS, FileManifest, Header, peek, read_packed
from unspoken.errors import TransportFailed, UsageError
from unspoken.manifest import Manifest
from unspoken.transforms.codecs import codec_named
from unspoken.transports.blobs import Blobs
from unspoken.transports.folder import within_process
from unspoken.transports.keylog import KeyLog, Record
from unspoken.transports.lmcache_client import Address, Server, Space
from unspoken.transports.parting import addressed, as_file_data, as_rows, missing, parted
from unspoken.transports.protocol import Arrived, Judge, Sign, require_key

SMALL, LARGE = 4096, 2**20  # Bytes of a chunk, of headers and records, and of columns.
STAGED = "staged"


@dataclass(frozen=True)
class Distributed:
    """Caches on an LMCache server and wherever that keeps them; `Distributed.on` connects to one.

    Args:
        server: The server.
        tenant: Whose they are: what one tenant puts, no other gets. A name, no secret.
        small: Room for headers and records.
        large: Room for columns as bytes.
    """

    server: Server
    tenant: str
    small: Blobs
    large: Blobs
    _columns: dict[str, Space] = field(default_factory=dict)

    @staticmethod
    def on(server: Server, tenant: str) -> Distributed:
        """Connect to a server.

        Raises:
            TransportFailed: If it cannot be used.
        """
        salt = f"{tenant}+bytes"  # What has no tokens has a salt of its own, so that no tokens can lead to it.
        small = Blobs.on(server, SMALL, salt)
        try:
            return Distributed(server, tenant, small, Blobs.on(server, LARGE, salt))
        except TransportFailed:
            small.space.close()
            raise

    def __enter__(self) -> Distributed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, key: str, cache: KVCache, codec: str | None = None, sign: Sign | None = None) -> FileManifest:
        """Keep a cache; the manifest is that of the columns that travel."""
        require_key(key)
        if columns := addressed(cache, codec, self.server.chunk):
            kept = parted(cache, columns)
            if self._keep_rows(kept):
                return self._keep(key, kept, codec, sign, "tokens")
        return self._keep(key, cache, codec, sign, "bytes")

    def get(self, key: str, judge: Judge | None = None) -> Arrived:
        """Return a cache, by way of a file in shared memory that is read as any other."""
        record = KeyLog(self.small).last(require_key(key))
        if record is None:
            raise self._nothing(key)
        if record.header_bytes > CAPS.header_bytes:
            raise self._lost(key)
        start = self.small.get(_label(key, record, "header"), record.header_bytes)
        if start is None or _digest(start) != record.header_digest:
            raise self._lost(key)
        with within_process("") as folder:
            file = folder.file(STAGED)
            with open(file, "wb") as staged:
                staged.write(start.numpy().data)
                staged.truncate(record.header_bytes + record.payload_bytes)
            header = peek(file)
            if judge is not None:
                judge(header)
            data = self._data(key, record, header)
            if data is None:
                raise self._lost(key)
            with open(file, "r+b") as staged:
                staged.seek(header.header_bytes)
                staged.write(data.numpy().data)
            packed = read_packed(file, header=header)  # What is mapped stays when the folder goes.
        cache = codec_named(packed.manifest.dtype).unpack(packed)
        return Arrived(cache, header, record.payload_bytes, missing(cache))

    def delete(self, key: str) -> None:
        """Forget a cache. Columns kept under tokens stay: another key may stand for the same."""
        last = KeyLog(self.small).last(require_key(key))
        if last is None:
            raise self._nothing(key)
        KeyLog(self.small).append(key, Record())
        self._forget(key, last)

    def close(self) -> None:
        """Close the connections; the store goes on."""
        for each in (self.small.space, self.large.space, *self._columns.values()):
            each.close()

    def _keep(
        self, key: str, cache: KVCache, codec: str | None, sign: Sign | None, by: Literal["tokens", "bytes"]
    ) -> FileManifest:
        """Keep header and, unless they are there by their tokens, columns; then say so in the key's log."""
        with within_process("") as folder:
            manifest = folder.put(STAGED, cache, codec, sign)
            header = peek(folder.file(STAGED))
            whole = torch.from_file(str(folder.file(STAGED)), size=header.file_bytes, dtype=torch.uint8)
        start, data = whole[: header.header_bytes], whole[header.header_bytes :]
        record = Record(secrets.token_hex(16), len(start), _digest(start), len(data), by)
        if by == "bytes":
            self.large.keep(_label(key, record, "payload"), data)
        self.small.keep(_label(key, record, "header"), start)
        log = KeyLog(self.small)
        before = log.last(key)
        log.append(key, record)
        if before is not None:
            self._forget(key, before)
        return manifest

    def _keep_rows(self, cache: KVCache) -> bool:
        """Keep columns under their tokens; tell whether exactly these are there now.

        They are not if somebody else has computed the same tokens to other last digits before.
        """
        space, ids, rows = self._room(cache.manifest), cache.manifest.token_ids or (), as_rows(cache)
        space.put(ids, rows, self.tenant)
        found = space.get(ids, self.tenant)
        return found is not None and torch.equal(found, rows)

    def _data(self, key: str, record: Record, header: Header) -> Tensor | None:
        """Return the data of a cache file as it is kept; None if the store has lost some of it."""
        if record.by == "bytes":
            return self.large.get(_label(key, record, "payload"), record.payload_bytes)
        info = header.manifest.cache
        if not info.token_ids or info.dtype not in DTYPES:
            return None
        rows = self._room(info).get(info.token_ids, self.tenant)
        return None if rows is None or rows.shape[2] != len(info.token_ids) else as_file_data(rows, header)

    def _room(self, info: Manifest) -> Space:
        """Return the room for the columns of a model, as one engine computes them."""
        engine, width = "-".join(sorted(info.engines())), info.spec.kv_heads * info.spec.head_dim
        name = f"unspoken-{info.spec.weights}-{info.spec.architecture}-{engine}-{info.dtype}"
        if name not in self._columns:
            self._columns[name] = self.server.space(name, len(info.layers), width, DTYPES[info.dtype])
        return self._columns[name]

    def _forget(self, key: str, record: Record) -> None:
        """Delete header and bytes that no record stands for any more."""
        self.small.delete(_label(key, record, "header"), record.header_bytes)
        if record.by == "bytes":
            self.large.delete(_label(key, record, "payload"), record.payload_bytes)

    def _nothing(self, key: str) -> TransportFailed:
        return TransportFailed(
            f"There is nothing under '{key}' in the store at {self.server.address}.",
            "Ask the sender to put it there again.",
        )

    def _lost(self, key: str) -> TransportFailed:
        return TransportFailed(
            f"The store at {self.server.address} has lost some of what was put under '{key}'.",
            "Ask the sender to put it there again.",
        )


def distributed(where: str) -> Distributed:
    """Return the transport of `lmcache:[TENANT@][HOST:PORT:HTTP_PORT]`.

    Raises:
        UsageError: If that is no address, or LMCache is not installed.
        TransportFailed: If no such server is there.
    """
    found = re.fullmatch(r"(?:([^@]*)@)?(?:([^:@]+):(\d{1,5}):(\d{1,5}))?", where)
    if found is None:
        raise UsageError(
            f"'lmcache:{where}' is no address.",
            "Write lmcache:[TENANT@][HOST:PORT:HTTP_PORT], as `unspoken store up` told.",
        )
    tenant, host, port, http_port = found.groups()
    address = Address() if host is None else Address(host, int(port), int(http_port))
    return Distributed.on(Server(address), require_key("shared" if tenant is None else tenant))


def _label(key: str, record: Record, what: str) -> str:
    return f"{what}/{key}/{record.nonce}"


def _digest(data: Tensor) -> str:
    return blake3.blake3(data.numpy().data).hexdigest()
