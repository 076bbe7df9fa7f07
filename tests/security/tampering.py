"""What somebody who tampers with sealed cache files has: honest files, the program itself, and keys of their own.

Everything is drawn from fixed seeds, nonces too, so each run tries the very same files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import torch
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.cachefile import FileManifest, Header, Seal, peek, read_packed, write_cache
from unspoken.cachefile.header import VERSION, encode_header, layout, manifest_digest
from unspoken.layout import parts
from unspoken.manifest import Span, Step
from unspoken.spec import ModelSpec, RopeSpec
from unspoken.trust.keys import SigningKey
from unspoken.trust.seals import seal_file
from unspoken.trust.store import TrustStore

NOW, SESSION, SENDER, LIFE_SECONDS = 1_800_000_000, "tea", "lyra", 3600
CODECS = ("float32", "bfloat16", "float16", "int8", "int4", "q8_0", "q4_0")
COLUMNS = (1, 5, 40)
LAYERS = 3
ROPE = RopeSpec("default", "half", tuple(10000.0 ** (-pair / 8) for pair in range(8)))
SPEC = ModelSpec("toy", "llama", LAYERS, 2, 16, 1000, 4096, ROPE, "weights", "config", "letters", "template")


@dataclass(frozen=True)
class Honest:
    """A sealed file as its sender sent it; `plain` are the bytes before it was sealed."""

    what: str
    plain: bytes
    raw: bytes
    codec: str
    columns: int
    session: str = SESSION


@dataclass(frozen=True)
class Attempt:
    """A file that somebody tampered with, or an honest one in the wrong place or at the wrong time.

    Attributes:
        what: What was done.
        raw: The file.
        now: The receiver's time.
        session: What the receiver expects the file to be for.
        sender: Whom the receiver expects it from; None if anybody it knows will do.
        before: A file that the receiver has accepted before.
        sound: Whether every digest is right, so that nothing but the seal stands against it.
    """

    what: str
    raw: bytes
    now: int = NOW
    session: str = SESSION
    sender: str | None = SENDER
    before: bytes | None = None
    sound: bool = False


def signing_key(name: str) -> SigningKey:
    """Return the key of a name, the same each time."""
    return SigningKey(name, Ed25519PrivateKey.from_private_bytes(blake3(name.encode()).digest()))


@dataclass(frozen=True)
class World:
    """Honest files, the keys of three people, and a receiver who knows two of them.

    Attributes:
        folder: Where files are made.
        sizes: How many columns the honest files have.
        keys: Private keys by name.
        opened: What was read of files before.
    """

    folder: Path
    sizes: tuple[int, ...] = COLUMNS
    keys: dict[str, SigningKey] = field(
        default_factory=lambda: {name: signing_key(name) for name in ("lyra", "vera", "mallory")}
    )
    opened: dict[bytes, tuple[Header, Mapping[str, Tensor]]] = field(default_factory=dict)

    @cached_property
    def store(self) -> TrustStore:
        """The receiver's known senders: lyra and vera."""
        known = TrustStore(self.folder / "known")
        for name in ("lyra", "vera"):
            known.add(name, self.keys[name].public.key)
        return known

    @cached_property
    def honest(self) -> list[Honest]:
        """Files of each codec and size, with and without token ids, sealed once and twice, and of odd sessions."""
        files = []
        for at, (codec, columns, tokens, times) in enumerate(
            (codec, columns, tokens, times)
            for codec in CODECS for columns in self.sizes for tokens in (True, False) for times in (1, 2)
        ):  # fmt: skip
            what = f"{codec}, {columns} columns, {'with' if tokens else 'without'} token ids, sealed {times} times"
            files.append(self._made(what, cache(at, columns, tokens), codec, [SESSION] * times))
        for at, session in enumerate(
            ("", "t\u00e9", "x" * 256, "\U0001f375", '"quoted" \\', " tea ", "TEA", "tea\u200b")
        ):
            for codec in ("float32", "int8", "q4_0"):
                what = f"{codec}, session {session[:9]!r}"
                files.append(self._made(what, cache(1000 + at, 5, True), codec, [session]))
        return files

    @cached_property
    def attacked(self) -> list[Honest]:
        """The honest files of the session that the receiver expects, sealed once."""
        return [each for each in self.honest if each.session == SESSION and "1 times" in each.what]

    def some(self, draw: Random, count: int, wanted: Callable[[Honest], bool] = lambda each: True) -> list[Honest]:
        """Return attacked files, different ones as long as there are any, then all over again."""
        found = [each for each in self.attacked if wanted(each)]
        draw.shuffle(found)
        return (found * (count // len(found) + 1))[:count]

    def _made(self, what: str, made: KVCache, codec: str, sessions: list[str]) -> Honest:
        path = self.folder / "made.kv.safetensors"
        write_cache(made, path, None if codec == "float32" else codec)
        plain = path.read_bytes()
        for session in sessions:
            seal_file(path, self.keys["lyra"], sender=SENDER, session=session, seconds_to_live=LIFE_SECONDS, now=NOW)
        return Honest(what, plain, path.read_bytes(), codec, made.columns, sessions[-1])

    def header(self, raw: bytes) -> Header:
        """Return a file's header, checked."""
        return self.packed(raw)[0]

    def tensors(self, raw: bytes) -> dict[str, Tensor]:
        """Return what lies in a file, by name, in the order of the file."""
        return dict(self.packed(raw)[1])

    def packed(self, raw: bytes) -> tuple[Header, Mapping[str, Tensor]]:
        """Return a file's header and tensors; each file is read once."""
        if raw not in self.opened:
            path = self.folder / f"read{len(self.opened)}.kv.safetensors"
            path.write_bytes(raw)
            header = peek(path)
            self.opened[raw] = header, read_packed(path, header=header).tensors
        return self.opened[raw]

    def remade(self, raw: bytes, *, tensors: Mapping[str, Tensor] | None = None, **fields: Any) -> bytes:
        """Return a file with other fields of its manifest, or other tensors, and all digests right; its seal stays."""
        header, held = self.packed(raw)
        made = {name: _bytes(tensor) for name, tensor in {**held, **(tensors or {})}.items()}
        manifest = msgspec.structs.replace(header.manifest.cache, **fields)
        digests = {name: blake3(data).hexdigest() for name, data in made.items()}
        whole = FileManifest(VERSION, manifest, digests, manifest_digest(VERSION, manifest, digests))
        return encode_header(whole, layout(parts(manifest)), seal_of(header)) + b"".join(made.values())

    def sealed_by(self, raw: bytes, key: SigningKey, **fields: Any) -> bytes:
        """Return a file with other fields in its seal, which is signed again with a key."""
        header = self.header(raw)
        seal = msgspec.structs.replace(seal_of(header), key=key.public.key, **fields)
        return with_seal(raw, header, msgspec.structs.replace(seal, signature=key.sign(seal.message())))

    def seal_changed(self, raw: bytes, **fields: Any) -> bytes:
        """Return a file with other fields in its seal, which nobody has signed."""
        header = self.header(raw)
        return with_seal(raw, header, msgspec.structs.replace(seal_of(header), **fields))


def cache(seed: int, columns: int, tokens: bool, **fields: Any) -> KVCache:
    """Return a small cache of random numbers, with a column that is a sink if there are several."""
    draw = torch.Generator().manual_seed(seed)
    numbers, at = torch.randn(LAYERS, 2, 2, columns, 16, generator=draw), torch.arange(columns, dtype=torch.int32) + 3
    layers = [KVLayer(index, numbers[index, 0], numbers[index, 1], at) for index in range(LAYERS)]
    sinks = [Span("sink", 0, 1)] if columns > 1 else []
    return KVCache.build(
        layers,
        SPEC,
        rope="removed",
        spans=[*sinks, Span("content", len(sinks), columns)],
        token_ids=[(7 * at + seed) % 1000 for at in range(columns)] if tokens else None,
        lineage=[Step("prefill", {"engine": "fake", "tokens": columns, "scale": 1e-9}), Step("rope.remove")],
        sender=SENDER,
        **fields,
    )


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def seal_of(header: Header) -> Seal:
    """Return the seal that a header has."""
    if header.seal is None:
        raise ValueError("this file is not sealed")
    return header.seal


def with_seal(raw: bytes, header: Header, seal: Seal) -> bytes:
    """Return a file with a seal, whatever that vouches for."""
    return encode_header(header.manifest, header.tensors, seal) + raw[header.header_bytes :]


def split(raw: bytes) -> tuple[str, bytes]:
    """Return a file's header as text, without its padding, and its data."""
    (length,) = struct.unpack("<Q", raw[:8])
    return raw[8 : 8 + length].decode().rstrip(" "), raw[8 + length :]


def joined(header: str | bytes, data: bytes) -> bytes:
    """Put a file together: length, header, padding, data."""
    text = header.encode() if isinstance(header, str) else header
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def edited(raw: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a file with anything changed in its header, which is otherwise written as it was."""
    text, data = split(raw)
    fields = json.loads(text)
    change(fields)
    return joined(json.dumps(fields, separators=(",", ":")), data)


def with_metadata(raw: bytes, members: Mapping[str, object]) -> bytes:
    """Return a file with other strings, or anything else, in its header's metadata; `...` takes one out."""

    def change(fields: dict[str, Any]) -> None:
        metadata = fields["__metadata__"] | members
        fields["__metadata__"] = {name: value for name, value in metadata.items() if value is not ...}

    return edited(raw, change)


def flipped(raw: bytes, bit: int) -> bytes:
    """Return a file with one bit changed."""
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def canonical(fields: object) -> str:
    """Return the form that seals and sealed manifests are written in."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


Attack = Callable[[World, Random], Iterator[Attempt]]
"""Yields at least fifty attempts of one class."""
