"""One pass over a tensor's bytes: the digest everybody else computes of them, and no bad number overlooked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blake3 import blake3
from numpy.typing import NDArray

from unspoken.cache import DTYPES
from unspoken.cachefile.digest import CHUNK_BYTES, digest_and_check

# Official test vectors of BLAKE3, `test_vectors.json`: the bytes 0, 1, ..., 250, 0, 1, ... up to a length.
VECTORS = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
}


def _raw(numbers: torch.Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = numbers.view(torch.uint8).numpy()
    return found


@pytest.mark.parametrize("length", sorted(VECTORS))
def test_the_digest_is_blake3_as_its_authors_compute_it(length: int) -> None:
    data = (np.arange(length) % 251).astype(np.uint8)
    assert digest_and_check(data, "float16")[0] == VECTORS[length]


@pytest.mark.parametrize("extra", [-4, 0, 4, CHUNK_BYTES + 4])
def test_chunks_give_the_digest_of_the_whole(extra: int) -> None:
    data = np.random.default_rng(1).integers(0, 256, CHUNK_BYTES + extra, dtype=np.uint8)
    assert digest_and_check(data, "float32")[0] == blake3(data.tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_of_all_numbers_of_16_bits_those_that_are_not_finite_are_found(dtype: str) -> None:
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(DTYPES[dtype])
    finite = numbers.isfinite()
    assert digest_and_check(_raw(numbers[finite]), dtype)[1]
    for bad in numbers[~finite]:
        assert not digest_and_check(_raw(torch.cat([numbers[finite], bad[None]])), dtype)[1]


@pytest.mark.parametrize("sign", [0, 1 << 31])
@pytest.mark.parametrize("fraction", [0, 1, 1 << 22, (1 << 23) - 1])
def test_of_numbers_of_32_bits_those_with_the_largest_exponent_are_found(sign: int, fraction: int) -> None:
    bits = np.array([sign | exponent << 23 | fraction for exponent in range(256)], np.uint32)
    finite = np.isfinite(bits.view(np.float32))
    assert digest_and_check(bits[finite].view(np.uint8), "float32")[1]
    assert [digest_and_check(each.reshape(1).view(np.uint8), "float32")[1] for each in bits] == finite.tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("place", [0, CHUNK_BYTES - 4, CHUNK_BYTES, 2 * CHUNK_BYTES + 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_is_found_wherever_it_stands(dtype: str, place: int, value: float) -> None:
    numbers = torch.zeros((2 * CHUNK_BYTES + 8) // DTYPES[dtype].itemsize, dtype=DTYPES[dtype])
    assert digest_and_check(_raw(numbers), dtype)[1]
    numbers[place // DTYPES[dtype].itemsize] = value
    assert not digest_and_check(_raw(numbers), dtype)[1]


@pytest.mark.parametrize("value", [-1, -(2**31)])
def test_a_negative_position_is_found(value: int) -> None:
    positions = torch.tensor([0, 2**31 - 1, 7], dtype=torch.int32)
    assert digest_and_check(_raw(positions), "int32")[1]
    positions[1] = value
    assert not digest_and_check(_raw(positions), "int32")[1]
