"""A GGUF header is read as gguf reads it, long lists stepped over; what does not fit its file is refused at once."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unspoken.ggufheader import KEPT_ITEMS, LARGEST_ARRAY, LARGEST_COUNT, HeaderReader

LONG = KEPT_ITEMS + 1
Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Write a small file with fields of each kind, and with those given."""

    def make(**more: Any) -> Path:
        writer = GGUFWriter(tmp_path / "model.gguf", "llama")
        writer.add_block_count(2)
        writer.add_float32("a.float", 0.5)
        writer.add_bool("a.bool", True)
        writer.add_string("a.text", "naïve 東京")
        writer.add_array("a.short", ["one", "two"])
        for name, value in more.items():
            writer.add_array(name, value)
        writer.add_uint32("the.last", 7)
        writer.add_tensor("first", np.arange(64, dtype=np.float32).reshape(2, 32))
        writer.add_tensor("second", np.arange(5, dtype=np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "model.gguf"

    return make


def contents(reader: GGUFReader) -> dict[str, Any]:
    """What a reader found, fields and tensors."""
    fields = {name: field.contents() for name, field in reader.fields.items() if field.data}
    tensors = {each.name: (each.tensor_type, each.shape.tolist(), each.data.tolist()) for each in reader.tensors}
    return {**fields, **tensors}


def packed(*fields: bytes, tensors: int = 0) -> bytes:
    """A header of fields as they are given."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(fields)) + b"".join(fields)


def field(kind: int, value: bytes, name: bytes = b"x") -> bytes:
    """One field's name, kind and bytes."""
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def test_a_header_is_read_as_gguf_reads_it(written: Write) -> None:
    path = written(numbers=list(range(300)), flags=[True] * 20)
    assert contents(HeaderReader(path)) == contents(GGUFReader(path))


LISTS: dict[str, list[Any]] = {
    "texts": [f"token {at}" for at in range(LONG)],
    "empty_texts": [""] * LONG,
    "numbers": list(range(LONG)),
    "floats": [0.5] * LONG,
    "flags": [True, False] * LONG,
}


@pytest.mark.parametrize("name", LISTS)
def test_a_long_list_is_stepped_over_and_what_follows_it_is_read(name: str, written: Write) -> None:
    path = written(**{name: LISTS[name], "behind": [1, 2]})
    expected = contents(GGUFReader(path))
    assert len(expected.pop(name)) >= LONG
    reader = HeaderReader(path)
    assert contents(reader) == expected
    assert reader.fields[name].types[0] == GGUFValueType.ARRAY


def test_a_list_that_is_just_short_enough_is_kept(written: Write) -> None:
    path = written(texts=["a"] * KEPT_ITEMS)
    assert contents(HeaderReader(path))["texts"] == ["a"] * KEPT_ITEMS


def test_every_truncation_of_a_header_is_refused(written: Write, tmp_path: Path) -> None:
    whole = written(texts=LISTS["texts"][: KEPT_ITEMS + 1]).read_bytes()
    broken = tmp_path / "broken.gguf"
    start = whole.index(b"second") + 40
    padding = 32 - 10  # The last tensor has five numbers of two bytes each.
    for kept in (*range(0, 300, 7), *range(300, start, 1999), start - 20, len(whole) - padding - 1):
        broken.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"^it is (no GGUF file|shorter than its header says)$"):
            HeaderReader(broken)


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF" + bytes(19), b"PK\3\4" + bytes(60), bytes(100)])
def test_what_is_no_gguf_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="it is no GGUF file"):
        HeaderReader(path)


@pytest.mark.parametrize("count", [LARGEST_COUNT + 1, 1 << 40, (1 << 64) - 1])
def test_counts_no_model_has_are_refused_before_they_are_walked(count: int, tmp_path: Path) -> None:
    path = tmp_path / "forged.gguf"
    for counts in ((count, 1), (1, count)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(1000))
        with pytest.raises(ValueError, match="it claims more tensors or fields than a model has"):
            HeaderReader(path)


@pytest.mark.parametrize("length", [LARGEST_ARRAY + 1, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("kind", [GGUFValueType.STRING, GGUFValueType.UINT8, GGUFValueType.FLOAT64])
def test_lists_no_model_has_are_refused_before_they_are_walked(
    kind: GGUFValueType, length: int, tmp_path: Path
) -> None:
    path = tmp_path / "forged.gguf"
    path.write_bytes(packed(field(9, struct.pack("<IQ", kind, length)), tensors=0) + bytes(1000))
    with pytest.raises(ValueError, match=f"a list in its header claims {length} items"):
        HeaderReader(path)


@pytest.mark.parametrize("length", [3, LONG, LARGEST_ARRAY])
@pytest.mark.parametrize("kind", [GGUFValueType.STRING, GGUFValueType.UINT8, GGUFValueType.FLOAT64])
def test_lists_longer_than_their_file_are_refused(kind: GGUFValueType, length: int, tmp_path: Path) -> None:
    path = tmp_path / "forged.gguf"
    tail = struct.pack("<Q", 1 << 62) * 2 if kind is GGUFValueType.STRING else b""
    path.write_bytes(packed(field(9, struct.pack("<IQ", kind, length) + tail), field(4, bytes(4), b"y")))
    with pytest.raises(ValueError, match="it is shorter than its header says"):
        HeaderReader(path)


@pytest.mark.parametrize("length", [2, LONG])
@pytest.mark.parametrize("size", [1000, 1 << 40, (1 << 64) - 1])
def test_texts_longer_than_their_file_are_refused(length: int, size: int, tmp_path: Path) -> None:
    path = tmp_path / "forged.gguf"
    for value in (field(8, struct.pack("<Q", size)), field(9, struct.pack("<IQQ", 8, length, size))):
        path.write_bytes(packed(value) + b"abc")
        with pytest.raises(ValueError, match="it is shorter than its header says"):
            HeaderReader(path)


@pytest.mark.parametrize("kind", [99, 2**32 - 1])
def test_unknown_kinds_are_refused(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "forged.gguf"
    for value in (
        field(kind, bytes(8)),
        field(9, struct.pack("<IQ", kind, LONG)),
        field(9, struct.pack("<IQ", kind, 2)),
    ):
        path.write_bytes(packed(value) + bytes(200_000))
        with pytest.raises(ValueError, match=r"not a valid GGUFValueType|Unknown|unknown"):
            HeaderReader(path)


def test_a_long_list_of_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "forged.gguf"
    path.write_bytes(packed(field(9, struct.pack("<IQ", GGUFValueType.ARRAY, LONG))) + bytes(200_000))
    with pytest.raises(ValueError):  # noqa: PT011 - any words will do
        HeaderReader(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_is_refused_or_read_and_never_walked_for_long(data: st.DataObject, written: Write) -> None:
    path = written(texts=["some", "words"], numbers=[1, 2, 3])
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        reader = HeaderReader(path)
    except Exception as error:
        assert not isinstance(error, (MemoryError, RecursionError))  # noqa: PT017 - whoever reads refuses any other
    else:
        assert len(reader.tensors) <= 2
