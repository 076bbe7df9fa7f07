"""What a forger needs: a sound cache file taken apart, and put together again with right digests.

And what every forgery meets: a refusal of one kind, or the very cache it was made of.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from unspoken.cache import KVCache
from unspoken.cachefile import read_cache
from unspoken.cachefile.header import MANIFEST_KEY
from unspoken.errors import CacheFileError, UnspokenError

TEXT = "The old mill is run by Anna"
COLUMNS = len(TEXT)


@dataclass
class Forged:
    """A file taken apart, to be put together again with anything changed in it."""

    manifest: dict[str, Any]
    tensors: dict[str, dict[str, Any]]
    data: bytearray

    @staticmethod
    def of(file: Path | bytes) -> Forged:
        """Take a sound file apart."""
        raw = file if isinstance(file, bytes) else file.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        fields = json.loads(raw[8 : 8 + length])
        manifest = json.loads(fields.pop("__metadata__")[MANIFEST_KEY])
        return Forged(manifest, fields, bytearray(raw[8 + length :]))

    def part(self, name: str) -> memoryview:
        """Return a tensor's bytes, to be changed in place."""
        start, stop = self.tensors[name]["data_offsets"]
        return memoryview(self.data)[start:stop]

    def signed(self, hashed: Callable[..., Any] = blake3) -> Forged:
        """Make the digests right, as a forger would."""
        self.manifest["digests"] = {name: hashed(self.part(name)).hexdigest() for name in self.manifest["digests"]}
        return self.sealed(hashed)

    def sealed(self, hashed: Callable[..., Any] = blake3) -> Forged:
        """Make the manifest's own digest right."""
        whole = {key: value for key, value in self.manifest.items() if key != "digest"}
        canonical = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
        self.manifest["digest"] = hashed(canonical).hexdigest()
        return self

    def packed(self) -> bytes:
        """Put the file together."""
        metadata = {"format": "pt", MANIFEST_KEY: json.dumps(self.manifest)}
        return framed(json.dumps({"__metadata__": metadata, **self.tensors})) + bytes(self.data)


def framed(header: str | bytes, padding: int = 8) -> bytes:
    """Return a header with its length before it, padded as safetensors does."""
    raw = header.encode() if isinstance(header, str) else header
    raw += b" " * (-len(raw) % padding)
    return struct.pack("<Q", len(raw)) + raw


def put(path: str, value: Any) -> Callable[[Forged], object]:
    """Return a change of one value of the manifest, by its dotted path; `...` deletes it."""
    *parents, last = path.split(".")

    def change(file: Forged) -> None:
        where: Any = file.manifest
        for name in parents:
            where = where[int(name) if name.isdigit() else name]
        if value is ...:
            del where[last]
        else:
            where[int(last) if last.isdigit() else last] = value

    return change


def with_manifest(good: bytes, manifest: Any) -> bytes:
    """Put a good file together with another manifest."""
    file = Forged.of(good)
    return framed(json.dumps({"__metadata__": {MANIFEST_KEY: manifest}, **file.tensors})) + bytes(file.data)


def refused(path: Path, problem: str, kind: type[UnspokenError] = CacheFileError) -> None:
    """See a file refused with one line about the problem and a hint."""
    with pytest.raises(UnspokenError) as caught:
        read_cache(path)
    error = caught.value
    assert type(error) is kind, error
    assert problem in error.problem
    assert error.problem.isprintable()
    assert len(error.problem) < 600
    assert error.problem.endswith(".")
    assert error.hint.endswith(".")


def same(found: KVCache, original: KVCache) -> bool:
    """Tell whether a cache has the very numbers of another; see the same manifest."""
    assert found.manifest == original.manifest
    return all(
        torch.equal(getattr(mine, part), getattr(other, part))
        for mine, other in zip(found.layers, original.layers, strict=True)
        for part in ("keys", "values", "positions")
    )
