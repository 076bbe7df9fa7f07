"""An executable threat model of cache files: what a sender, a network or a disk can do to one, and what comes of it.

Every bad file gives one clear error, and nothing of it is loaded. A forger knows the format: changed manifests
are signed again in here, so that each check is reached and not only the digest's.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from unspoken.cache import KVCache
from unspoken.cachefile import Caps, peek, read_cache, write_cache
from unspoken.cachefile.header import MANIFEST_KEY
from unspoken.channels.kv import content_columns
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits, Piece, Prompt, Turn
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import CacheFileError, IncompatibleCache, StorageError, UnspokenError
from unspoken.session import Agent

TEXT = "The old mill is run by Anna"
COLUMNS = len(TEXT)
KEYS, VALUES, POSITIONS = "layers.0.keys", "layers.0.values", "layers.1.positions"


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

    def signed(self) -> Forged:
        """Make the digests right, as a forger would."""
        self.manifest["digests"] = {
            name: hashlib.sha256(self.part(name)).hexdigest() for name in self.manifest["digests"]
        }
        return self.sealed()

    def sealed(self) -> Forged:
        """Make the manifest's own digest right."""
        whole = {key: value for key, value in self.manifest.items() if key != "digest"}
        canonical = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
        self.manifest["digest"] = hashlib.sha256(canonical).hexdigest()
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


def table(name: str, **fields: Any) -> Callable[[Forged], object]:
    """Return a change of one line of the tensor table."""
    return lambda file: file.tensors.setdefault(name, {}).update(fields)


def number(name: str, value: float | int, code: str) -> Callable[[Forged], object]:
    """Return a change of a tensor's last number, with every digest right."""

    def change(file: Forged) -> None:
        struct.pack_into(code, file.part(name), len(file.part(name)) - 4, value)
        file.signed()

    return change


def swap(one: str, other: str) -> Callable[[Forged], object]:
    """Return a change that lets two tensors of one shape change their places in the table."""

    def change(file: Forged) -> None:
        file.tensors[one], file.tensors[other] = file.tensors[other], file.tensors[one]

    return change


def hole(file: Forged) -> None:
    """Leave eight bytes between the first tensor and the others, and all tensors where the table says."""
    first, *rest = sorted(file.tensors.values(), key=lambda entry: entry["data_offsets"])
    at = first["data_offsets"][1]
    for entry in rest:
        entry["data_offsets"] = [offset + 8 for offset in entry["data_offsets"]]
    file.data[at:at] = bytes(8)


def turn_round(file: Forged) -> None:
    """Hold the layers in the wrong order: data, table and manifest agree."""
    file.manifest["cache"]["layers"].reverse()
    parts = {name: bytes(file.part(name)) for name in file.tensors}
    order = [f"layers.{layer}.positions" for layer in (1, 0)]
    order += [f"layers.{layer}.{part}" for layer in (1, 0) for part in ("keys", "values")]
    file.data = bytearray(b"".join(parts[name] for name in order))
    at = 0
    for name in order:
        file.tensors[name]["data_offsets"] = [at, at + len(parts[name])]
        at += len(parts[name])


def nested(depth: int) -> Any:
    """Return lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


# What is done to the manifest, the table or the data of a sound file, and what the error says about it.
FORGED: dict[str, tuple[Callable[[Forged], object], str]] = {
    "unknown field": (put("cache.evil", 1), "unknown field `evil`"),
    "unknown field at the top": (put("evil", 1), "unknown field `evil`"),
    "field missing": (put("cache.dtype", ...), "missing required field `dtype`"),
    "future version": (put("version", 2), "has format version 2, this program reads version 1"),
    "version as text": (put("version", "1"), 'has format version "1"'),
    "version as a fraction": (put("version", 1.0), "has format version 1.0"),
    "version missing": (put("version", ...), "has format version null"),
    "zero layers": (put("cache.layers", []), "holds zero layers"),
    "unknown element type": (put("cache.dtype", "int4"), "unknown element type 'int4'"),
    "element type of another size": (put("cache.dtype", "bfloat16"), "as F32 [2, 27, 8], its manifest says BF16"),
    "layer twice": (put("cache.layers.1.index", 0), "or one twice"),
    "layer the model lacks": (put("cache.layers.1.index", 2), "the model of 2 layers does not have"),
    "negative layer": (put("cache.layers.0.index", -1), "the model of 2 layers does not have"),
    "layers out of order": (turn_round, "out of order"),
    "layer that is no number": (put("cache.layers.0.index", "0"), "Expected `int`, got `str`"),
    "unknown kind of layer": (put("cache.layers.0.kind", "recurrent"), "Invalid enum value 'recurrent'"),
    "no columns": (put("cache.layers.0.columns", 0), "a layer with no columns"),
    "negative columns": (put("cache.layers.0.columns", -COLUMNS), "a layer with no columns"),
    "columns over the cap": (put("cache.layers.0.columns", (1 << 22) + 1), "columns (at most 4194304)"),
    "more columns than bytes": (put("cache.layers.0.columns", 1 << 22), "token ids for 4194304 columns"),
    "no heads": (put("cache.spec.kv_heads", 0), "impossible shape of 0 heads of 8"),
    "absurd heads": (put("cache.spec.kv_heads", 10**30), "impossible shape"),
    "more heads than numbers": (put("cache.spec.kv_heads", 2048), "its manifest says F32 [2048, 27, 8]"),
    "absurd head size": (put("cache.spec.head_dim", 1 << 20), "impossible shape of 2 heads of 1048576"),
    "too few frequencies": (put("cache.spec.rope.inverse_frequencies", [1.0]), "has 1 RoPE frequencies"),
    "frequency that is none": (put("cache.spec.rope.inverse_frequencies.0", "x"), "Expected `float`, got `str`"),
    "infinite frequency": (put("cache.spec.rope.attention_scaling", float("inf")), "manifest that is not valid"),
    "unknown pairing": (put("cache.spec.rope.pairing", "both"), "Invalid enum value 'both'"),
    "span outside": (put("cache.spans", [{"kind": "content", "start": 0, "stop": 28}]), "spans outside its columns"),
    "span before": (put("cache.spans", [{"kind": "content", "start": -1, "stop": 3}]), "spans outside its columns"),
    "span backwards": (put("cache.spans", [{"kind": "content", "start": 9, "stop": 3}]), "spans outside its columns"),
    "unknown span": (put("cache.spans", [{"kind": "secret", "start": 0, "stop": 3}]), "Invalid enum value 'secret'"),
    "too few tokens": (put("cache.token_ids", [1, 2]), "has 2 token ids for 27 columns"),
    "tokens that are none": (put("cache.token_ids", ["a"] * COLUMNS), "Expected `int`, got `str`"),
    "unknown state of RoPE": (put("cache.rope", "half"), "Invalid enum value 'half'"),
    "digests of no tensors": (put("digests", {}), "digests of other tensors than it holds"),
    "digest of a foreign tensor": (put("digests.more", "0" * 64), "digests of other tensors than it holds"),
    "wrong digest of a tensor": (put("digests", dict.fromkeys(
        [f"layers.{at}.{part}" for at in (0, 1) for part in ("keys", "values", "positions")], "0" * 64
    )), "does not match its digest"),
    "tensor missing": (lambda file: file.tensors.pop(VALUES), "lacks the tensors ['layers.0.values']"),
    "tensor too many": (table("more", dtype="F32", shape=[0], data_offsets=[0, 0]), "has ['more']"),
    "tensor of another name": (
        lambda file: file.tensors.update({"../../evil": file.tensors.pop(VALUES)}),
        "has ['../../evil'] that its manifest does not name",
    ),
    "lie about the type": (table(KEYS, dtype="F64"), "as F64 [2, 27, 8], its manifest says F32"),
    "lie about the shape": (table(KEYS, shape=[27, 2, 8]), "as F32 [27, 2, 8], its manifest says F32 [2, 27, 8]"),
    "negative shape": (table(KEYS, shape=[-2, -27, 8]), "as F32 [-2, -27, 8]"),
    "shape that is none": (table(KEYS, shape="[2, 27, 8]"), "tensor table that is not valid"),
    "unknown field in the table": (table(KEYS, module="os.system"), "unknown field `module`"),
    "overlapping tensors": (lambda file: file.tensors[KEYS].update(file.tensors[VALUES]), "tensors overlap"),
    "tensors out of order": (swap(KEYS, VALUES), "out of order"),
    "hole between tensors": (hole, "leave a hole"),
    "negative offsets": (table(KEYS, data_offsets=[-8, 1720]), "at bytes -8 to 1720"),
    "offsets backwards": (table(KEYS, data_offsets=[1944, 216]), "at bytes 1944 to 216"),
    "offsets past the end": (table(KEYS, data_offsets=[216, 1 << 60]), f"at bytes 216 to {1 << 60}"),
    "offsets that are fractions": (table(KEYS, data_offsets=[216.5, 1944]), "tensor table that is not valid"),
    "three offsets": (table(KEYS, data_offsets=[0, 1, 2]), "tensor table that is not valid"),
    "truncated data": (lambda file: file.data.__delitem__(slice(-1, None)), "is truncated: it has"),
    "no data": (lambda file: file.data.clear(), "is truncated: it has"),
    "foreign bytes after the data": (lambda file: file.data.append(0), "is followed by foreign bytes"),
    "NaN with right digests": (number(KEYS, float("nan"), "<f"), f"NaN or infinite numbers in '{KEYS}'"),
    "infinity with right digests": (number(VALUES, float("-inf"), "<f"), f"NaN or infinite numbers in '{VALUES}'"),
    "negative position with right digests": (number(POSITIONS, -1, "<i"), f"negative positions in '{POSITIONS}'"),
}  # fmt: skip


@pytest.fixture(scope="session")
def original() -> KVCache:
    """The cache behind the good file."""
    engine = FakeEngine()
    return engine.prefill(Prompt((Piece("content", engine.encode(TEXT)),))).labelled(sender="lyra")


@pytest.fixture(scope="session")
def good(original: KVCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file."""
    path = tmp_path_factory.mktemp("good") / "good.kv.safetensors"
    write_cache(original, path)
    return path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every bad file stands."""
    return tmp_path_factory.mktemp("bad") / "bad.kv.safetensors"


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


def test_the_forger_can_forge(good: Path, place: Path, original: KVCache) -> None:
    place.write_bytes(Forged.of(good).signed().packed())
    assert _same(read_cache(place), original)
    renamed = Forged.of(good)
    renamed.manifest["cache"]["sender"] = "vera"
    place.write_bytes(renamed.sealed().packed())
    assert read_cache(place).manifest.sender == "vera"  # Digests are no signature: a name proves nothing.


@pytest.mark.parametrize("name", sorted(FORGED))
def test_a_forged_file_is_refused_for_what_is_wrong_with_it(good: Path, place: Path, name: str) -> None:
    change, problem = FORGED[name]
    file = Forged.of(good)
    change(file)
    place.write_bytes(file.sealed().packed())
    refused(place, problem)


@pytest.mark.parametrize("name", sorted(FORGED))
def test_what_a_header_tells_is_refused_before_any_tensor_is_touched(
    good: Path, place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Forged.of(good)
    FORGED[name][0](file)
    place.write_bytes(file.sealed().packed())
    in_the_data = "right digests" in name or name == "wrong digest of a tensor"
    monkeypatch.setattr(torch, "from_file", _not_to_be_called)
    with pytest.raises(AssertionError if in_the_data else CacheFileError):
        read_cache(place)


def _not_to_be_called(*_: Any, **__: Any) -> None:
    raise AssertionError("the data was touched")


def _unsigned(good: bytes) -> bytes:
    at = good.index(b'\\"sender\\":\\"lyra')
    return good[:at] + good[at:].replace(b"lyra", b"vera", 1)


def _with_manifest(good: bytes, manifest: Any) -> bytes:
    file = Forged.of(good)
    return framed(json.dumps({"__metadata__": {MANIFEST_KEY: manifest}, **file.tensors})) + bytes(file.data)


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
    "deep nesting": (lambda good: framed("[" * 500_000), "header is not JSON"),
    "name twice": (lambda good: framed('{"a": 1, "a": 1}'), "a name stands twice"),
    "no manifest": (lambda good: framed(json.dumps(Forged.of(good).tensors)), f"it has no '{MANIFEST_KEY}'"),
    "manifest that is no text": (lambda good: _with_manifest(good, {"version": 1}), f"it has no '{MANIFEST_KEY}'"),
    "manifest that is no JSON": (lambda good: _with_manifest(good, "{"), "has a manifest that is not valid"),
    "manifest that is a list": (lambda good: _with_manifest(good, "[]"), "has a manifest that is not valid"),
    "manifest without anything": (lambda good: _with_manifest(good, '{"version":1}'), "missing required field"),
    "manifest of half a letter": (lambda good: _with_manifest(good, '{"\ud800": 1}'), "manifest that is not valid"),
    "manifest too deep": (lambda good: _with_manifest(good, '{"version":' + "[" * 500_000), "not valid"),
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


def test_what_a_file_says_cannot_steer_the_terminal_or_fill_it(good: Path, place: Path) -> None:
    for path, value in (("cache.dtype", "a\nError: all is well\x1b[2J\x9b31m"), ("cache.evil\n\x1b[2J", 1)):
        file = Forged.of(good)
        put(path, value)(file)
        place.write_bytes(file.sealed().packed())
        refused(place, "[2J")
    file = Forged.of(good)
    file.tensors["x" * 1_000_000] = file.tensors.pop(KEYS)
    place.write_bytes(file.packed())
    refused(place, "lacks the tensors")


@pytest.mark.parametrize(
    ("caps", "problem"),
    [
        (Caps(header_bytes=100), "at most 100 and"),
        (Caps(file_bytes=1000), "and 1000 are read"),
        (Caps(layers=1), "holds 2 layers (at most 1)"),
        (Caps(columns=10), "holds 27 columns (at most 10)"),
    ],
)
def test_a_reader_can_set_its_own_caps(good: Path, place: Path, caps: Caps, problem: str) -> None:
    place.write_bytes(good.read_bytes())
    for read in (peek, read_cache):
        with pytest.raises(CacheFileError) as caught:
            read(place, caps=caps)
        assert problem in caught.value.problem


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


def _same(found: KVCache, original: KVCache) -> bool:
    assert found.manifest == original.manifest
    return all(
        torch.equal(getattr(mine, part), getattr(other, part))
        for mine, other in zip(found.layers, original.layers, strict=True)
        for part in ("keys", "values", "positions")
    )


def _read_or_refused(path: Path) -> KVCache | None:
    try:
        return read_cache(path)
    except UnspokenError as caught:
        error = caught
    assert error.problem.isprintable()
    assert error.hint
    return None


def _harmless(path: Path, original: KVCache) -> None:
    found = _read_or_refused(path)
    assert found is None or _same(found, original)


DAMAGE = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4)


@given(damage=DAMAGE, cut=st.none() | st.floats(0, 1), more=st.binary(max_size=9), head=st.booleans())
@settings(max_examples=300)
def test_random_damage_is_noticed(
    good: Path, place: Path, original: KVCache, damage: list[tuple[float, int]], cut: float | None, more: bytes,
    head: bool,
) -> None:  # fmt: skip
    raw = bytearray(good.read_bytes())
    reach = 400 if head else len(raw)  # The header is the smaller part and has the most to go wrong.
    for at, bits in damage:
        raw[int(at * reach)] ^= bits
    place.write_bytes(bytes(raw[: len(raw) if cut is None else int(cut * len(raw))]) + more)
    _harmless(place, original)


JUNK = st.sampled_from(
    [None, True, -1, 0, 1, 7, 1 << 40, 1 << 70, -0.5, 1e308, "", "0", "x" * 5000, "\ud800", "\x00\n", [], [[]], {},
     [1, 2, 3], {"a": 1}, [0] * COLUMNS, float("nan"), nested(400)]
)  # fmt: skip


@given(data=st.data(), junk=JUNK)
@settings(max_examples=300)
def test_junk_in_a_signed_manifest_is_refused_or_harmless(
    good: Path, place: Path, data: st.DataObject, junk: Any
) -> None:
    file = Forged.of(good)
    where: Any = data.draw(st.sampled_from([file.manifest, file.manifest["cache"], file.tensors]))
    while True:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if not isinstance(where[key], dict | list) or not where[key] or data.draw(st.booleans()):
            break
        where = where[key]
    where[key] = deepcopy(junk)
    place.write_bytes(file.sealed().packed())
    found = _read_or_refused(place)
    if found is not None:
        assert all(layer.keys.isfinite().all() and (layer.positions >= 0).all() for layer in found.layers)
        write_cache(found, place)
        assert _same(read_cache(place), found)


@pytest.mark.parametrize("depth", [100, 600, 900, 960, 990, 5000, 500_000])
def test_a_deep_lineage_is_refused_or_harmless(good: Path, place: Path, depth: int) -> None:
    file = Forged.of(good)
    file.manifest["cache"]["lineage"], before = "LINEAGE", file.manifest["digest"]
    lineage = '[{"args":{"a":' + "[" * depth + "]" * depth + '},"op":"x"}]'
    whole = {key: value for key, value in file.manifest.items() if key != "digest"}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":")).replace('"LINEAGE"', lineage)
    text = json.dumps(file.manifest).replace('"LINEAGE"', lineage)
    text = text.replace(before, hashlib.sha256(canonical.encode()).hexdigest())
    place.write_bytes(_with_manifest(good.read_bytes(), text))
    found = _read_or_refused(place)
    assert (found is not None) if depth < 500 else (found is None or depth < 1000)


def test_a_cache_of_another_model_is_refused_with_every_difference(
    fake: FakeEngine, original: KVCache, tiny_engine: Callable[..., TransformersEngine]
) -> None:
    foreign = tiny_engine()
    cache = foreign.prefill(Prompt((Piece("content", foreign.encode(TEXT)),)))
    segment = content_columns(cache)
    for given_cache in (cache, segment):
        with pytest.raises(IncompatibleCache, match="was made by 'tiny-llama' and does not fit 'fake-0'") as caught:
            Agent("vera", fake).ask_cache("Who?", given_cache)
        for field in ("family is llama", "head_dim is 16", "weights is", "rope is", "vocabulary is", "tokenizer is"):
            assert field in caught.value.problem
        assert "unspoken verify" in caught.value.hint
    with pytest.raises(IncompatibleCache):
        foreign.logits(Prompt((Piece("content", (1,)),)), original)


def test_a_cache_of_other_weights_in_the_same_shape_is_refused(
    original: KVCache, tiny_engine: Callable[..., TransformersEngine], tmp_path: Path
) -> None:
    question = Prompt((Piece("content", (63,)),))
    ours, theirs = tiny_engine(seed=0), tiny_engine(seed=1)
    cache = theirs.prefill(Prompt((Piece("content", theirs.encode(TEXT)),)))
    write_cache(cache, tmp_path / "theirs.kv")
    read = read_cache(tmp_path / "theirs.kv")
    calls: list[Callable[[], object]] = [
        lambda: ours.prefill(question, read),
        lambda: ours.logits(question, read),
        lambda: ours.generate([Turn(question, read)], Limits(1)),
        lambda: FakeEngine(1).logits(question, original),
        lambda: Agent("vera", FakeEngine(1)).ask_cache("Who?", content_columns(original)),
    ]
    for call in calls:
        with pytest.raises(IncompatibleCache, match="weights is") as caught:
            call()
        assert "head_dim" not in caught.value.problem
