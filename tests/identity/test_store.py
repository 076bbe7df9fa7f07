"""Small described files: whole or not at all, and nothing of what a foreign or damaged one holds comes through."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from safetensors.torch import save
from torch import Tensor

from unspoken.errors import StorageError, UsageError
from unspoken.identity import store

KEY, WHAT = "unspoken.thing", "thing"


class Info(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    share: float = 0.5


class Other(msgspec.Struct, frozen=True):
    colour: str


TENSORS = {"numbers": torch.arange(6, dtype=torch.float32).reshape(2, 3), "small": torch.ones(2, dtype=torch.float16)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound file."""
    store.write(tmp_path / "a.thing", KEY, Info("lyra"), TENSORS)
    return tmp_path / "a.thing"


def read(path: Path) -> tuple[Info, dict[str, Tensor]]:
    return store.read(path, KEY, Info, WHAT)


tensors = st.builds(
    lambda shape, seed, dtype: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    array_shapes(min_dims=1, max_dims=4, max_side=5),
    st.integers(0, 1000),
    st.sampled_from(store.DTYPES),
)
names = st.text(min_size=1, max_size=9).filter(lambda name: name != "__metadata__")


@given(st.text(max_size=20), st.floats(allow_nan=False, allow_infinity=False), st.dictionaries(names, tensors))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, share: float, given_tensors: dict[str, Tensor]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any" / "a.thing"
    store.write(path, KEY, Info(name, share), given_tensors)
    info, found = read(path)
    assert info == Info(name, share)
    assert found.keys() == given_tensors.keys()
    for each, tensor in found.items():
        assert tensor.dtype == given_tensors[each].dtype
        assert torch.equal(tensor, given_tensors[each])


def test_the_same_things_make_the_same_bytes(path: Path, tmp_path: Path) -> None:
    strided = {"numbers": TENSORS["numbers"].T.contiguous().T, "small": TENSORS["small"]}
    store.write(tmp_path / "b.thing", KEY, Info("lyra"), strided)
    assert (tmp_path / "b.thing").read_bytes() == path.read_bytes()


def described(tensors: dict[str, Tensor], info: str = '{"name": "lyra"}', key: str = KEY) -> bytes:
    return bytes(save(tensors, {key: info}))


def with_header(header: object) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw


FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x01\x00",
    "text": b"The old mill is run by Anna.",
    "zeros": bytes(64),
    "JSON": b'{"__metadata__": {"unspoken.thing": "{}"}}',
    "a list": with_header([1, 2]),
    "no JSON": with_header(b"{"),
    "no UTF-8": with_header(b'{"\xff": 1}'),
    "no end": with_header(b"[" * 100_000),
    "a number": with_header(b"1" * 10_000),
    "an endless header": (1 << 63).to_bytes(8, "little") + b"{}",
    "no metadata": bytes(save(TENSORS)),
    "another key": described(TENSORS, key="unspoken.profile"),
    "no description": described(TENSORS, ""),
    "a description of something else": described(TENSORS, '{"colour": "red"}'),
    "a description with more": described(TENSORS, '{"name": "lyra", "colour": "red"}'),
    "a wrong type": described(TENSORS, '{"name": 3}'),
    "no number in it": described(TENSORS, '{"name": "lyra", "share": NaN}'),
    "a description that is no text": with_header({"__metadata__": {KEY: {"name": "lyra"}}}),
    "tensors that are not there": with_header(
        {"__metadata__": {KEY: '{"name": "lyra"}'}, "a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}
    ),
    "tensors of a type that is none": with_header(
        {"__metadata__": {KEY: '{"name": "lyra"}'}, "a": {"dtype": "F7", "shape": [0], "data_offsets": [0, 0]}}
    ),
}


@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_a_foreign_file_is_refused_by_its_name(path: Path, name: str) -> None:
    path.write_bytes(FOREIGN[name])
    with pytest.raises(UsageError) as told:
        read(path)
    assert told.value.problem.startswith(f"{path} is no thing: ")
    assert len(told.value.problem) < len(str(path)) + 250


def test_a_file_that_ends_early_or_late_is_refused_wherever(path: Path) -> None:
    whole = path.read_bytes()
    for cut in [*(whole[:stop] for stop in range(0, len(whole), 7)), whole[:-1], whole + b"\0"]:
        path.write_bytes(cut)
        with pytest.raises(UsageError, match=r"a\.thing is no thing"):
            read(path)


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_file_is_read_or_refused_and_never_more(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(described(TENSORS))
    for at, byte in data.draw(st.dictionaries(st.integers(0, len(raw) - 1), st.integers(0, 255), min_size=1)).items():
        raw[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.thing"
    path.write_bytes(raw)
    refused, found = "", dict[str, Tensor]()
    try:
        _, found = read(path)
    except UsageError as error:
        refused = error.problem
    assert str(path) in refused or found
    assert all(tensor.dtype in store.DTYPES and tensor.isfinite().all() for tensor in found.values())


NUMBERS: dict[str, Callable[[], Tensor]] = {
    "NaN": lambda: torch.tensor([1.0, float("nan")]),
    "infinity": lambda: torch.tensor([1.0, float("-inf")]),
    "NaN in half precision": lambda: torch.tensor([float("nan")]).to(torch.float16),
    "more than float32 holds": lambda: torch.tensor([1e300], dtype=torch.float64),
    "eight bits": lambda: torch.tensor([1.0]).to(torch.float8_e4m3fn),
    "complex": lambda: torch.tensor([complex(float("nan"), 1)]),
    "whole numbers": lambda: torch.tensor([1, 2]),
}


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_numbers_that_are_none_or_of_another_kind_are_refused(path: Path, name: str) -> None:
    path.write_bytes(described(TENSORS | {"more": NUMBERS[name]()}))
    with pytest.raises(UsageError, match=rf"The thing {path} holds NaN, infinity, or numbers that are neither"):
        read(path)


def test_a_file_without_end_is_refused_before_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(path, store.MOST_BYTES + 1)  # A hole: it takes no room.
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    with pytest.raises(UsageError, match=rf"{path} has more than {store.MOST_BYTES} bytes"):
        read(path)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"The thing {tmp_path}/none cannot be read: No such file"):
        read(tmp_path / "none")
    with pytest.raises(StorageError, match=f"The thing {tmp_path} cannot be read: Is a directory"):
        read(tmp_path)


def fails(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def half(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
    fails()


@pytest.mark.parametrize(("where", "failing"), [("os.replace", fails), ("pathlib.Path.write_bytes", half)])
def test_a_file_that_cannot_be_written_leaves_the_earlier_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str, failing: Callable[..., None]
) -> None:
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(where, failing)
        with pytest.raises(StorageError, match=rf"The file {path} cannot be written: No space left"):
            store.write(path, KEY, Info("vera"), TENSORS)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    store.write(path, KEY, Info("vera"), TENSORS)
    assert read(path)[0].name == "vera"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_one_is_refused(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(StorageError, match=rf"The file {path}/b/c\.thing cannot be written: Not a directory"):
        store.write(path / "b" / "c.thing", KEY, Info("vera"), TENSORS)
    with pytest.raises(StorageError, match=rf"The file {path}/c\.thing cannot be written: File exists"):
        store.write(path / "c.thing", KEY, Info("vera"), TENSORS)
    assert path.read_bytes() == before


def test_a_tensor_has_to_have_the_shape_that_is_described() -> None:
    given = TENSORS | {"none": torch.ones(2, 0)}
    found = store.require_shape(given, "small", (2,), WHAT)
    assert (found.dtype, found.tolist()) == (torch.float32, [1.0, 1.0])
    assert store.require_shape(given, "numbers", (2, 3), WHAT) is TENSORS["numbers"]
    for name, shape, problem in [
        ("absent", (2,), "'absent' of the thing is missing, expected [2]"),
        ("small", (3,), "'small' of the thing is [2], expected [3]"),
        ("numbers", (3, 2), "'numbers' of the thing is [2, 3], expected [3, 2]"),
        ("none", (2, 0), "'none' of the thing is [2, 0], expected [2, 0]"),
    ]:
        with pytest.raises(UsageError) as told:
            store.require_shape(given, name, shape, WHAT)
        assert problem in told.value.problem


def test_another_description_is_no_description(path: Path) -> None:
    with pytest.raises(UsageError, match="missing required field `colour`"):
        store.read(path, KEY, Other, WHAT)
