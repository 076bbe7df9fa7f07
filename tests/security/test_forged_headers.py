"""An executable threat model of cache files: what a sender, a network or a disk can do to one, and what comes of it.

Every bad file gives one clear error, and nothing of it is loaded. A forger knows the format: changed manifests
are signed again in here, so that each check is reached and not only the digest's.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.cache import KVCache
from unspoken.cachefile import Caps, peek, read_cache
from unspoken.errors import CacheFileError

from .forging import COLUMNS, Forged, put, refused, same

KEYS, VALUES, POSITIONS = "layers.0.keys", "layers.0.values", "layers.1.positions"


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


# What is done to the manifest, the table or the data of a sound file, and what the error says about it.
FORGED: dict[str, tuple[Callable[[Forged], object], str]] = {
    "unknown field": (put("cache.evil", 1), "unknown field `evil`"),
    "unknown field at the top": (put("evil", 1), "unknown field `evil`"),
    "field missing": (put("cache.dtype", ...), "missing required field `dtype`"),
    "future version": (put("version", 3), "has format version 3, this program reads version 2"),
    "past version": (put("version", 1), "has format version 1, this program reads version 2"),
    "version as text": (put("version", "2"), 'has format version "2"'),
    "version as a fraction": (put("version", 2.0), "has format version 2.0"),
    "version missing": (put("version", ...), "has format version null"),
    "zero layers": (put("cache.layers", []), "holds zero layers"),
    "unknown element type": (put("cache.dtype", "int3"), "unknown element type 'int3'"),
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


def test_the_forger_can_forge(good: Path, place: Path, original: KVCache) -> None:
    place.write_bytes(Forged.of(good).signed().packed())
    assert same(read_cache(place), original)
    renamed = Forged.of(good)
    renamed.manifest["cache"]["sender"] = "vera"
    place.write_bytes(renamed.sealed().packed())
    assert read_cache(place).manifest.sender == "vera"  # Digests are no signature: a name proves nothing.


def test_a_sound_file_of_version_1_is_refused_and_the_hint_says_to_capture_again(good: Path, place: Path) -> None:
    file = Forged.of(good)
    file.manifest["version"] = 1
    place.write_bytes(file.signed(hashlib.sha256).packed())
    for read in (peek, read_cache):
        with pytest.raises(CacheFileError) as caught:
            read(place)
        assert caught.value.problem == f"{place.name} has format version 1, this program reads version 2."
        assert "SHA-256" in caught.value.hint
        assert "capture the text again" in caught.value.hint


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
