"""Damage and junk drawn at random: what is read in spite of it is the cache that was written, or harmless."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.cache import KVCache
from unspoken.cachefile import read_cache, write_cache
from unspoken.errors import UnspokenError

from .forging import COLUMNS, Forged, same, with_manifest


def nested(depth: int) -> Any:
    """Return lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


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
    assert found is None or same(found, original)


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
        assert same(read_cache(place), found)


@pytest.mark.parametrize("depth", [100, 600, 900, 960, 990, 5000, 500_000])
def test_a_deep_lineage_is_refused_or_harmless(good: Path, place: Path, depth: int) -> None:
    file = Forged.of(good)
    file.manifest["cache"]["lineage"], before = "LINEAGE", file.manifest["digest"]
    lineage = '[{"args":{"a":' + "[" * depth + "]" * depth + '},"op":"x"}]'
    whole = {key: value for key, value in file.manifest.items() if key != "digest"}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":")).replace('"LINEAGE"', lineage)
    text = json.dumps(file.manifest).replace('"LINEAGE"', lineage)
    text = text.replace(before, blake3(canonical.encode()).hexdigest())
    place.write_bytes(with_manifest(good.read_bytes(), text))
    found = _read_or_refused(place)
    assert (found is not None) if depth < 500 else (found is None or depth < 1000)
