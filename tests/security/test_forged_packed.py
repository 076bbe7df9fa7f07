"""Forged files of packed caches: right digests, and numbers, types or shapes that no codec makes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.cache import KVCache, KVLayer
from unspoken.cachefile import peek, read_cache, write_cache
from unspoken.errors import CacheFileError
from unspoken.manifest import Span
from unspoken.spec import ModelSpec, RopeSpec

from .forging import Forged, put, refused

NAN, INFINITY = 0x7E00, 0xFC00
# Blocks of a tensor that has more of them than are looked at in one go (2**18 bytes).
MANY = 2 * 2048


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A sound file of each codec."""
    folder = tmp_path_factory.mktemp("packed")
    rope = RopeSpec("default", "half", tuple(0.5**pair for pair in range(32)))
    spec = ModelSpec("toy", "llama", 1, 2, 64, 10, 1 << 20, rope, "w", "a", "t", "c")
    states = torch.linspace(-1, 1, 2 * MANY * 64).view(2, MANY, 64)
    layer = KVLayer(0, states, states.flip(0), torch.arange(MANY, dtype=torch.int32))
    cache = KVCache.build([layer], spec, rope="removed", spans=[Span("sink", 0, 2)])

    def make(codec: str) -> Path:
        path = folder / f"{codec}.kv.safetensors"
        if not path.exists():
            write_cache(cache, path, codec)
        return path

    return make


def half(name: str, bits: int, at: int = -2) -> Callable[[Forged], object]:
    """Return a change of 16 bits of a tensor, by default the last, with every digest right."""

    def change(file: Forged) -> None:
        part = file.part(name)
        struct.pack_into("<H", part, at % len(part), bits)
        file.signed()

    return change


def table(name: str, **fields: Any) -> Callable[[Forged], object]:
    """Return a change of one line of the tensor table."""
    return lambda file: file.tensors[name].update(fields)


def without(name: str) -> Callable[[Forged], object]:
    """Return a change that drops a tensor from the table and the digests."""

    def change(file: Forged) -> None:
        del file.tensors[name], file.manifest["digests"][name]

    return change


FORGED: dict[str, tuple[str, Callable[[Forged], object], str]] = {
    "scale that is none": ("int8", half("layers.0.keys.scale", NAN), "infinite numbers in 'layers.0.keys.scale'"),
    "endless scale": ("int4", half("layers.0.values.scale", INFINITY), "numbers in 'layers.0.values.scale'"),
    "minimum that is none": ("int4", half("layers.0.keys.minimum", NAN), "numbers in 'layers.0.keys.minimum'"),
    "endless minimum": ("int8", half("layers.0.values.minimum", INFINITY, 0), "numbers in 'layers.0.values.minimum'"),
    "sink that is none": ("int8", half("layers.0.keys.sink", 0x7FC0), "numbers in 'layers.0.keys.sink'"),
    "last q8_0 scale": ("q8_0", half("layers.0.keys", INFINITY, -34), "NaN or infinite numbers in 'layers.0.keys'"),
    "first q8_0 scale": ("q8_0", half("layers.0.values", NAN, 0), "NaN or infinite numbers in 'layers.0.values'"),
    "q8_0 scale at a seam": ("q8_0", half("layers.0.keys", NAN, 34 * (2**18 // 34)), "numbers in 'layers.0.keys'"),
    "last q4_0 scale": ("q4_0", half("layers.0.values", NAN, -18), "NaN or infinite numbers in 'layers.0.values'"),
    "scale missing": ("int8", without("layers.0.keys.scale"), "lacks the tensors ['layers.0.keys.scale']"),
    "sinks missing": ("int8", without("layers.0.values.sink"), "lacks the tensors ['layers.0.values.sink']"),
    "other type of codes": ("int8", table("layers.0.keys", dtype="I8"), "as I8 [2, 4094, 64], its manifest says U8"),
    "other type of scales": ("int8", table("layers.0.keys.scale", dtype="BF16"), "its manifest says F16"),
    "more codes than there are": ("int4", table("layers.0.keys", shape=[2, 1 << 40, 32]), "its manifest says U8"),
    "fewer groups": ("int8", table("layers.0.keys.scale", shape=[2, 1, 64]), "its manifest says F16 [2, 63, 64]"),
    "more columns": ("int8", put("cache.layers.0.columns", 1 << 22), "its manifest says"),
    "half the bits": ("int8", put("cache.dtype", "int4"), "as F16 [2, 63, 64], its manifest says F16 [2, 127, 64]"),
    "no sinks": ("int8", put("cache.spans", []), "'layers.0.values.sink'] that its manifest does not name"),
    "more sinks": ("int8", put("cache.spans.0.stop", 9), "its manifest says"),
    "blocks that are not filled": ("q8_0", put("cache.spec.kv_heads", 2**11 + 1), "its manifest says"),
    "other blocks": ("q8_0", put("cache.dtype", "q4_0"), "as U8 [4096, 136], its manifest says U8 [4096, 72]"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FORGED))
def test_a_forged_packed_file_is_refused_for_what_is_wrong_with_it(
    packed: Callable[[str], Path], place: Path, name: str
) -> None:
    codec, change, problem = FORGED[name]
    file = Forged.of(packed(codec))
    change(file)
    place.write_bytes(file.sealed().packed())
    refused(place, problem)
    if "numbers in" not in problem:  # What a header tells is told before any tensor is touched.
        with pytest.raises(CacheFileError):
            peek(place)


def test_rows_that_fill_no_blocks_are_refused_from_the_header(packed: Callable[[str], Path], place: Path) -> None:
    file = Forged.of(packed("q4_0"))
    put("cache.spec.head_dim", 6)(file)
    put("cache.spec.rope.inverse_frequencies", [1.0, 0.5, 0.25])(file)
    place.write_bytes(file.sealed().packed())
    refused(place, "has 2 heads of 6, which do not fill q4_0 blocks of 32")


def test_a_scale_of_the_wrong_sign_does_no_more_than_change_numbers(packed: Callable[[str], Path], place: Path) -> None:
    file = Forged.of(packed("int8"))
    half("layers.0.values.scale", 0xFBFF)(file)  # The most negative float16.
    place.write_bytes(file.sealed().packed())
    assert read_cache(place).layers[0].values.isfinite().all()


def test_many_spans_of_sinks_cost_no_time(packed: Callable[[str], Path], place: Path) -> None:
    file = Forged.of(packed("int8"))
    put("cache.spans", [{"kind": "sink", "start": 0, "stop": MANY}] * 50_000)(file)
    place.write_bytes(file.sealed().packed())
    refused(place, "50000 spans of sinks (at most 1024)")


@pytest.mark.parametrize("codec", ["int8", "int4", "q8_0", "q4_0"])
def test_keys_that_are_unpacked_are_numbers_whatever_they_are_turned_by(
    packed: Callable[[str], Path], place: Path, codec: str
) -> None:
    # Found by fuzzing: a frequency that overflows float32 makes every angle, and so every key, no number.
    for frequency in (1e308, -1e308, 2.0**65):
        file = Forged.of(packed(codec))
        for change in (put("cache.rope", "applied"), put("cache.spec.rope.inverse_frequencies.7", frequency)):
            change(file)
        place.write_bytes(file.sealed().packed())
        refused(place, "has a RoPE frequency beyond 1.8e+19 radians per position")
    file = Forged.of(packed(codec))
    for change in (put("cache.rope", "applied"), put("cache.spec.rope.inverse_frequencies.7", -(2.0**64))):
        change(file)
    struct.pack_into("<i", file.part("layers.0.positions"), 4 * (MANY - 1), (1 << 31) - 1)
    place.write_bytes(file.signed().packed())
    assert read_cache(place).layers[0].keys.isfinite().all()
