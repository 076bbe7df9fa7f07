"""Files that are broken as a whole, are of another program, or are no files: each is refused with one clear error."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unspoken.cachefile import read_cache
from unspoken.cachefile.header import MANIFEST_KEY
from unspoken.errors import CacheFileError, StorageError

from .forging import Forged, framed, refused, with_manifest


def _unsigned(good: bytes) -> bytes:
    at = good.index(b'\\"sender\\":\\"lyra')
    return good[:at] + good[at:].replace(b"lyra", b"vera", 1)


def _flipped(good: bytes, from_end: int) -> bytes:
    raw = bytearray(good)
    raw[-from_end] ^= 1
    return bytes(raw)


# Whole files, and what the error says about them.
BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda good: b"", "has 0 bytes: too short"),
    "seven bytes": (lambda good: good[:7], "has 7 bytes: too short"),
    "only a length": (lambda good: good[:8], "is truncated"),
    "half a header": (lambda good: good[:100], "is truncated: its header has"),
    "huge header": (lambda good: struct.pack("<Q", 1 << 63) + good[8:], f"claims a header of {1 << 63} bytes"),
    "largest header": (lambda good: b"\xff" * 8 + good[8:], f"claims a header of {(1 << 64) - 1} bytes"),
    "header longer than the file": (lambda good: struct.pack("<Q", len(good)) + good[8:], "is truncated"),
    "header of nothing": (lambda good: struct.pack("<Q", 0) + good, "header is not JSON"),
    "header that is not aligned": (lambda good: framed(b" " + good[8:2000], 1), "no multiple of eight"),
    "no JSON": (lambda good: framed("no JSON at all"), "header is not JSON"),
    "half a JSON": (lambda good: framed('{"__metadata__": {'), "header is not JSON"),
    "bytes that are no text": (lambda good: framed(b'{"a": "\xff\xfe"}'), "header is not JSON"),
    "a number of endless digits": (lambda good: framed('{"a": ' + "9" * 10_000 + "}"), "header is not JSON"),
    "JSON list": (lambda good: framed("[]"), "header is no JSON object"),
    "JSON text": (lambda good: framed('"text"'), "header is no JSON object"),
    "empty object": (lambda good: framed("{}"), f"it has no '{MANIFEST_KEY}'"),
    "metadata that are no object": (lambda good: framed('{"__metadata__": []}'), f"it has no '{MANIFEST_KEY}'"),
    "deep nesting": (lambda good: framed("[" * 200_000), "header is not JSON"),
    "more lists than a header has": (
        lambda good: framed("[" * 500_000),
        "with 500000 lists, objects and members (at most 262144)",
    ),
    "name twice": (lambda good: framed('{"a": 1, "a": 1}'), "a name stands twice"),
    "no manifest": (lambda good: framed(json.dumps(Forged.of(good).tensors)), f"it has no '{MANIFEST_KEY}'"),
    "manifest that is no text": (lambda good: with_manifest(good, {"version": 2}), f"it has no '{MANIFEST_KEY}'"),
    "manifest that is no JSON": (lambda good: with_manifest(good, "{"), "has a manifest that is not valid"),
    "manifest that is a list": (lambda good: with_manifest(good, "[]"), "has a manifest that is not valid"),
    "manifest without anything": (lambda good: with_manifest(good, '{"version":2}'), "missing required field"),
    "manifest of half a letter": (lambda good: with_manifest(good, '{"\ud800": 1}'), "manifest that is not valid"),
    "manifest too deep": (lambda good: with_manifest(good, '{"version":' + "[" * 200_000), "not valid"),
    "text that is UTF-16": (lambda good: framed(good[8:2000].decode().encode("utf-16-le")), "header is not JSON"),
    "sender renamed": (_unsigned, "was changed: its manifest does not match its digest"),
    "bit flipped in a value": (lambda good: _flipped(good, 1), "'layers.1.values' does not match its digest"),
    "bit flipped in a key": (lambda good: _flipped(good, 2 * 27 * 8 * 4 + 1), "'layers.1.keys' does not match"),
    "cut in the middle": (lambda good: good[: len(good) // 2], "is truncated"),
    "twice in one file": (lambda good: good + good, "is followed by foreign bytes"),
    "a pickle": (lambda good: pickle.dumps({"layers": [1, 2, 3]} | dict.fromkeys(range(100))), "claims a header"),
    "a picture": (lambda good: b"\x89PNG\r\n\x1a\n" + bytes(64), "claims a header"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_file_is_refused(good: Path, place: Path, name: str) -> None:
    make, problem = BROKEN[name]
    place.write_bytes(make(good.read_bytes()))
    refused(place, problem)
    with pytest.raises(CacheFileError):
        read_cache(place, layers=[1])


def test_files_of_other_programs_are_refused(tmp_path: Path) -> None:
    weights, checkpoint = tmp_path / "model.safetensors", tmp_path / "model.pt"
    save_file({"layers.0.keys": torch.zeros(2, 3, 4)}, weights, metadata={"format": "pt"})
    refused(weights, "is a safetensors file, but no cache")
    torch.save({"a": torch.zeros(3)}, checkpoint)
    refused(checkpoint, "claims a header")


def _secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.kv"
    path.write_bytes(b"x" * 100)
    path.chmod(0)
    # Root reads everything: nothing but a folder is closed to it.
    return tmp_path if os.geteuid() == 0 else path


def _loop(tmp_path: Path) -> Path:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return tmp_path / "a"


def _pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def _dangling(tmp_path: Path) -> Path:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    return tmp_path / "link"


NO_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folder": (lambda tmp: tmp, "no regular file"),
    "missing": (lambda tmp: tmp / "missing.kv", "No such file or directory"),
    "below a file": (lambda tmp: Path(__file__) / "a.kv", "Not a directory"),
    "name too long": (lambda tmp: tmp / ("x" * 300), "File name too long"),
    "without permission": (_secret, "cannot be read"),
    "loop of links": (_loop, "Too many levels of symbolic links"),
    "link to nothing": (_dangling, "No such file or directory"),
    "pipe, which would block for ever": (_pipe, "no regular file"),
    "device without end": (lambda tmp: Path("/dev/zero"), "no regular file"),
}


@pytest.mark.parametrize("name", sorted(NO_FILES))
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    make, problem = NO_FILES[name]
    refused(make(tmp_path), problem, StorageError)
