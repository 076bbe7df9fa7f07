"""Cells and columns of one small shape, and formulas for what stands where, written down a second time."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.engines.fake import FakeEngine
from unspoken.engines.llamacpp.blob import Blob
from unspoken.engines.llamacpp.columns import Translation
from unspoken.spec import ModelSpec
from unspoken.transforms.blocks import ElementType

LAYERS, HEADS = 2, 3
POSITIONS = np.array([2, 3, 7, 8, 20], np.int32)


@dataclass(frozen=True)
class Case:
    """One way in which cells may lie in a context."""

    kind: str
    head_dim: int = 64
    interleaved: bool = False
    rotations: tuple[int, int] = (0, 0)
    new_layout: bool = True

    @property
    def translation(self) -> Translation:
        return Translation(
            spec(self.head_dim), ElementType.named(self.kind), self.interleaved, self.rotations, self.new_layout
        )

    def __str__(self) -> str:
        words = (
            self.kind,
            self.head_dim,
            "interleaved" * self.interleaved,
            self.rotations,
            "old" * (not self.new_layout),
        )
        return "-".join(str(word) for word in words if word)


PLAIN = [
    Case(kind, head_dim, interleaved, new_layout=new_layout)
    for kind in ("f32", "f16", "bf16")
    for head_dim in (16, 64)
    for interleaved in (False, True)
    for new_layout in (False, True)
]
QUANTISED = [
    Case(kind, head_dim, interleaved, rotations, new_layout)
    for kind in ("q8_0", "q4_0")
    for head_dim, rotations in ((32, (0, 0)), (64, (64, 64)), (128, (128, 64)), (128, (0, 0)))
    for interleaved in (False, True)
    for new_layout in (False, True)
]
CASES = PLAIN + QUANTISED


def spec(head_dim: int = 64, **changes: int) -> ModelSpec:
    """A model of three heads and two layers."""
    fields = {"layers": LAYERS, "kv_heads": HEADS, "head_dim": head_dim} | changes
    return msgspec.structs.replace(FakeEngine().spec, **fields)


def cells(case: Case, seed: int = 0) -> Blob:
    """A blob of random numbers, each row rotated if the case is, as llama.cpp does, and then packed by hand."""
    generator = np.random.default_rng(seed)
    kind, width = ElementType.named(case.kind), HEADS * case.head_dim

    def part(rotation: int) -> tuple[NDArray[np.uint8], ...]:
        rows = [
            [packed(rotated(generator.normal(size=width) * 10.0 ** generator.integers(-3, 3), rotation), case.kind)
             for _ in POSITIONS]
            for _ in range(LAYERS)
        ]  # fmt: skip
        return tuple(np.array([np.frombuffer(row, np.uint8) for row in layer]) for layer in rows)

    keys, values = part(case.rotations[0]), part(case.rotations[1])
    return Blob(POSITIONS, keys, values, kind, kind, case.rotations if case.new_layout else None)


def packed(row: NDArray[np.float64], kind: str) -> bytes:
    """A row of numbers as ggml's types have them, block by block."""
    numbers = row.astype(np.float32)
    if kind in ("f32", "f16"):
        return numbers.astype("<f4" if kind == "f32" else "<f2").tobytes()
    if kind == "bf16":
        return b"".join(
            struct.pack("<f", number)[2:] for number in numbers
        )  # Rounded towards zero: any number will do.
    out = b""
    for block in numbers.reshape(-1, 32):
        largest = block[np.abs(block).argmax()]
        scale = abs(largest) / np.float32(127) if kind == "q8_0" else largest / np.float32(-8)
        whole = block / scale
        out += struct.pack("<e", scale)
        if kind == "q8_0":
            out += np.round(whole).astype(np.int8).tobytes()
        else:
            nibbles = np.minimum(15, np.floor(whole + 8.5)).astype(np.uint8)
            out += (nibbles[:16] | nibbles[16:] << 4).astype(np.uint8).tobytes()
    return out


def unpacked(row: bytes, kind: str) -> NDArray[np.float32]:
    """The numbers in a row, block by block."""
    if kind in ("f32", "f16"):
        return np.frombuffer(row, "<f4" if kind == "f32" else "<f2").astype(np.float32)
    if kind == "bf16":
        return np.array(
            [struct.unpack("<f", bytes(2) + row[at : at + 2])[0] for at in range(0, len(row), 2)], np.float32
        )
    out: list[float] = []
    size = 34 if kind == "q8_0" else 18
    for at in range(0, len(row), size):
        (scale,), raw = struct.unpack("<e", row[at : at + 2]), row[at + 2 : at + size]
        if kind == "q8_0":
            whole = list(struct.unpack("<32b", raw))
        else:
            whole = [(byte & 15) - 8 for byte in raw] + [(byte >> 4) - 8 for byte in raw]
        out += [scale * number for number in whole]
    return np.array(out, np.float32)


def rotated(row: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """A row in which each block is multiplied by Sylvester's matrix, which is built by doubling."""
    if size == 0:
        return row
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / np.sqrt(2)
    return (row.reshape(-1, size) @ matrix.T).reshape(row.shape)


def by_hand(rows: NDArray[np.uint8], case: Case, rotation: int, interleaved: bool) -> NDArray[np.float64]:
    """The columns `[kv_heads, seq, head_dim]` that rows stand for."""
    half = case.head_dim // 2
    out = np.empty((HEADS, len(rows), case.head_dim))
    for cell, row in enumerate(rows):
        numbers = rotated(unpacked(row.tobytes(), case.kind).astype(np.float64), rotation)
        for head in range(HEADS):
            for i in range(half):
                for j in range(2):
                    # llama.cpp has coordinate 2i + j where transformers has j·D/2 + i, or both have the same.
                    mine = 2 * i + j if interleaved else j * half + i
                    out[head, cell, j * half + i] = numbers[head * case.head_dim + mine]
    return out


def in_cells(
    rows: NDArray[np.uint8], states: Tensor, case: Case, rotation: int, interleaved: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What rows hold, and what they would hold of `states` without rounding, both `[blocks of all cells, 32]`."""
    half, expected = case.head_dim // 2, []
    for cell in range(len(rows)):
        row = np.empty(HEADS * case.head_dim)
        for head in range(HEADS):
            for i in range(half):
                for j in range(2):
                    mine = 2 * i + j if interleaved else j * half + i
                    row[head * case.head_dim + mine] = states[head, cell, j * half + i]
        expected.append(rotated(row, rotation))
    found = np.array([unpacked(row.tobytes(), case.kind) for row in rows], np.float64)
    return found.reshape(-1, 32), np.array(expected).reshape(-1, 32)


def a_cache(layers: list[KVLayer], head_dim: int) -> KVCache:
    return KVCache.build(layers, spec(head_dim))


def numbers(head_dim: int, dtype: str, make: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> KVCache:
    """A cache of random numbers at the positions of `cells`."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        KVLayer(
            index,
            *(
                make(torch.randn(HEADS, len(POSITIONS), head_dim, generator=generator)).to(DTYPES[dtype])
                for _ in range(2)
            ),
            torch.from_numpy(POSITIONS),
        )
        for index in range(LAYERS)
    ]
    return a_cache(layers, head_dim)
