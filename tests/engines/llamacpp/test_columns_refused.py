"""What no cells can be made of, and which blobs are not this context's: each is refused with what differs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from unspoken.cache import KVLayer
from unspoken.engines.llamacpp.parse import parse
from unspoken.errors import IncompatibleCache

from .cells import Case, a_cache, cells, numbers, spec

# Blobs that are not this context's, and what is said about each.
FOREIGN: dict[str, tuple[Case, str]] = {
    "another type": (Case("bf16"), "type of keys bf16, expected f16; type of values bf16, expected f16"),
    "wider cells": (Case("f32"), "type of keys f32, expected f16"),
    "larger heads": (Case("f16", 128), "bytes in a row of keys 768, expected 384"),
    "another rotation": (Case("f16", rotations=(64, 64)), r"rotations \(64, 64\), expected \(0, 0\)"),
    "another layout": (Case("f16", new_layout=False), "the layout of another version of llama.cpp"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_blob_of_another_context_is_refused_with_what_differs(name: str) -> None:
    case, reason = FOREIGN[name]
    with pytest.raises(IncompatibleCache, match=reason) as error:
        Case("f16").translation.columns(cells(case))
    assert "does not fit 'fake" in error.value.problem
    assert "--kv-type" in error.value.hint


def test_a_blob_in_the_old_layout_is_refused_where_the_new_one_is_expected_and_the_other_way_round() -> None:
    for mine, other in ((True, False), (False, True)):
        with pytest.raises(IncompatibleCache, match="layout of another version"):
            Case("q8_0", new_layout=mine, rotations=(64, 64)).translation.columns(
                cells(Case("q8_0", new_layout=other, rotations=(64, 64)))
            )


@pytest.mark.parametrize("changes", [{"layers": 3}, {"layers": 1}, {"kv_heads": 1}, {"kv_heads": 6}], ids=str)
def test_a_blob_of_another_number_of_layers_or_heads_is_refused(changes: dict[str, int]) -> None:
    (name,) = changes
    told = "layers 2, expected" if name == "layers" else "bytes in a row of keys 384, expected"
    with pytest.raises(IncompatibleCache, match=told):
        replace(Case("f16").translation, spec=spec(64, **changes)).columns(cells(Case("f16")))


def test_keys_and_values_of_two_types_are_refused() -> None:
    keys, values = cells(Case("f16")), cells(Case("q8_0"))
    mixed = replace(keys, values=values.values, value_type=values.value_type)
    with pytest.raises(IncompatibleCache, match="type of values q8_0, expected f16; bytes in a row of values 204"):
        Case("f16").translation.columns(mixed)


def test_layers_that_hold_different_numbers_of_columns_are_refused() -> None:
    first, second = numbers(64, "float16").layers
    fewer = KVLayer(1, second.keys[:, :4], second.values[:, :4], second.positions[:4])
    with pytest.raises(IncompatibleCache, match="all layers hold as many"):
        Case("f16").translation.state(a_cache([first, fewer], 64))
    same = KVLayer(1, second.keys, second.values, second.positions.clone())
    assert Case("f16").translation.state(a_cache([first, same], 64)).any()


def test_a_cell_stands_at_the_last_position_of_any_layer() -> None:
    first, second = numbers(64, "float16").layers
    other = KVLayer(1, second.keys, second.values, second.positions + 5)
    state = Case("f16").translation.state(a_cache([first, other], 64))
    assert parse(state).positions.tolist() == other.positions.tolist()


# The largest float16 is 65504; 65520 is the first number that is rounded to infinity.
@pytest.mark.parametrize(("number", "fits"), [(65504.0, True), (65519.0, True), (65520.0, False), (-1e5, False)])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_numbers_too_large_for_the_cells_are_refused(part: str, number: float, fits: bool) -> None:
    cache = numbers(64, "float32")
    getattr(cache.layers[1], part)[2, 3, 5] = number
    if fits:
        assert Case("f16").translation.state(cache).any()
    else:
        with pytest.raises(IncompatibleCache, match=re.escape(f"up to {abs(number):.3g}, too large for f16")) as error:
            Case("f16").translation.state(cache)
        assert error.value.hint == "Choose --kv-type bf16 or f32."
    assert Case("f32").translation.state(cache).any()


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("number", [1e9, float("inf"), float("nan")])
def test_numbers_too_large_for_quantised_cells_are_refused_alike(kind: str, number: float) -> None:
    cache = numbers(64, "float32")
    cache.layers[0].keys[0, 0, 0] = number
    with pytest.raises(IncompatibleCache, match=f"too large for {kind}"):
        Case(kind, rotations=(64, 64)).translation.state(cache)
