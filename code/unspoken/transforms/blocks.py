"""Turn a cache's numbers into llama.cpp's bytes and back, and undo the rotation its quantised caches have.

llama.cpp keeps keys and values in one of ggml's element types. The quantised ones store blocks of 32 values as
one float16 scale and 32 small integers (ggml, `quantize_row_q8_0_ref` and `quantize_row_q4_0_ref`).

A quantised cache is also rotated (llama.cpp, pull request 21038): blocks of a head's values are multiplied by a
Hadamard matrix before they are quantised, which spreads outliers over the block. Attention does not notice,
because queries are rotated alike; whoever takes the numbers elsewhere has to rotate them back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unspoken.errors import UsageError

# Values converted at a time: with everything made on the way they stay in a core's second-level cache.
CHUNK_VALUES = 1 << 15
# The smallest rotation llama.cpp makes, and the only one it makes for values.
SMALLEST_ROTATION = 64
# No head is known that would need more; the matrix takes n * n numbers, and n may come with a file.
LARGEST_ROTATION = 1024
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class ElementType:
    """How llama.cpp stores the numbers of a cache.

    Attributes:
        name: ggml's name for it, which is also what llama.cpp's options take.
        number: ggml's number for it, as it stands in files.
        values_per_block: Values stored together.
        bytes_per_block: Bytes such a block takes.
        largest: The largest magnitude it can hold.
    """

    name: str
    number: int
    values_per_block: int
    bytes_per_block: int
    largest: float

    @property
    def quantised(self) -> bool:
        """Whether values share a scale, so that each is only near to what it was."""
        return self.values_per_block > 1

    @staticmethod
    def named(name: str) -> ElementType:
        """Return the type of a name, such as `q8_0`.

        Raises:
            UsageError: If no type that can be read here has this name.
        """
        found = next((each for each in ELEMENT_TYPES if each.name == name), None)
        if found is None:
            raise UsageError(f"There is no element type '{name}' for a llama.cpp cache.", f"Choose one of {_known()}.")
        return found

    @staticmethod
    def numbered(number: int) -> ElementType:
        """Return the type that has a number in ggml's files.

        Raises:
            UsageError: If no type that can be read here has this number.
        """
        found = next((each for each in ELEMENT_TYPES if each.number == number), None)
        if found is None:
            name = OTHER_TYPES.get(number, "unknown")
            raise UsageError(
                f"ggml's element type {number} ({name}) cannot be read.", f"Make the cache with one of {_known()}."
            )
        return found


ELEMENT_TYPES = (
    ElementType("f32", 0, 1, 4, float(np.finfo(np.float32).max)),
    ElementType("f16", 1, 1, 2, _LARGEST_FLOAT16),
    # The scale is a float16; the largest value is 8 times the scale for q4_0, 127 times for q8_0.
    ElementType("q4_0", 2, 32, 18, 8 * _LARGEST_FLOAT16),
    ElementType("q8_0", 8, 32, 34, 127 * _LARGEST_FLOAT16),
    # The largest finite bfloat16, which is the upper half of this float32.
    ElementType("bf16", 30, 1, 2, float(np.uint32(0x7F7F0000).view(np.float32))),
)
# Types llama.cpp offers for a cache that are not read here: known by name, so that a refusal can say it.
OTHER_TYPES = {3: "q4_1", 6: "q5_0", 7: "q5_1", 20: "iq4_nl"}


def _known() -> str:
    return ", ".join(each.name for each in ELEMENT_TYPES)


def row_bytes(kind: ElementType, elements: int) -> int:
    """Return how many bytes a row of values takes.

    Raises:
        UsageError: If the row does not fill whole blocks.
    """
    blocks, rest = divmod(elements, kind.values_per_block)
    if rest or elements < 1:
        raise UsageError(
            f"Rows of {elements} values cannot be stored as {kind.name}, in blocks of {kind.values_per_block}.",
            "Choose f16, bf16 or f32, which take any number.",
        )
    return blocks * kind.bytes_per_block


def encode(rows: NDArray[np.float32], kind: ElementType) -> NDArray[np.uint8]:
    """Return the bytes of rows of numbers, rounded as llama.cpp's reference code does.

    Args:
        rows: float32 `[..., elements]`.
        kind: The type to store them as; with `f32`, nothing is copied if the rows are contiguous.

    Returns:
        uint8 `[..., row_bytes]`.

    Raises:
        UsageError: If a number is NaN or too large for the type, or rows do not fill whole blocks.
    """
    width = row_bytes(kind, rows.shape[-1])
    if rows.size:
        # NaN comes through minimum, maximum and the comparison.
        magnitude = float(np.maximum(-rows.min(), rows.max()))
        if not magnitude <= kind.largest:
            raise UsageError(
                f"A number of magnitude {magnitude:g} cannot be stored as {kind.name}, which ends at {kind.largest:g}.",
                "A sound cache has no such numbers in float16; otherwise choose bf16 or f32.",
            )
    flat = np.ascontiguousarray(rows, "<f4").reshape(-1)
    if kind.name == "f32":
        return flat.view(np.uint8).reshape(*rows.shape[:-1], width)
    out = np.empty(flat.size // kind.values_per_block * kind.bytes_per_block, np.uint8)
    chunk = CHUNK_VALUES // kind.values_per_block * kind.bytes_per_block
    _convert(_ENCODERS[kind.name], flat, CHUNK_VALUES, out, chunk)
    return out.reshape(*rows.shape[:-1], width)


def decode(data: NDArray[np.uint8], kind: ElementType, elements: int) -> NDArray[np.float32]:
    """Return the numbers in rows of bytes; those of a damaged cache may be NaN or infinite.

    Args:
        data: uint8 `[..., row_bytes]`.
        kind: The type they are stored as; with `f32`, nothing is copied if the rows are contiguous.
        elements: Values of a row.

    Returns:
        float32 `[..., elements]`.

    Raises:
        UsageError: If the rows have another number of bytes than such rows take.
    """
    width = row_bytes(kind, elements)
    if data.shape[-1] != width:
        raise UsageError(
            f"Rows of {data.shape[-1]} bytes do not hold {elements} values of {kind.name}, which take {width}.",
            "Give the number of values that one row has: kv_heads * head_dim.",
        )
    flat = np.ascontiguousarray(data).reshape(-1)
    if kind.name == "f32":
        return flat.view("<f4").reshape(*data.shape[:-1], elements)
    out = np.empty(data.size // kind.bytes_per_block * kind.values_per_block, np.float32)
    chunk = CHUNK_VALUES // kind.values_per_block * kind.bytes_per_block
    _convert(_DECODERS[kind.name], flat, chunk, out, CHUNK_VALUES)
    return out.reshape(*data.shape[:-1], elements)


def _convert(by: Callable[[Any], Any], source: NDArray[Any], step: int, out: NDArray[Any], out_step: int) -> None:
    """Fill `out` from `source` chunk by chunk, `step` items of one making `out_step` items of the other."""
    # A damaged or a vanishing scale makes NaN on the way; what comes of it is decided where the cache is checked.
    with np.errstate(all="ignore"):
        for at in range(-(-source.size // step)):
            out[at * out_step : (at + 1) * out_step] = by(source[at * step : (at + 1) * step])


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round to nearest, ties to even, as `ggml_compute_fp32_to_bf16` does; values are known to be finite."""
    bits = values.view(np.uint32)
    rounded = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    return rounded.astype("<u2").view(np.uint8)


def _from_bfloat16(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _quantise(name: str) -> Callable[[NDArray[np.float32]], NDArray[np.uint8]]:
    def by(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        from gguf import GGMLQuantizationType, quants  # An eighth of a second, which only quantised caches cost.

        # One long row: gguf works on 16 rows at a time, which for a cache's short rows is two to three times slower.
        found: NDArray[np.uint8] = quants.quantize(values[None], GGMLQuantizationType[name.upper()])[0]
        return found

    return by


def _dequantise(name: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    def by(data: NDArray[np.uint8]) -> NDArray[np.float32]:
        from gguf import GGMLQuantizationType, quants

        found: NDArray[np.float32] = quants.dequantize(data[None], GGMLQuantizationType[name.upper()])[0]
        return found

    return by


_ENCODERS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.uint8]]] = {
    "f16": lambda values: values.astype("<f2").view(np.uint8),
    "bf16": _to_bfloat16,
    "q4_0": _quantise("q4_0"),
    "q8_0": _quantise("q8_0"),
}
_DECODERS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    "f16": lambda data: data.view("<f2").astype(np.float32),
    "bf16": _from_bfloat16,
    "q4_0": _dequantise("q4_0"),
    "q8_0": _dequantise("q8_0"),
}


def rotation_size(kind: ElementType, head_dim: int, part: Literal["keys", "values"]) -> int:
    """Return the size of the blocks that llama.cpp rotates in a cache of this type, 0 if it rotates nothing.

    Source: llama.cpp, pull request 21038. Keys are rotated in the largest blocks that fit a head, values in the
    smallest. The environment variable `LLAMA_ATTN_ROT_DISABLE` of the process that made the cache switches it off.
    """
    if not kind.quantised or head_dim < 1 or head_dim % SMALLEST_ROTATION:
        return 0
    # The lowest bit that is set is the largest power of two that divides.
    return head_dim & -head_dim if part == "keys" else SMALLEST_ROTATION


def hadamard(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return values with each block of the last axis rotated; rotating twice gives the values back.

    Args:
        values: float32 `[..., head_dim]`, or whole rows of heads.
        size: Of a block, as `rotation_size` tells it; with 0 the values are returned as they are.

    Raises:
        UsageError: If the size is no power of two from 64 to 1024, or does not divide the last axis.
    """
    if size == 0:
        return values
    if not is_rotation(size) or values.shape[-1] % size:
        raise UsageError(
            f"Heads of {values.shape[-1]} values cannot be rotated in blocks of {size}.",
            f"A block is a power of two from {SMALLEST_ROTATION} to {LARGEST_ROTATION} that divides the head.",
        )
    rotated: NDArray[np.float32] = (values.reshape(-1, size) @ _sylvester(size)).reshape(values.shape)
    return rotated


def is_rotation(size: int) -> bool:
    """Tell whether this is a size in which llama.cpp rotates: a power of two from 64 to 1024."""
    return SMALLEST_ROTATION <= size <= LARGEST_ROTATION and size & (size - 1) == 0


@cache
def _sylvester(size: int) -> NDArray[np.float32]:
    """Return the normalised Hadamard matrix in Sylvester's order: its entry (i, j) has the sign (-1)^|i AND j|."""
    index = np.arange(size, dtype=np.uint32)
    odd = np.bitwise_count(index[:, None] & index) & 1
    matrix: NDArray[np.float32] = (np.where(odd, -1.0, 1.0) / np.sqrt(size)).astype(np.float32)
    matrix.setflags(write=False)
    return matrix
