"""The sizes of a model as its GGUF file tells them, and one clear error where it tells none."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from unspoken.errors import ModelNotFound, UnsupportedModel
from unspoken.ggufheader import HeaderReader
from unspoken.plan.gguf_sizes import read_gguf
from unspoken.plan.shape import Shape

from .files import (
    CONTEXT,
    FEED_FORWARD,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    MATRICES,
    VOCABULARY,
    write_gguf,
)

TRUTH = Shape("tiny", LAYERS, HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, CONTEXT)


def test_a_file_tells_the_shape_and_where_its_bytes_lie(tmp_path: Path) -> None:
    shape, weights = read_gguf(write_gguf(tmp_path / "tiny.gguf"))
    assert shape.counted == TRUTH.parameters  # Counted in the file, and by the formula for a plain transformer.
    assert (shape.layers, shape.kv_heads, shape.head_dim, shape.vocabulary) == (LAYERS, KV_HEADS, HEAD_DIM, VOCABULARY)
    assert (shape.hidden, shape.feed_forward, shape.heads, shape.context) == (HIDDEN, FEED_FORWARD, HEADS, CONTEXT)
    matrices = sum(rows[0] * rows[1] for rows in MATRICES.values() if len(rows) == 2)
    assert weights.layer_bytes == (2 * matrices + 2 * 4 * HIDDEN,) * LAYERS
    assert weights.embedding_bytes == 2 * VOCABULARY * HIDDEN
    assert weights.output_bytes == 2 * VOCABULARY * HIDDEN + 4 * HIDDEN
    assert (weights.name, weights.tied, weights.estimated) == ("F16", False, False)


def test_without_an_output_matrix_the_embedding_is_it(tmp_path: Path) -> None:
    shape, weights = read_gguf(write_gguf(tmp_path / "tiny.gguf", tied=True))
    assert (shape.tied, weights.tied) == (True, True)
    assert weights.output_bytes == 4 * HIDDEN
    assert shape.parameters == TRUTH.parameters - TRUTH.embedding_parameters


def test_the_kind_of_quantisation_is_the_files_own_word(tmp_path: Path) -> None:
    _, weights = read_gguf(write_gguf(tmp_path / "tiny.gguf", general__file_type=15))
    assert weights.name == "Q4_K_M"
    _, unknown = read_gguf(write_gguf(tmp_path / "tiny.gguf", general__file_type=9999))
    assert unknown.name == "F16"


def test_sizes_that_follow_from_others_may_be_missing(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "attention__key_length": None, "attention__value_length": None, "attention__head_count_kv": None,
    }  # fmt: skip
    shape, _ = read_gguf(write_gguf(tmp_path / "tiny.gguf", **changes))
    assert (shape.head_dim, shape.kv_heads) == (HIDDEN // HEADS, HEADS)


def test_heads_may_be_listed_for_each_layer_if_they_are_the_same(tmp_path: Path) -> None:
    shape, _ = read_gguf(write_gguf(tmp_path / "tiny.gguf", attention__head_count_kv=[KV_HEADS] * LAYERS))
    assert shape.kv_heads == KV_HEADS


def test_a_vocabulary_is_stepped_over(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tokens=20_000)
    shape, _ = read_gguf(path)
    assert shape.vocabulary == VOCABULARY
    reader = HeaderReader(path)
    assert len(reader.fields["tokenizer.ggml.tokens"].parts) < 10
    assert [tensor.name for tensor in reader.tensors][:2] == ["token_embd.weight", "blk.0.attn_q.weight"]
    assert bool((reader.tensors[-1].data == 1).all())  # What stands behind the vocabulary is read at its place.


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "sliding window": ({"attention__sliding_window": 4096}, "sliding window of 4096"),
    "latents": ({"attention__kv_lora_rank": 512}, "compressed latents"),
    "state": ({"ssm__state_size": 16}, "recurrent state"),
    "uneven heads": ({"attention__head_count_kv": [2, 2, 1]}, "differ in attention.head_count_kv"),
    "uneven widths": ({"attention__value_length": 16}, "keys and values differ in width"),
}


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_a_cache_that_is_not_the_same_for_every_token_is_refused_by_name(tmp_path: Path, name: str) -> None:
    changes, reason = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        read_gguf(write_gguf(tmp_path / "tiny.gguf", **changes))
    assert "'llama' models cannot be planned" in caught.value.problem


def test_a_window_of_zero_is_none(tmp_path: Path) -> None:
    assert read_gguf(write_gguf(tmp_path / "tiny.gguf", attention__sliding_window=0))[0].layers == LAYERS


INCOMPLETE: dict[str, tuple[dict[str, Any], str]] = {
    "one part of three": ({"split__count": 3}, "one of the 3 parts"),
    "too few layers": ({"layers": 2}, "holds 2 of its 3 layers"),
    "too many layers": ({"layers": 4}, "holds a layer 3, its header speaks of 3"),
    "no layers": ({"block_count": 0}, "block_count is 0"),
    "a million layers": ({"block_count": 1_000_000}, "claims 1000000 layers"),
    "no heads": ({"attention__head_count": 0}, "head_count is 0"),
    "no width": ({"embedding_length": None}, "embedding_length is None"),
    "no context": ({"context_length": None}, "context_length is None"),
}


@pytest.mark.parametrize("name", sorted(INCOMPLETE))
def test_a_file_of_no_whole_model_is_refused(tmp_path: Path, name: str) -> None:
    changes, reason = INCOMPLETE[name]
    _refused(write_gguf(tmp_path / "tiny.gguf", **changes), reason)


def _refused(path: Path, reason: str = "cannot be read as a GGUF model") -> None:
    with pytest.raises(ModelNotFound, match=reason) as caught:
        read_gguf(path)
    assert caught.value.problem.endswith(".")
    assert "\n" not in caught.value.problem
    assert caught.value.hint


def _count(raw: bytes, at: int, value: int) -> bytes:
    return raw[:at] + struct.pack("<Q", value) + raw[at + 8 :]


DAMAGED = {
    "empty": lambda raw: b"",
    "something else": lambda raw: b"PK\3\4" * 100,
    "a word of it": lambda raw: b"GGUF",
    "an old version": lambda raw: raw[:4] + struct.pack("<I", 1) + raw[8:],
    "cut in the header": lambda raw: raw[:200],
    "cut in the tensors": lambda raw: raw[:-1000],
    "a billion tensors": lambda raw: _count(raw, 8, 10**9),
    "a billion fields": lambda raw: _count(raw, 16, 10**9),
    "all fields there are, and more": lambda raw: _count(raw, 16, 2000),
    "a first field with an endless name": lambda raw: _count(raw, 24, 1 << 62),
}


@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(DAMAGED[name](path.read_bytes()))
    _refused(path)


@pytest.mark.parametrize("claimed", [5000, 1 << 23, 1 << 62])
@pytest.mark.parametrize("item", [0, 8])
def test_a_list_that_claims_more_than_the_file_holds_is_not_walked(tmp_path: Path, claimed: int, item: int) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    raw = path.read_bytes()
    at = raw.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 4
    path.write_bytes(raw[:at] + struct.pack("<IQ", item, claimed) + raw[at + 12 :])
    _refused(path)


def test_any_flipped_byte_of_a_header_is_read_or_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", layers=1, block_count=1, tokens=5)
    raw, size = path.read_bytes(), HeaderReader(path).data_offset
    problems = []
    for at in range(size):
        path.write_bytes(raw[:at] + bytes((raw[at] ^ 0xFF,)) + raw[at + 1 :])
        problems.append(_problem(path))
    assert all(problem.endswith(".") for problem in problems if problem)
    assert 0 < problems.count(None) < size / 2  # A letter of a token does not matter, most others do.


def _problem(path: Path) -> str | None:
    try:
        read_gguf(path)
    except (ModelNotFound, UnsupportedModel) as error:
        return error.problem
    return None
