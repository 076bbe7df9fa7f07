"""The header of a cache file: read, checked against caps and consistency, before any tensor is touched.

Needs neither torch nor numpy, so that looking at a file costs milliseconds whatever its size.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from unspoken.cachefile.caps import CAPS as CAPS  # Whoever reads a header finds its caps beside it.
from unspoken.cachefile.caps import Caps as Caps
from unspoken.cachefile.caps import first_problem, header_problem
from unspoken.cachefile.sealed import SEAL_KEY, Seal, decode_seal, encode_seal
from unspoken.errors import CacheFileError, StorageError
from unspoken.layout import SIZES, Part, parts
from unspoken.manifest import Manifest

VERSION = 2
MANIFEST_KEY = "unspoken.manifest"
# safetensors' names of the elements of tensors; it has no name for ggml's blocks, which are bytes to it.
ELEMENTS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int32": "I32"}
BYTES = "U8"
AGAIN = "Ask the sender to capture and send it again."
# Versions that were written once, and what to do about a file of one.
EARLIER = {b"1": "Version 1 had SHA-256 digests; capture the text again with this release, or ask the sender to."}
OTHER = "Upgrade unspoken, or ask the sender for a file of this version."
# What a message shows of a text that came with a file, at most.
SHOWN = 400


class FileManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON string in the header.

    Attributes:
        version: Of the format; a reader refuses versions it does not know.
        cache: What the cache is.
        digests: BLAKE3 digest of each tensor's bytes, in hex.
        digest: BLAKE3 digest of the three fields above as canonical JSON: the one value that stands for the whole file.
    """

    version: int
    cache: Manifest
    digests: dict[str, str]
    digest: str

    def expected_digest(self) -> str:
        """Return the digest this manifest should have."""
        return manifest_digest(self.version, self.cache, self.digests)


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: safetensors' dtype name, shape, and its bytes' range in the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        manifest: What the file says it is.
        parts: What each tensor is.
        tensors: Where each tensor lies.
        header_bytes: Length of the header, the eight bytes of its length included.
        file_bytes: Size of the file.
        seal: Who vouches for the file, as the file says; not verified.
        exact: Whether there is a seal, and every byte of the header is the one that a sealed file has there.
    """

    manifest: FileManifest
    parts: dict[str, Part]
    tensors: dict[str, Entry]
    header_bytes: int
    file_bytes: int
    seal: Seal | None = None
    exact: bool = False


def printable(text: str) -> str:
    """Return a text as one line without control characters: a file's own words must not steer a terminal."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= SHOWN else line[:SHOWN] + "..."


def refused(path: Path, problem: str, hint: str = AGAIN) -> CacheFileError:
    """Return the error for a file that is no sound cache, with what is wrong with it."""
    return CacheFileError(f"{path.name} {printable(problem)}.", hint)


def manifest_digest(version: int, cache: Manifest, digests: dict[str, str]) -> str:
    """Return the BLAKE3 digest of a manifest's canonical JSON: sorted keys, no spaces."""
    data = {"version": version, "cache": msgspec.to_builtins(cache), "digests": digests}
    return blake3(_canonical(data).encode()).hexdigest()


def _canonical(data: object) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def tensor_names(cache: Manifest) -> list[str]:
    """Return the names of a cache's tensors, in the order they lie in a file."""
    return list(parts(cache))


def layout(known: Mapping[str, Part]) -> dict[str, Entry]:
    """Return where each tensor of a cache lies, from what its manifest says there is (`unspoken.layout.parts`)."""
    entries: dict[str, Entry] = {}
    at = 0
    for name, (element, shape) in known.items():
        stop = at + SIZES[element] * prod(shape)
        entries[name] = Entry(ELEMENTS.get(element, BYTES), shape, at, stop)
        at = stop
    return entries


def encode_header(manifest: FileManifest, tensors: dict[str, Entry], seal: Seal | None = None) -> bytes:
    """Return the header's bytes: length, JSON, padding to eight bytes.

    With a seal, the manifest is canonical JSON: a sealed file is written in one way only.
    """
    metadata = {"format": "pt", MANIFEST_KEY: msgspec.json.encode(manifest, order="deterministic").decode()}
    if seal is not None:
        metadata |= {MANIFEST_KEY: _canonical(msgspec.to_builtins(manifest)), SEAL_KEY: encode_seal(seal)}
    table = {
        name: {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (entry.start, entry.stop)}
        for name, entry in tensors.items()
    }
    text = msgspec.json.encode({"__metadata__": metadata, **table})
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def peek(path: str | Path, caps: Caps = CAPS) -> Header:
    """Read and check a cache file's header; no tensor is touched.

    Raises:
        StorageError: If the file cannot be read.
        CacheFileError: If it is no sound cache file of a version this program knows.
    """
    path = Path(path)
    raw, file_bytes = _raw_header(path, caps)
    fields = _parsed(path, raw, caps)
    metadata = fields.pop("__metadata__", None)
    manifest = _manifest(path, metadata, caps)
    seal = _seal(path, metadata)
    problem = first_problem(manifest.cache, caps)
    if problem is not None:
        raise refused(path, problem)
    tensors = _entries(path, fields)
    known = parts(manifest.cache)
    expected = layout(known)
    if tensors != expected:
        raise refused(path, _first_difference(tensors, expected))
    if manifest.digests.keys() != expected.keys():
        raise refused(path, "has digests of other tensors than it holds")
    end = 8 + len(raw) + max(entry.stop for entry in tensors.values())
    if file_bytes != end:
        state = "truncated" if file_bytes < end else "followed by foreign bytes"
        raise refused(path, f"is {state}: it has {file_bytes} bytes, its header describes {end}")
    exact = seal is not None and encode_header(manifest, expected, seal)[8:] == raw
    return Header(manifest, known, tensors, 8 + len(raw), file_bytes, seal, exact)


def _raw_header(path: Path, caps: Caps) -> tuple[bytes, int]:
    try:
        file_bytes = path.stat().st_size
        if not path.is_file():  # Opening a pipe would wait for ever.
            raise StorageError(f"The cache file {path} cannot be read: it is no regular file.", "Give a file.")
        with open(path, "rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise refused(path, f"has {file_bytes} bytes: too short for a cache file")
            (length,) = struct.unpack("<Q", start)
            if length > caps.header_bytes or file_bytes > caps.file_bytes:
                raise refused(
                    path,
                    f"claims a header of {length} bytes in a file of {file_bytes}; at most {caps.header_bytes} and "
                    f"{caps.file_bytes} are read",
                    "It is no cache file, or damaged at its start. " + AGAIN,
                )
            if 8 + length > file_bytes:
                raise refused(path, f"is truncated: its header has {length} bytes, the file {file_bytes}")
            if length % 8:  # Tensors are used where they lie, which they can be only if they are aligned.
                raise refused(path, f"has a header of {length} bytes, which is no multiple of eight")
            return file.read(length), file_bytes
    except OSError as error:
        raise StorageError(
            f"The cache file {path} cannot be read: {error.strerror}.", "Give an existing file."
        ) from error


def _parsed(path: Path, raw: bytes, caps: Caps) -> dict[str, Any]:
    _require_small(path, raw, caps)
    try:
        fields = json.loads(str(raw, "utf-8"), object_pairs_hook=_unique)  # Of bytes it would take UTF-16 as well.
    except (ValueError, RecursionError) as error:
        raise refused(path, f"is no safetensors file: its header is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise refused(path, "is no safetensors file: its header is no JSON object")
    return fields


def _require_small(path: Path, text: bytes, caps: Caps) -> None:
    problem = header_problem(text, caps)
    if problem is not None:
        raise refused(path, problem)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # Two readers could each believe another one.
        raise ValueError("a name stands twice")
    return found


def _manifest(path: Path, metadata: object, caps: Caps) -> FileManifest:
    text = metadata.get(MANIFEST_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise refused(
            path,
            f"is a safetensors file, but no cache: it has no '{MANIFEST_KEY}'",
            "Make one with `unspoken capture`.",
        )
    try:
        _require_small(path, text.encode(), caps)  # Again: in the header they may have been escaped.
        version = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("version", msgspec.Raw(b"null"))
        if version != msgspec.Raw(str(VERSION).encode()):
            raise refused(
                path,
                f"has format version {bytes(version).decode()[:20]}, this program reads version {VERSION}",
                EARLIER.get(bytes(version), OTHER),
            )
        manifest = msgspec.json.decode(text, type=FileManifest)
        expected = manifest.expected_digest()
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise refused(path, f"has a manifest that is not valid: {error}") from error
    if manifest.digest != expected:
        raise refused(path, "was changed: its manifest does not match its digest")
    return manifest


def _seal(path: Path, metadata: dict[str, Any]) -> Seal | None:
    if SEAL_KEY not in metadata:
        return None
    try:
        return decode_seal(metadata[SEAL_KEY])
    except ValueError as error:
        raise refused(path, f"has a seal that is not valid: {error}") from error


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line of the tensor table, as safetensors writes it."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _entries(path: Path, fields: dict[str, Any]) -> dict[str, Entry]:
    try:
        parsed = msgspec.convert(fields, type=dict[str, _Line])
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise refused(path, f"has a tensor table that is not valid: {error}") from error
    return {name: Entry(raw.dtype, raw.shape, *raw.data_offsets) for name, raw in parsed.items()}


def _first_difference(found: dict[str, Entry], expected: dict[str, Entry]) -> str:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        return f"lacks the tensors {missing[:3]} and has {extra[:3]} that its manifest does not name"
    name = next(name for name in expected if found[name] != expected[name])
    left, right = found[name], expected[name]
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return f"has '{name}' as {left.dtype} {list(left.shape)}, its manifest says {right.dtype} {list(right.shape)}"
    return (
        f"has '{name}' at bytes {left.start} to {left.stop}, expected {right.start} to {right.stop}: "
        "tensors overlap, leave a hole or are out of order"
    )
