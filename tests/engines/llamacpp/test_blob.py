"""llama.cpp's saved states, against a slow way to write them: what is taken from one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.engines.llamacpp.blob import Blob, FileState, build, build_file
from unspoken.engines.llamacpp.parse import parse, parse_file
from unspoken.transforms.blocks import ELEMENT_TYPES, ElementType

from .slowblob import F16, Q8_0, in_file, in_memory, made, recipes, same, slow

# No bytes may leave a warning behind, whatever is in them.
pytestmark = pytest.mark.filterwarnings("error")


@given(recipes(), st.sampled_from([0, 1, 255, 2**31 - 1]))
def test_a_blob_is_built_as_the_slow_way_writes_it(recipe: Callable[[], Blob], sequence_id: int) -> None:
    blob = recipe()
    assert build(blob, sequence_id).tobytes() == in_memory(slow(blob, sequence_id), sequence_id)


@given(recipes(), st.sampled_from([0, 7]))
def test_parsing_gives_back_what_was_built_and_building_what_was_parsed(
    recipe: Callable[[], Blob], sequence_id: int
) -> None:
    blob = recipe()
    data = build(blob, sequence_id)
    again = parse(data)
    assert same(again, blob)
    assert build(again, sequence_id).tobytes() == data.tobytes()


@pytest.mark.parametrize("rotations", [None, (0, 0), (64, 64)], ids=str)
@pytest.mark.parametrize("values", ELEMENT_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("keys", ELEMENT_TYPES, ids=lambda kind: kind.name)
def test_every_pair_of_types_comes_back_in_both_layouts(
    keys: ElementType, values: ElementType, rotations: tuple[int, int] | None
) -> None:
    blob = made((keys, values), rotations)
    assert same(parse(build(blob)), blob)
    state = parse_file(build_file(FileState(np.array([5, 6, 7], np.int32), blob)))
    assert same(state.blob, blob)


@given(recipes(), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(tuple))
def test_a_file_is_built_as_the_slow_way_writes_it_and_comes_back(
    recipe: Callable[[], Blob], ids: tuple[int, ...]
) -> None:
    blob = recipe()
    data = build_file(FileState(np.array(ids, np.int32), blob), 3)
    assert data.tobytes() == in_file(slow(blob, 3), ids, 3 if blob.rotations is None else 4)
    state = parse_file(data)
    assert state.token_ids.dtype == np.int32
    assert state.token_ids.tolist() == list(ids)
    assert same(state.blob, blob)
    assert build_file(state, 3).tobytes() == data.tobytes()


@given(recipes())
def test_the_size_is_known_beforehand(recipe: Callable[[], Blob]) -> None:
    blob = recipe()
    cells, layers = len(blob.positions), len(blob.keys)
    rows = blob.keys[0].shape[1] + blob.values[0].shape[1]
    expected = 24 + 12 * cells + 24 * layers + cells * layers * rows + (0 if blob.rotations is None else 8)
    assert blob.bytes_built == len(build(blob)) == expected


def test_the_size_is_the_one_llama_cpp_was_seen_to_make() -> None:
    for kind, expected in (("f16", 6_916_352), ("q8_0", 3_676_352), ("q4_0", 1_948_352), ("f32", 13_828_352)):
        type_ = ElementType.named(kind)
        assert made((type_, type_), (64, 64), 300, 30, (192, 192)).bytes_built == expected
    assert made((Q8_0, F16), (64, 0), 300, 30, (192, 192)).bytes_built == 5_296_352


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: data, lambda data: data.reshape(2, -1)])
def test_rows_are_views_of_the_bytes_given(wrap: Callable[[Any], Any]) -> None:
    data = wrap(build(made()))
    blob = parse(data)
    assert all(np.shares_memory(rows, np.frombuffer(data, np.uint8)) for rows in blob.keys + blob.values)
    assert same(blob, made())


def test_positions_are_the_callers_own() -> None:
    data = build(made())
    positions = parse(data).positions
    data[:] = 0
    assert positions.tolist() == made().positions.tolist()
    assert positions.flags.c_contiguous
    assert positions.flags.aligned


def test_rows_that_lie_apart_in_memory_are_put_together() -> None:
    blob = made()
    apart = replace(blob, keys=tuple(np.asfortranarray(rows) for rows in blob.keys), positions=blob.positions[::-1])
    assert build(apart).tobytes() == in_memory(slow(replace(blob, positions=blob.positions[::-1])))


def test_bytes_at_an_odd_address_are_read() -> None:
    whole = np.empty(len(build(made())) + 1, np.uint8)
    whole[1:] = build(made())
    assert same(parse(whole[1:]), made())
