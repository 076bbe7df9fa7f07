"""Numbers in llama.cpp's bytes: each type against a slow way to write it, the rotation against its definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from unspoken.errors import UsageError
from unspoken.transforms.blocks import (
    CHUNK_VALUES,
    ELEMENT_TYPES,
    ElementType,
    decode,
    encode,
    hadamard,
    rotation_size,
    row_bytes,
)

Rows = NDArray[np.float32]
NAMES = [kind.name for kind in ELEMENT_TYPES]
QUANTISED = ["q4_0", "q8_0"]
f32 = np.float32

# No conversion may leave a warning behind, whatever the numbers.
pytestmark = pytest.mark.filterwarnings("error")


def numbers(largest: float) -> st.SearchStrategy[float]:
    """Zero, or numbers whose scale is a normal float32 too."""
    positive = st.floats(min_value=f32(1e-30).item(), max_value=largest, width=32)
    return st.just(0.0) | positive | positive.map(lambda number: -number)


def rows(largest: float = 3e4, width: int = 32) -> st.SearchStrategy[Rows]:
    """A few rows of whole blocks, or of any length if blocks have one value."""
    return st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
        lambda shape: st_numpy.arrays(np.float32, (shape[0], shape[1] * width), elements=numbers(largest))
    )


def ordinary(count: int, elements: int, seed: int = 0) -> Rows:
    """Numbers as they are in a cache: around zero, with some far out."""
    generator = np.random.default_rng(seed)
    found: Rows = (generator.standard_normal((count, elements)) * generator.choice([1, 1, 1, 20], elements)).astype(f32)
    return found


def slow_q8_0(block: Rows) -> bytes:
    """One block: a scale that makes the largest magnitude 127, and 32 integers rounded half away from zero."""
    scale = f32(max(abs(x) for x in block)) / f32(127)
    inverse = f32(1) / scale if scale else f32(0)
    integers = [math.copysign(math.floor(abs(float(x * inverse)) + 0.5), float(x)) for x in block]
    return np.float16(scale).tobytes() + np.array(integers, np.int8).tobytes()


def slow_q4_0(block: Rows) -> bytes:
    """One block: a scale that makes the number of largest magnitude -8, and two halves of 16 in the nibbles."""
    extreme = block[0]
    for x in block:
        if abs(x) > abs(extreme):
            extreme = x
    scale = extreme / f32(-8)
    inverse = f32(1) / scale if scale else f32(0)
    integers = [min(15, int(f32(x * inverse) + f32(8.5))) for x in block]
    return np.float16(scale).tobytes() + bytes(integers[i] | integers[i + 16] << 4 for i in range(16))


def slow_from_q8_0(data: bytes) -> list[np.float32]:
    scale = np.frombuffer(data[:2], np.float16)[0].astype(f32)
    return [scale * f32(integer) for integer in np.frombuffer(data[2:], np.int8)]


def slow_from_q4_0(data: bytes) -> list[np.float32]:
    scale = np.frombuffer(data[:2], np.float16)[0].astype(f32)
    nibbles = [byte & 15 for byte in data[2:]] + [byte >> 4 for byte in data[2:]]
    return [scale * f32(nibble - 8) for nibble in nibbles]


SLOW: dict[str, Callable[[Rows], bytes]] = {"q4_0": slow_q4_0, "q8_0": slow_q8_0}
SLOW_BACK: dict[str, Callable[[bytes], list[np.float32]]] = {"q4_0": slow_from_q4_0, "q8_0": slow_from_q8_0}


def sylvester(size: int) -> NDArray[np.float64]:
    """The normalised matrix by its recursion: H of 2n is [[H, H], [H, -H]]."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(size)


@pytest.mark.parametrize("name", QUANTISED)
@given(data=st.data())
def test_quantised_blocks_are_the_bytes_that_the_slow_way_writes(name: str, data: st.DataObject) -> None:
    numbers = data.draw(rows())
    expected = b"".join(SLOW[name](block) for block in numbers.reshape(-1, 32))
    assert encode(numbers, ElementType.named(name)).tobytes() == expected


@pytest.mark.parametrize("name", QUANTISED)
@given(data=st.data())
def test_quantised_blocks_are_read_as_the_slow_way_reads_them(name: str, data: st.DataObject) -> None:
    kind = ElementType.named(name)
    scales = data.draw(st_numpy.arrays(np.float16, (3, 1), elements=st.floats(-1000, 1000, width=16)))
    integers = data.draw(st_numpy.arrays(np.uint8, (3, kind.bytes_per_block - 2)))
    blocks = np.concatenate([scales.view(np.uint8), integers], axis=1)
    expected = [number for block in blocks for number in SLOW_BACK[name](block.tobytes())]
    assert decode(blocks.reshape(1, -1), kind, 96).tolist() == [expected]


@given(rows())
def test_q8_0_is_off_by_half_a_step_at_most(numbers: Rows) -> None:
    kind = ElementType.named("q8_0")
    back = decode(encode(numbers, kind), kind, numbers.shape[1])
    magnitude = np.abs(numbers.reshape(-1, 32)).max(axis=1, keepdims=True).astype(np.float64)
    # Half a step, and the rounding of the scale to float16: 2**-11 of it, or 2**-25 where float16 has no more bits.
    bound = magnitude / 127 / 2 * (1 + 1e-5) + 127 * np.maximum(magnitude / 127 * 2**-11, 2**-25)
    assert (np.abs(back - numbers).reshape(-1, 32) <= bound).all()


@given(rows())
def test_q4_0_is_off_by_half_a_step_or_a_whole_one_at_its_far_end(numbers: Rows) -> None:
    kind = ElementType.named("q4_0")
    blocks = numbers.reshape(-1, 32).astype(np.float64)
    back = decode(encode(numbers, kind), kind, numbers.shape[1]).reshape(-1, 32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    step = np.abs(extreme) / 8
    # Integers go from -8, which the extreme has, to 7: what would be 7.5 to 8 is cut to 7.
    far = -blocks * np.sign(extreme) > 7.5 * step
    bound = np.where(far, step, step / 2) * (1 + 1e-5) + 8 * np.maximum(step * 2**-11, 2**-25)
    assert (np.abs(back - blocks) <= bound).all()


@given(rows(largest=float(np.finfo(f32).max), width=1))
def test_f32_is_the_numbers_own_bytes(numbers: Rows) -> None:
    kind = ElementType.named("f32")
    assert encode(numbers, kind).tobytes() == numbers.tobytes()
    assert decode(encode(numbers, kind), kind, numbers.shape[1]).tobytes() == numbers.tobytes()


def test_f32_copies_nothing() -> None:
    kind, numbers = ElementType.named("f32"), ordinary(3, 64)
    data = encode(numbers, kind)
    assert np.shares_memory(data, numbers)
    assert np.shares_memory(decode(data, kind, 64), numbers)


@pytest.mark.parametrize(("name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
@given(data=st.data())
def test_half_precision_is_rounded_as_torch_rounds_it(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    kind = ElementType.named(name)
    numbers = data.draw(rows(largest=f32(kind.largest).item(), width=1))
    expected = torch.from_numpy(numbers).to(dtype)
    assert encode(numbers, kind).tobytes() == expected.view(torch.uint8).numpy().tobytes()
    assert decode(encode(numbers, kind), kind, numbers.shape[1]).tobytes() == expected.float().numpy().tobytes()


def test_bfloat16_rounds_ties_to_even() -> None:
    ties = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x3F808001, 0x3F807FFF], np.uint32).view(f32)
    found = encode(ties[None], ElementType.named("bf16")).view(np.uint16)
    assert found.tolist() == [[0x3F80, 0x3F82, 0xBF80, 0x3F81, 0x3F80]]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_stored_once_is_stored_again_as_the_same_numbers(name: str) -> None:
    kind, numbers = ElementType.named(name), ordinary(7, 128)
    once = decode(encode(numbers, kind), kind, 128)
    again = decode(encode(once, kind), kind, 128)
    assert np.allclose(again, once, rtol=2**-10, atol=0)
    assert kind.quantised or np.array_equal(again, once)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("elements", [96, CHUNK_VALUES - 32])
def test_chunks_leave_no_seam(name: str, elements: int) -> None:
    kind = ElementType.named(name)
    numbers = ordinary(2 * CHUNK_VALUES // elements + 3, elements)
    data = encode(numbers, kind)
    assert data.shape == (len(numbers), row_bytes(kind, elements))
    assert np.array_equal(data, np.concatenate([encode(row[None], kind) for row in numbers]))
    back = decode(data, kind, elements)
    assert np.array_equal(back, np.concatenate([decode(row[None], kind, elements) for row in data]))


@pytest.mark.parametrize("name", NAMES)
def test_memory_may_lie_in_any_order_and_at_any_byte(name: str) -> None:
    kind, numbers = ElementType.named(name), ordinary(64, 5)
    data = encode(np.ascontiguousarray(numbers.T), kind)
    assert np.array_equal(encode(numbers.T, kind), data)
    shifted = np.empty(data.size + 1, np.uint8)[1:].reshape(data.shape)
    shifted[...] = data
    assert np.array_equal(decode(shifted, kind, 64), decode(data, kind, 64))


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_stored_as_they_are_one_by_one(name: str) -> None:
    kind, numbers = ElementType.named(name), ordinary(6, 64).reshape(2, 3, 64)
    data = encode(numbers, kind)
    assert data.shape == (2, 3, row_bytes(kind, 64))
    assert np.array_equal(data[1], encode(numbers[1], kind))
    assert np.array_equal(decode(data, kind, 64)[1], decode(data[1], kind, 64))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_are_no_bytes(name: str) -> None:
    kind = ElementType.named(name)
    data = encode(np.empty((0, 64), f32), kind)
    assert data.shape == (0, row_bytes(kind, 64))
    assert decode(data, kind, 64).shape == (0, 64)


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("number", [1e-40, 1e-37, 1e-10])
def test_numbers_too_small_for_a_scale_become_zero(name: str, number: float) -> None:
    kind = ElementType.named(name)
    assert not decode(encode(np.full((1, 32), number, f32), kind), kind, 32).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(name: str, number: float) -> None:
    numbers = ordinary(3, 64)
    numbers[1, 40] = number
    with pytest.raises(UsageError, match=r"A number of magnitude (nan|inf) cannot be stored"):
        encode(numbers, ElementType.named(name))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "f32"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_number_fits_and_the_next_is_refused(name: str, sign: int) -> None:
    kind = ElementType.named(name)
    numbers = np.zeros((1, 32), f32)
    numbers[0, 5] = sign * kind.largest
    assert np.isfinite(decode(encode(numbers, kind), kind, 32)).all()
    numbers[0, 5] = np.nextafter(numbers[0, 5], f32(sign * math.inf))
    with pytest.raises(UsageError, match=f"cannot be stored as {name}"):
        encode(numbers, kind)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(min_size=136, max_size=136))
def test_any_bytes_can_be_read_as_numbers(name: str, data: bytes) -> None:
    kind = ElementType.named(name)
    elements = 4 * 32 if kind.quantised else 32
    decode(np.frombuffer(data, np.uint8)[None, : row_bytes(kind, elements)], kind, elements)


@pytest.mark.parametrize("name", NAMES)
def test_types_are_found_by_name_and_number_and_have_ggmls_sizes(name: str) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind, known = ElementType.named(name), GGMLQuantizationType[name.upper()]
    assert ElementType.numbered(kind.number) is kind
    assert kind.number == known.value
    assert (kind.values_per_block, kind.bytes_per_block) == GGML_QUANT_SIZES[known]
    assert kind.quantised == (name in QUANTISED)


def test_unknown_types_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"'q2_k' for a llama.cpp cache. Choose one of f32, f16, q4_0, q8_0, bf16"):
        ElementType.named("q2_k")
    with pytest.raises(UsageError, match=r"type 7 \(q5_1\) cannot be read"):
        ElementType.numbered(7)
    with pytest.raises(UsageError, match=r"type -1 \(unknown\) cannot be read"):
        ElementType.numbered(-1)


def test_rows_fill_whole_blocks() -> None:
    assert [row_bytes(kind, 192) for kind in ELEMENT_TYPES] == [768, 384, 108, 204, 384]
    for elements in (0, -32, 33):
        with pytest.raises(UsageError, match=f"Rows of {elements} values cannot be stored as q8_0"):
            row_bytes(ElementType.named("q8_0"), elements)
    with pytest.raises(UsageError, match="Rows of 33 values"):
        encode(ordinary(1, 33), ElementType.named("q4_0"))
    with pytest.raises(UsageError, match="Rows of 34 bytes do not hold 64 values of q8_0, which take 68"):
        decode(np.zeros((1, 34), np.uint8), ElementType.named("q8_0"), 64)


@pytest.mark.parametrize("size", [64, 128, 256, 512, 1024])
def test_rotating_is_multiplying_each_block_by_sylvesters_matrix(size: int) -> None:
    values = ordinary(6, 2 * size).reshape(2, 3, 2 * size)
    expected = (values.astype(np.float64).reshape(2, 3, 2, size) @ sylvester(size)).reshape(values.shape)
    rotated = hadamard(values, size)
    assert rotated.dtype == np.float32
    assert np.abs(rotated - expected).max() <= 1e-5 * np.abs(values).max()


@given(rows(width=64))
def test_rotating_twice_gives_the_values_back(values: Rows) -> None:
    there = hadamard(values, 64)
    assert np.abs(hadamard(there, 64) - values).max() <= 1e-5 * np.abs(values).max()
    assert np.linalg.norm(there.astype(np.float64)) == pytest.approx(np.linalg.norm(values.astype(np.float64)))


def test_blocks_of_no_size_are_not_rotated() -> None:
    values = ordinary(2, 96)
    assert hadamard(values, 0) is values


@pytest.mark.parametrize("size", [-64, 1, 32, 63, 96, 128, 2048])
def test_sizes_that_cannot_rotate_a_head_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"Heads of 192 values cannot be rotated in blocks of {size}"):
        hadamard(ordinary(1, 192), size)


@pytest.mark.parametrize("head_dim", [-64, 0, 32, 64, 80, 96, 128, 192, 256, 320, 384, 512, 576, 1024])
@pytest.mark.parametrize("name", NAMES)
def test_keys_are_rotated_in_the_largest_blocks_and_values_in_the_smallest(name: str, head_dim: int) -> None:
    kind, keys, values = ElementType.named(name), 0, 0
    if kind.quantised and head_dim > 0 and head_dim % 64 == 0:
        keys = values = 64
        while head_dim % (2 * keys) == 0:
            keys *= 2
    assert (rotation_size(kind, head_dim, "keys"), rotation_size(kind, head_dim, "values")) == (keys, values)


def test_rotating_makes_quantising_outliers_less_harmful() -> None:
    kind, values = ElementType.named("q4_0"), ordinary(200, 64, seed=1)
    values[:, 3] *= 50
    plain = decode(encode(values, kind), kind, 64)
    rotated = hadamard(decode(encode(hadamard(values, 64), kind), kind, 64), 64)
    others = np.arange(64) != 3
    assert np.linalg.norm((rotated - values)[:, others]) < np.linalg.norm((plain - values)[:, others])
