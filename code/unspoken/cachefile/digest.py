"""Hash a tensor's bytes and see whether they are numbers a model could have made, in one pass over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from unspoken.layout import BLOCK_BYTES

# Small enough to stay in a core's second-level cache between hashing and checking, large enough to release the
# interpreter lock for most of the time; ggml's blocks of 34 and 18 bytes are not torn.
CHUNK_BYTES = 1 << 20
# An IEEE number is NaN or infinite if all bits of its exponent are set. Such numbers without a sign are the ones from
# the first limit on, if all are seen as signed integers, and those with a sign the ones from the second limit on, if
# all are seen as unsigned integers: two maxima find them, and neither needs memory of its own.
_NOT_FINITE: dict[str, tuple[type[np.signedinteger[Any]], int, type[np.unsignedinteger[Any]], int]] = {
    "float32": (np.int32, 0x7F800000, np.uint32, 0xFF800000),
    "bfloat16": (np.int16, 0x7F80, np.uint16, 0xFF80),
    "float16": (np.int16, 0x7C00, np.uint16, 0xFC00),
}


def digest_and_check(data: NDArray[np.uint8], dtype: str) -> tuple[str, bool]:
    """Return the BLAKE3 digest of some bytes in hex, and whether they are sound.

    Args:
        data: The bytes of one tensor.
        dtype: What its elements are, a key of `unspoken.layout.SIZES`. Floats are sound if all are finite, "int32" if
            none is negative, the blocks of "q8_0" and "q4_0" if their scales are finite, "uint8" always.
    """
    hasher = blake3()
    sound = True
    step = CHUNK_BYTES - CHUNK_BYTES % BLOCK_BYTES.get(dtype, 1)
    for at in range(0, len(data), step):
        chunk = data[at : at + step]
        hasher.update(chunk.data)
        sound = sound and _sound(chunk, dtype)
    return hasher.hexdigest(), sound


def _sound(chunk: NDArray[np.uint8], dtype: str) -> bool:
    if dtype == "uint8":
        return True
    if dtype == "int32":
        return bool(chunk.view(np.int32).min() >= 0)
    if dtype in BLOCK_BYTES:  # A block begins with its scale.
        scales = chunk.reshape(-1, BLOCK_BYTES[dtype])[:, :2]
        return _sound(np.ascontiguousarray(scales).reshape(-1), "float16")
    signed, limit, unsigned, limit_with_sign = _NOT_FINITE[dtype]
    return bool(chunk.view(signed).max() < limit and chunk.view(unsigned).max() < limit_with_sign)
