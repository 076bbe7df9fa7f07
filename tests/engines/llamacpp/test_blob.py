"""llama.cpp's saved states, against a slow way to write them: what is taken from one, and what is refused."""

from __future__ import annotations

import re
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unspoken.engines.llamacpp.blob import Blob, FileState, build, build_file
from unspoken.engines.llamacpp.parse import parse, parse_file
from unspoken.errors import CacheFileError, UsageError
from unspoken.transforms.blocks import ELEMENT_TYPES, ElementType, row_bytes

F16, Q8_0 = ElementType.named("f16"), ElementType.named("q8_0")
# Bytes before the cells, and of each cell, in memory.
START, CELL = 16, 12

# No bytes may leave a warning behind, whatever is in them.
pytestmark = pytest.mark.filterwarnings("error")


def made(
    kinds: tuple[ElementType, ElementType] = (F16, F16),
    rotations: tuple[int, int] | None = (0, 0),
    cells: int = 3,
    layers: int = 2,
    elements: tuple[int, int] = (64, 64),
    seed: int = 0,
) -> Blob:
    """A blob of random bytes, at positions with gaps."""
    generator = np.random.default_rng(seed)
    keys, values = (
        tuple(generator.integers(0, 256, (cells, row_bytes(kind, count)), dtype=np.uint8) for _ in range(layers))
        for kind, count in zip(kinds, elements, strict=True)
    )
    positions = np.cumsum(generator.integers(1, 9, cells), dtype=np.int32)
    return Blob(positions, keys, values, *kinds, rotations)


@st.composite
def recipes(draw: st.DrawFn) -> Callable[[], Blob]:
    """Makers of blobs of all types and both layouts; making is left to the test, because checking types is random."""
    kinds = (draw(st.sampled_from(ELEMENT_TYPES)), draw(st.sampled_from(ELEMENT_TYPES)))
    rotations = draw(st.none() | st.tuples(st.sampled_from([0, 64, 128]), st.sampled_from([0, 64])))
    elements = (draw(st.sampled_from([128, 384])), draw(st.sampled_from([64, 192])))
    cells, layers, seed = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 99))
    return partial(made, kinds, rotations, cells, layers, elements, seed)


def slow(
    blob: Blob,
    sequence_id: int = 0,
    *,
    streams: int = 1,
    sequences: int = 1,
    more: bytes = b"",
    transposed: int = 0,
    layers: int | None = None,
    kinds: dict[int, int] | None = None,
) -> bytes:
    """The cache of a blob written field by field, with anything that can be wrong in it."""
    out = struct.pack("<II", streams, len(blob.positions))
    for position in blob.positions:
        out += struct.pack("<iI", position, sequences) + more + struct.pack("<i", sequence_id)
    out += struct.pack("<II", transposed, len(blob.keys) if layers is None else layers)
    if blob.rotations is not None:
        out += struct.pack("<II", *blob.rotations)
    at = 0
    for kind, part in ((blob.key_type, blob.keys), (blob.value_type, blob.values)):
        for rows in part:
            out += struct.pack("<iQ", (kinds or {}).get(at, kind.number), rows.shape[1]) + rows.tobytes()
            at += 1
    return out


def in_memory(cache: bytes, sequence_id: int = 0) -> bytes:
    """A cache with what stands before it in memory."""
    return struct.pack("<Ii", 0xAF143CD8, sequence_id) + cache


def in_file(cache: bytes, token_ids: tuple[int, ...], version: int) -> bytes:
    """A cache with what stands before it in a file."""
    return b"qsgg" + struct.pack(f"<II{len(token_ids)}i", version, len(token_ids), *token_ids) + cache


def same(one: Blob, other: Blob) -> bool:
    """Whether two blobs hold the same."""
    return (
        (one.key_type, one.value_type, one.rotations) == (other.key_type, other.value_type, other.rotations)
        and np.array_equal(one.positions, other.positions)
        and len(one.keys) == len(other.keys)
        and all(map(np.array_equal, one.keys + one.values, other.keys + other.values))
    )


def unsequenced(data: bytes | bytearray, cells: int) -> bytes:
    """A state in memory with all sequence ids zero, which llama.cpp ignores."""
    out = bytearray(data)
    for at in (4, *(START + CELL * cell + 8 for cell in range(cells))):
        out[at : at + 4] = bytes(4)
    return bytes(out)


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


@given(recipes(), st.data())
def test_every_truncation_is_refused(recipe: Callable[[], Blob], data: st.DataObject) -> None:
    blob = recipe()
    whole = build(blob)
    kept = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CacheFileError, match=r"^The llama\.cpp state "):
        parse(whole[:kept])


@pytest.mark.parametrize("rotations", [None, (64, 0)], ids=str)
def test_a_truncated_state_is_said_to_be_cut_off(rotations: tuple[int, int] | None) -> None:
    blob = made((Q8_0, F16), rotations)
    for whole, read in ((build(blob), parse), (build_file(FileState(blob.positions, blob)), parse_file)):
        for kept in range(len(whole)):
            with pytest.raises(
                CacheFileError, match=r"is cut off: .* would take \d+ bytes from byte \d+, \d+ are left"
            ):
                read(whole[:kept])


@given(recipes(), st.binary(min_size=1, max_size=40))
def test_bytes_after_the_end_are_refused(recipe: Callable[[], Blob], more: bytes) -> None:
    blob = recipe()
    with pytest.raises(CacheFileError, match=f"has {len(more)} bytes after its last layer"):
        parse(build(blob).tobytes() + more)


@pytest.mark.parametrize("rotations", [None, (64, 0)], ids=str)
def test_a_changed_bit_beside_the_rows_is_refused_or_stands_in_the_blob(rotations: tuple[int, int] | None) -> None:
    blob = made((Q8_0, F16), rotations, cells=2)
    data = bytearray(build(blob).tobytes())
    zeros, ones = (
        build(replace(blob, keys=filled(blob.keys, byte), values=filled(blob.values, byte))) for byte in (0, 255)
    )
    for at in np.flatnonzero(zeros == ones).tolist():
        for bit in range(8):
            data[at] ^= 1 << bit
            refused_or_there(data)
            data[at] ^= 1 << bit


@given(recipes(), st.data())
def test_changed_bytes_are_refused_or_stand_in_the_blob(recipe: Callable[[], Blob], data: st.DataObject) -> None:
    whole = bytearray(build(recipe()).tobytes())
    changes = st.dictionaries(st.integers(0, 99) | st.integers(0, len(whole) - 1), st.integers(0, 255), min_size=1)
    for at, byte in data.draw(changes).items():
        whole[at] = byte
    refused_or_there(whole)


def filled(layers: tuple[NDArray[np.uint8], ...], byte: int) -> tuple[NDArray[np.uint8], ...]:
    """Rows of the same shape with one byte everywhere."""
    return tuple(np.full_like(rows, byte) for rows in layers)


def refused_or_there(data: bytearray) -> None:
    """Check that a state is refused, or taken for what it says: building it again gives the same bytes."""
    try:
        found = parse(bytes(data))
    except CacheFileError:
        return
    assert build(found).tobytes() == unsequenced(data, len(found.positions))


@given(st.binary(max_size=200), st.sampled_from([0, 4, 8, 16, 28, 36, 44]))
def test_any_bytes_are_refused_without_another_error(noise: bytes, kept: int) -> None:
    for whole, read in ((build(made(cells=1)), parse), (build_file(FileState(made().positions, made())), parse_file)):
        with pytest.raises(CacheFileError):
            read(whole.tobytes()[:kept] + noise)


SOUND = made((Q8_0, F16), (64, 0), elements=(128, 128))
OLD = replace(SOUND, rotations=None)
# States that are refused, and what is said about them.
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is cut off: the magic number would take 4 bytes from byte 0, 0 are left"),
    "wrong magic": (b"PK\3\4" + bytes(60), "begins with 0x04034b50 instead of 0xaf143cd8: it is something else"),
    "a file": (in_file(slow(SOUND), (1,), 4), "is a file of a saved sequence"),
    "a session": (b"nsgg" + bytes(60), "is the session of a whole llama.cpp context"),
    "a model": (b"GGUF" + bytes(60), "is a GGUF file"),
    "four streams": (in_memory(slow(SOUND, streams=4)), "has 4 streams instead of one. Make the context with `kv_unif"),
    "no stream": (in_memory(struct.pack("<I", 0)), "has 0 streams"),
    "no cells": (in_memory(struct.pack("<II", 1, 0)), "has no cells: the sequence was empty"),
    "shared cells": (in_memory(slow(SOUND, sequences=2)), "has a cell, number 0, of 2 sequences instead of one"),
    "transposed": (
        in_memory(slow(SOUND, transposed=1)),
        "has transposed values. Make the context with flash attention",
    ),
    "transposed, old": (in_memory(slow(OLD, transposed=1)), "has transposed values"),
    "a mark that is none": (in_memory(slow(SOUND, transposed=2)), "the mark 2 for transposed values"),
    "no layers": (in_memory(slow(SOUND, layers=0)), "has 0 layers and the mark 0"),
    "too many layers": (in_memory(slow(SOUND, layers=1025)), "has 1025 layers and the mark 0"),
    "a layer more": (in_memory(slow(SOUND, layers=3)), "has keys of type 1 in rows of 256 bytes in layer 2, of type 8"),
    "a layer less": (in_memory(slow(SOUND, layers=1)), "bytes after its last layer"),
    "M-RoPE": (in_memory(slow(SOUND, more=bytes(12))), "has cells with more than one position each"),
    "M-RoPE, old": (in_memory(slow(OLD, more=struct.pack("<3i", 1, 1, 1))), "has cells with more than one position"),
    "M-RoPE, one cell": (in_memory(slow(made(cells=1), more=bytes(12))), "has cells with more than one position each"),
    "other keys": (in_memory(slow(SOUND, kinds={0: 7, 1: 7})), "ggml's element type 7 (q5_1) cannot be read. Make the"),
    "other keys, old": (in_memory(slow(OLD, kinds={0: 3, 1: 3})), "ggml's element type 3 (q4_1) cannot be read"),
    "other values, old": (
        in_memory(slow(OLD, kinds={2: 20, 3: 20})),
        "has values of a type it cannot be read in: ggml's",
    ),
    "unknown values": (in_memory(slow(SOUND, kinds={2: -9, 3: -9})), "ggml's element type -9 (unknown)"),
    "types by layer": (in_memory(slow(SOUND, kinds={3: 30})), "has values of type 30 in rows of 256 bytes in layer 1"),
    "rows of no block": (in_memory(slow(SOUND, kinds={0: 2, 1: 2})), "has rows of 136 bytes for keys of type q4_0"),
    "a rotation of 96": (in_memory(slow(SOUND).replace(struct.pack("<II", 64, 0), struct.pack("<II", 96, 0))), "has "),
    "two caches": (in_memory(slow(SOUND) * 2), "bytes after its last layer: a second cache, of a sliding window"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_states_that_cannot_be_moved_are_refused_with_the_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(CacheFileError, match=re.escape(reason)) as error:
        parse(data)
    assert str(error.value).startswith("The llama.cpp state ")
    assert error.value.hint


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - {"nothing", "wrong magic", "a file", "a session", "a model"}))
def test_files_are_refused_for_the_same_reasons(name: str) -> None:
    data, reason = REFUSED[name]
    version = 3 if "old" in name else 4
    with pytest.raises(CacheFileError, match=re.escape(reason)):
        parse_file(in_file(data[8:], (1, 2), version))


def test_rows_and_rotations_that_cannot_be_are_refused() -> None:
    data = bytearray(in_memory(slow(SOUND)))
    rotations = START + CELL * 3 + 8
    for size, reason in ((96, "has rotations of sizes 96"), (2048, "of sizes 2048"), (256, "rotated in blocks of 256")):
        data[rotations : rotations + 4] = struct.pack("<I", size)
        with pytest.raises(CacheFileError, match=reason):
            parse_file(in_file(bytes(data[8:]), (), 4))
    data[rotations : rotations + 4] = struct.pack("<I", 64)
    for length in (0, 33, 1 << 24, 34 << 20, 1 << 63, (1 << 64) - 34):
        data[rotations + 12 : rotations + 20] = struct.pack("<Q", length)
        with pytest.raises(CacheFileError, match=f"has rows of {length} bytes for keys of type q8_0"):
            parse(bytes(data))
    with pytest.raises(CacheFileError, match="has the negative position -1"):
        parse(data[:START] + struct.pack("<i", -1) + data[START + 4 :])


@pytest.mark.parametrize("version", [0, 1, 5, 2**32 - 1])
def test_files_of_other_versions_are_refused_by_their_number(version: int) -> None:
    with pytest.raises(CacheFileError, match=f"has file version {version}, this program reads versions 2, 3, 4"):
        parse_file(in_file(slow(SOUND), (1,), version))


@pytest.mark.parametrize(("blob", "version"), [(OLD, 2), (OLD, 3), (SOUND, 4)])
def test_a_file_keeps_its_version(blob: Blob, version: int) -> None:
    data = in_file(slow(blob), (1, 2), version)
    state = parse_file(data)
    assert state.version == version
    assert build_file(state).tobytes() == data


def test_a_files_version_decides_its_layout() -> None:
    for blob, version in ((SOUND, 2), (SOUND, 3), (OLD, 4), (OLD, 5)):
        with pytest.raises(UsageError, match=f"of version {version} cannot hold the"):
            FileState(SOUND.positions, blob, version)
        with pytest.raises(CacheFileError):
            parse_file(in_file(slow(blob), (1,), version))


def test_files_that_are_none_are_refused_with_the_reason() -> None:
    with pytest.raises(CacheFileError, match="is a state in memory, which begins otherwise than a file"):
        parse_file(build(SOUND))
    with pytest.raises(CacheFileError, match="begins with 0x00000000 instead of 0x67677371"):
        parse_file(bytes(100))


@pytest.mark.parametrize(
    "field", [12, START + 3 * CELL + 4, START + 3 * CELL + 20], ids=["cells", "layers", "row bytes"]
)
def test_sizes_that_are_not_there_allocate_nothing(field: int) -> None:
    data = bytearray(build(SOUND).tobytes())
    data[field : field + 4] = b"\xff\xff\xff\xff"
    file = bytearray(in_file(slow(SOUND), (), 4))
    file[8:12] = b"\xff\xff\xff\xff"
    tracemalloc.start()
    try:
        for raw, read in ((data, parse), (file, parse_file)):
            with pytest.raises(CacheFileError):
                read(raw)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_bytes_that_lie_apart_are_refused_before_they_are_read() -> None:
    for data in (build(SOUND)[::2], memoryview(build(SOUND).tobytes())[::2]):
        with pytest.raises(UsageError, match=r"cannot be read: .*contiguous. Give a copy"):
            parse(data)


# What no blob can be made of, and what is said about it.
IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "no cells": ({"positions": np.empty(0, np.int32)}, "has no cells"),
    "negative position": ({"positions": np.array([0, -1, 2], np.int32)}, "or a negative position"),
    "positions in a table": ({"positions": np.zeros((3, 1), np.int32)}, "has no cells"),
    "cells more": ({"positions": np.arange(4, dtype=np.int32)}, "has keys that are not the same number of bytes"),
    "layers less": ({"keys": SOUND.keys[:1]}, "has keys of 1 layers and values of 2"),
    "no layers": ({"keys": (), "values": ()}, "has keys of 0 layers and values of 0"),
    "layers of two lengths": (
        {"values": (SOUND.values[0], SOUND.values[1][:, 2:])},
        "has values that are not the same",
    ),
    "rows in a line": (
        {"values": tuple(rows.reshape(-1) for rows in SOUND.values)},
        "has values that are not the same",
    ),
    "another type": ({"key_type": ElementType.named("q4_0")}, "has rows of 136 bytes for keys of type q4_0"),
    "a rotation too large": ({"rotations": (256, 0)}, "has keys of 128 values in a row rotated in blocks of 256"),
    "a rotation that is none": ({"rotations": (0, 96)}, "has values of 128 values in a row rotated in blocks of 96"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_blobs_that_llama_cpp_could_not_have_made_cannot_be_made_here(name: str) -> None:
    change, reason = IMPOSSIBLE[name]
    with pytest.raises(UsageError, match=reason):
        replace(SOUND, **change)


@pytest.mark.parametrize("sequence_id", [-1, 2**31])
def test_sequences_that_cannot_be_numbered_are_refused(sequence_id: int) -> None:
    with pytest.raises(UsageError, match=f"There is no sequence {sequence_id}"):
        build(SOUND, sequence_id)
    with pytest.raises(UsageError, match=f"There is no sequence {sequence_id}"):
        build_file(FileState(SOUND.positions, SOUND), sequence_id)
