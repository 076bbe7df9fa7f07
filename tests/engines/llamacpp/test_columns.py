"""Cells become columns and columns cells, against formulas written down a second time, one number after another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.engines.llamacpp.blob import build
from unspoken.engines.llamacpp.columns import COLUMN_DTYPES
from unspoken.engines.llamacpp.parse import parse
from unspoken.transforms.cast import Cast

from .cells import CASES, HEADS, LAYERS, PLAIN, POSITIONS, QUANTISED, Case, a_cache, by_hand, cells, in_cells, numbers


def equal(one: KVCache, other: KVCache) -> bool:
    """Whether two caches hold the same numbers at the same positions."""
    pairs = zip(one.layers, other.layers, strict=True)
    return all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) and torch.equal(a.positions, b.positions)
        for a, b in pairs
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_columns_are_the_cells_numbers_unrotated_and_in_transformers_order(case: Case) -> None:
    blob = cells(case)
    layers = case.translation.columns(blob)
    assert [layer.index for layer in layers] == list(range(LAYERS))
    for layer, keys, values in zip(layers, blob.keys, blob.values, strict=True):
        assert layer.positions.tolist() == POSITIONS.tolist()
        assert layer.keys.is_contiguous()
        assert layer.keys.dtype == layer.values.dtype == DTYPES[COLUMN_DTYPES[case.kind]]
        for found, rows, rotation, interleaved in (
            (layer.keys, keys, case.rotations[0], case.interleaved),
            (layer.values, values, case.rotations[1], False),
        ):
            expected = torch.from_numpy(by_hand(rows, case, rotation, interleaved))
            # Unrotated numbers are the very ones; undoing a rotation sums 64 or 128 of them in float32.
            tolerance = 1e-6 * float(expected.abs().max()) if rotation else 0.0
            assert float((found.double() - expected).abs().max()) <= tolerance


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cells_that_went_out_as_columns_come_back_byte_for_byte(case: Case) -> None:
    blob = cells(case)
    state = case.translation.state(a_cache(case.translation.columns(blob), case.head_dim))
    assert state.tobytes() == build(blob).tobytes()


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_columns_that_went_in_as_cells_come_out_the_same(case: Case) -> None:
    cache = numbers(case.head_dim, case.translation.dtype)
    assert equal(a_cache(case.translation.columns(parse(case.translation.state(cache))), case.head_dim), cache)


@pytest.mark.parametrize("case", QUANTISED, ids=str)
def test_columns_that_went_in_as_quantised_cells_are_there_within_half_a_step(case: Case) -> None:
    cache = numbers(case.head_dim, "float32")
    blob = parse(case.translation.state(cache))
    for layer, keys, values in zip(cache.layers, blob.keys, blob.values, strict=True):
        parts = (
            (keys, layer.keys, case.rotations[0], case.interleaved),
            (values, layer.values, case.rotations[1], False),
        )
        for rows, given, rotation, interleaved in parts:
            found, expected = in_cells(rows, given, case, rotation, interleaved)
            largest = np.abs(expected).max(axis=1, keepdims=True)
            # A step is a 127th or an 8th of a block's largest number, and its scale is a float16. The largest of the
            # other sign falls a whole step short in q4_0, whose integers go from -8 to 7.
            step = largest / (254 if case.kind == "q8_0" else 8)
            assert (np.abs(found - expected) <= step + largest * 2**-11).all()
            assert np.sqrt(np.mean((found - expected) ** 2)) < float(largest.mean()) / (
                254 if case.kind == "q8_0" else 16
            )
            assert (found != expected).any()


@pytest.mark.parametrize(
    "case", [Case("f16"), Case("q8_0", rotations=(64, 64)), Case("q4_0", interleaved=True)], ids=str
)
def test_a_state_is_what_it_was_told_to_be(case: Case) -> None:
    for new_layout in (False, True):
        translation = replace(case, new_layout=new_layout).translation
        blob = parse(translation.state(numbers(64, "float32")))
        assert blob.positions.tolist() == POSITIONS.tolist()
        assert (blob.key_type.name, blob.value_type.name, len(blob.keys)) == (case.kind, case.kind, LAYERS)
        assert blob.rotations == (case.rotations if new_layout else None)


def test_one_coordinate_of_a_key_stands_where_the_formula_says() -> None:
    # K_llama[2i + j] = K_hf[j·D/2 + i], one coordinate at a time, and of values nothing is moved.
    translation = Case("f32", 16, interleaved=True).translation
    for i in range(8):
        for j in range(2):
            cache = numbers(16, "float32", torch.zeros_like)
            cache.layers[1].keys[2, 4, j * 8 + i] = cache.layers[1].values[2, 4, j * 8 + i] = 5.0
            blob = parse(translation.state(cache))
            for rows, place in ((blob.keys, 2 * i + j), (blob.values, j * 8 + i)):
                assert not rows[0].any()
                assert np.flatnonzero(rows[1].reshape(-1).view("<f4")).tolist() == [4 * HEADS * 16 + 2 * 16 + place]


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_a_cache_of_another_element_type_is_cast_on_the_way(kind: str) -> None:
    translation = Case(kind, interleaved=True, rotations=(64, 64) if kind[0] == "q" else (0, 0)).translation
    for dtype in DTYPES:
        cache = numbers(64, dtype)
        assert translation.state(cache).tobytes() == translation.state(Cast(translation.dtype)(cache)).tobytes()


def test_columns_that_lie_apart_in_memory_are_written_alike() -> None:
    translation = Case("f16", interleaved=True).translation
    cache = numbers(64, "float16")
    apart = [
        KVLayer(each.index, each.keys.mT.contiguous().mT, each.values.mT.contiguous().mT, each.positions)
        for each in cache.layers
    ]
    assert not apart[0].keys.is_contiguous()
    assert translation.state(a_cache(apart, 64)).tobytes() == translation.state(cache).tobytes()


@pytest.mark.parametrize(
    "case", [Case("f32"), Case("f16", interleaved=True), Case("q8_0", rotations=(64, 64))], ids=str
)
def test_columns_and_states_are_copies(case: Case) -> None:
    data = build(cells(case))
    layers = case.translation.columns(parse(data))
    cache = a_cache(layers, 64)
    state = case.translation.state(cache)
    before = [(layer.keys.clone(), layer.values.clone(), layer.positions.clone()) for layer in layers]
    kept = state.tobytes()
    data[:] = 0
    for layer, (keys, values, positions) in zip(layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert torch.equal(layer.positions, positions)
        layer.keys.zero_()
    assert state.tobytes() == kept
