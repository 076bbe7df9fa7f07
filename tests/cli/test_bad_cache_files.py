"""A bad cache file on the command line: one clear error, whatever command reads it.

A case makes its file in a folder and returns the path. `tests/security` has many more, read without the command line.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from unspoken.cache import KVCache
from unspoken.cachefile import read_cache, write_cache
from unspoken.cachefile.header import MANIFEST_KEY

from .program import ASKED, FAKE, Program, clear, folder_of


def _forged(made: Path, into: Path, change: Callable[[dict[str, Any], dict[str, Any], bytearray], None]) -> Path:
    """Write the good file with something changed in it, signed as a forger would sign it."""
    raw = (made / "good.kv.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    fields, data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    manifest = json.loads(fields["__metadata__"][MANIFEST_KEY])
    change(manifest, fields, data)
    whole = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
    manifest["digest"] = blake3(canonical).hexdigest()
    fields["__metadata__"][MANIFEST_KEY] = json.dumps(manifest)
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    path = into / "bad.kv.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _nan(manifest: dict[str, Any], fields: dict[str, Any], data: bytearray) -> None:
    start, stop = fields["layers.0.keys"]["data_offsets"]
    struct.pack_into("<f", data, start, float("nan"))
    manifest["digests"]["layers.0.keys"] = blake3(data[start:stop]).hexdigest()


def _overlapping(_: dict[str, Any], fields: dict[str, Any], __: bytearray) -> None:
    fields["layers.1.keys"]["data_offsets"] = fields["layers.0.keys"]["data_offsets"]


def _raw(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    def make(made: Path, into: Path) -> Path:
        path = into / "bad.kv.safetensors"
        path.write_bytes(change((made / "good.kv.safetensors").read_bytes()))
        return path

    return make


def _field(name: str, value: Any) -> Callable[[Path, Path], Path]:
    def change(manifest: dict[str, Any], *_: Any) -> None:
        (manifest if name in manifest else manifest["cache"])[name] = value

    return lambda made, into: _forged(made, into, change)


def _one_layer(made: Path, into: Path) -> Path:
    cache: KVCache = read_cache(made / "good.kv.safetensors", layers=[1])
    write_cache(cache, into / "bad.kv.safetensors")
    return into / "bad.kv.safetensors"


BAD_FILES: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "truncated": (_raw(lambda raw: raw[:-100]), "is truncated"),
    "oversized header": (_raw(lambda raw: struct.pack("<Q", 1 << 62) + raw[8:]), "claims a header of"),
    "overlapping": (lambda made, into: _forged(made, into, _overlapping), "tensors overlap"),
    "zero layers": (_field("layers", []), "holds zero layers"),
    "unknown dtype": (_field("dtype", "int3"), "unknown element type 'int3'"),
    "future version": (_field("version", 3), "has format version 3, this program reads version 2"),
    "past version": (_field("version", 1), "has format version 1, this program reads version 2"),
    "no cache at all": (_raw(lambda raw: b"{" * 64), "claims a header of"),
    "missing": (lambda made, into: into / "missing.kv", "No such file or directory"),
    "folder": (lambda made, into: into, "no regular file"),
    "NaN": (lambda made, into: _forged(made, into, _nan), "NaN or infinite numbers in 'layers.0.keys'"),
    "flipped bit": (_raw(lambda raw: raw[:-1] + bytes((raw[-1] ^ 1,))), "does not match its digest"),
    "one layer": (_one_layer, "holds 1 of the 2 layers"),
}
IN_THE_DATA = ("NaN", "flipped bit", "one layer")


@pytest.mark.parametrize("name", sorted(BAD_FILES))
@pytest.mark.parametrize("command", ["ask", "verify", "inspect"])
def test_a_bad_cache_file_is_one_clear_error(
    unspoken: Program, made: Path, tmp_path: Path, command: str, name: str
) -> None:
    make, problem = BAD_FILES[name]
    path = make(made, tmp_path)
    rest = {
        "ask": ("ask", ASKED, "--cache", path, "--engine", "fake"),
        "verify": ("verify", path, "--for", "smollm2-135m", "--engine", "fake"),
        "inspect": ("inspect", path),
    }
    before = folder_of(tmp_path)
    told = unspoken(*rest[command])
    if command == "inspect" and name in IN_THE_DATA:
        assert told.code == 0  # Only the header is looked at.
        return
    clear(told, problem)
    assert "it can be used" not in told.out
    assert folder_of(tmp_path) == before


def test_what_a_file_says_cannot_steer_the_terminal(unspoken: Program, made: Path, tmp_path: Path) -> None:
    evil = "vera\x1b[2J\ndigest     0000\x9b31m"
    path = _field("sender", evil)(made, tmp_path)
    shown = unspoken("inspect", path)
    assert shown.code == 0
    assert all(line.isprintable() for line in shown.out.splitlines())
    assert sum(line.startswith("digest ") for line in shown.out.splitlines()) == 1
    path = _field("spec", json.loads(unspoken("inspect", path, "--json").out)["cache"]["spec"] | {"weights": evil})(
        made, tmp_path
    )
    told = unspoken("ask", ASKED, "--cache", path, *FAKE)
    clear(told, "weights is vera [2J digest")
    assert all(line.isprintable() for line in told.err.splitlines())
