"""llama.cpp's saved states that are damaged, foreign or impossible: each is refused with the reason."""

from __future__ import annotations

import re
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unspoken.engines.llamacpp.blob import Blob, FileState, build, build_file
from unspoken.engines.llamacpp.parse import parse, parse_file
from unspoken.errors import CacheFileError, UsageError
from unspoken.transforms.blocks import ElementType

from .slowblob import CELL, F16, Q8_0, START, in_file, in_memory, made, recipes, slow, unsequenced

# No bytes may leave a warning behind, whatever is in them.
pytestmark = pytest.mark.filterwarnings("error")


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
