"""Blobs of random bytes, and llama.cpp's saved states written from them field by field, whatever is wrong in them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

import numpy as np
from hypothesis import strategies as st

from unspoken.engines.llamacpp.blob import Blob
from unspoken.transforms.blocks import ELEMENT_TYPES, ElementType, row_bytes

F16, Q8_0 = ElementType.named("f16"), ElementType.named("q8_0")
# Bytes before the cells, and of each cell, in memory.
START, CELL = 16, 12


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
