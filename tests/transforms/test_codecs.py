"""Codecs by name; the plain ones, ggml's blocks, and what is compressed on top."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from unspoken.cache import DTYPES, KVCache
from unspoken.errors import UsageError
from unspoken.layout import BLOCK_BYTES, BLOCK_VALUES, FLOATS, PACKED, parts
from unspoken.packed import ELEMENTS, plain
from unspoken.transforms import CODECS, Codec
from unspoken.transforms.blocks import ElementType, hadamard
from unspoken.transforms.cast import Cast
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.rope import ApplyRope

from .packing import cache_of, random_cache

NAMES = sorted(CODECS)


def sylvester(size: int) -> np.ndarray:
    """The normalised Hadamard matrix by its recursion."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(size)


def same(left: KVCache, right: KVCache) -> bool:
    """Tell whether two caches are the same, bit for bit."""
    assert left.manifest == right.manifest
    return all(
        torch.equal(getattr(mine, part).view(torch.uint8), getattr(other, part).view(torch.uint8))
        for mine, other in zip(left.layers, right.layers, strict=True)
        for part in ("keys", "values", "positions")
    )


def test_codecs_are_found_by_name_and_by_alias() -> None:
    assert sorted((*FLOATS, *PACKED)) == NAMES
    for name in NAMES:
        assert isinstance(codec_named(name), Codec)
        assert codec_named(name).name == name
        assert codec_named(f"{name}+blosc2").name == f"{name}+blosc2"
    found = {alias: codec_named(alias).name for alias in ("bf16", "fp16", "fp32", "bf16+blosc2")}
    assert found == {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "bf16+blosc2": "bfloat16+blosc2"}


@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        ("int9", "no codec named 'int9'", "Did you mean 'int"),
        ("zip", "no codec named 'zip'", "Known: bfloat16"),
        ("", "no codec named ''", "Known: bfloat16"),
        ("int8+blosc", "no lossless stage named 'blosc'", "Did you mean 'blosc2'?"),
        ("int8+", "no lossless stage named ''", "Known: blosc2"),
        ("int8+blosc2+blosc2", "no lossless stage named 'blosc2+blosc2'", "blosc2"),
        ("+blosc2", "no codec named ''", "Known: bfloat16"),
    ],
)
def test_unknown_names_are_refused_with_a_guess(name: str, problem: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        codec_named(name)
    assert problem in caught.value.problem
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_plain_codecs_are_casts(name: str, dtype: str) -> None:
    cache = ApplyRope()(random_cache([9, 5], dtype=dtype))
    packed = codec_named(name).pack(cache)
    assert same(codec_named(name).unpack(packed), Cast(name)(cache))
    assert packed.bytes_held() == Cast(name)(cache).bytes_held()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [[40], [33, 70]])
def test_what_is_packed_has_the_tensors_its_manifest_tells(name: str, columns: list[int]) -> None:
    packed = codec_named(name).pack(random_cache(columns, head_dim=128))
    expected = parts(packed.manifest)
    assert packed.tensors.keys() == expected.keys()
    assert packed.manifest.dtype == name
    for part, tensor in packed.tensors.items():
        assert (tuple(tensor.shape), tensor.dtype) == (expected[part].shape, ELEMENTS[expected[part].element]), part
    held = [tensor.nbytes for part, tensor in packed.tensors.items() if "positions" not in part]
    assert packed.bytes_held() == sum(held)


def test_a_layout_knows_ggmls_blocks() -> None:
    for name, size in BLOCK_BYTES.items():
        kind = ElementType.named(name)
        assert (kind.values_per_block, kind.bytes_per_block) == (BLOCK_VALUES, size)


def test_q8_0_rotates_keys_by_heads_of_128_and_values_in_blocks_of_64() -> None:
    # A row of the matrix becomes one number when it is rotated: 127, with a scale of 1.
    keys = torch.tensor(127 * sylvester(128)[5], dtype=torch.float32).view(1, 1, 128)
    values = torch.tensor(127 * np.concatenate([np.zeros(64), sylvester(64)[37]]), dtype=torch.float32).view(1, 1, 128)
    packed = codec_named("q8_0").pack(cache_of([keys], [values]))
    blocks = {side: packed.tensors[f"layers.0.{side}"].view(4, 34) for side in ("keys", "values")}
    for side, block, place in (("keys", 0, 5), ("values", 3, 5)):  # 64 + 37 = 3 * 32 + 5
        scale = blocks[side][block, :2].clone().view(torch.float16).item()
        codes = blocks[side][block, 2:].view(torch.int8)
        assert scale == pytest.approx(1, abs=1e-3)
        assert codes[place] == 127
        assert (codes[codes != 127].abs() <= 1).all()
    back = codec_named("q8_0").unpack(packed).layers[0]
    assert torch.allclose(back.keys, keys, atol=0.02)
    assert torch.allclose(back.values, values, atol=0.02)


@pytest.mark.parametrize(("head_dim", "sizes"), [(64, (64, 64)), (128, (128, 64)), (192, (64, 64)), (32, (0, 0))])
@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_a_tokens_row_holds_its_heads_one_after_the_other(name: str, head_dim: int, sizes: tuple[int, int]) -> None:
    from unspoken.transforms.blocks import encode

    cache = random_cache([7], head_dim, heads=3)
    packed = codec_named(name).pack(cache)
    for side, size in zip(("keys", "values"), sizes, strict=True):
        numbers = getattr(cache.layers[0], side)
        for token in range(7):
            row = np.concatenate([hadamard(numbers[head, token].numpy(), size) for head in range(3)])
            assert packed.tensors[f"layers.0.{side}"][token].numpy().tobytes() == (
                encode(row[None], ElementType.named(name)).tobytes()
            )


@pytest.mark.parametrize(("name", "most"), [("q8_0", 1 / 60), ("q4_0", 1 / 4)])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_blocks_come_back_near_to_what_they_were(name: str, most: float, head_dim: int) -> None:
    cache = random_cache([50, 3], head_dim, dtype="bfloat16")
    back = codec_named(name).unpack(codec_named(name).pack(cache))
    assert back.manifest.dtype == "float32"
    for found, layer in zip(back.layers, cache.layers, strict=True):
        for side in ("keys", "values"):
            wanted = getattr(layer, side).float()
            assert (getattr(found, side) - wanted).norm() < most * wanted.norm()


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_rows_that_fill_no_blocks_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"240 keys in 3 heads of 80 do not fill {name} blocks of 32") as caught:
        codec_named(name).pack(random_cache([5], 80, heads=3))
    assert "int8" in caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_a_lossless_stage_loses_nothing(name: str) -> None:
    pytest.importorskip("blosc2")
    cache = ApplyRope()(random_cache([200, 33]))
    packed = codec_named(f"{name}+blosc2").pack(cache)
    assert packed.stage == "blosc2"
    assert packed.bytes_held() < codec_named(name).pack(cache).bytes_held()
    expected = codec_named(name).unpack(codec_named(name).pack(cache))
    assert same(codec_named(f"{name}+blosc2").unpack(packed), expected)
    with pytest.raises(UsageError, match="went through 'blosc2'") as caught:
        codec_named(name).unpack(packed)
    assert f"'{name}+blosc2'" in caught.value.hint


@pytest.mark.parametrize("damage", ["cut", "other", "noise"])
def test_compressed_bytes_that_were_changed_are_refused(damage: str) -> None:
    pytest.importorskip("blosc2")
    codec, cache = codec_named("bfloat16+blosc2"), random_cache([60])
    packed = codec.pack(cache)
    good = packed.tensors["layers.0.keys"]
    other = codec.pack(random_cache([61])).tensors["layers.0.keys"]
    bad = {"cut": good[: len(good) // 2], "other": other, "noise": torch.full_like(good, 7)}[damage].clone()
    changed = type(packed)(packed.manifest, {**packed.tensors, "layers.0.keys": bad}, packed.stage)
    with pytest.raises(UsageError, match=r"'layers\.0\.keys' cannot be expanded"):
        codec.unpack(changed)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(UsageError, match="needs the package blosc2, which is not installed") as caught:
        codec_named("int8+blosc2")
    assert "unspoken[compress]" in caught.value.hint
    assert codec_named("int8").name == "int8"


def test_a_plain_cache_is_not_copied() -> None:
    cache = random_cache([5])
    assert plain(cache).tensors["layers.0.keys"] is cache.layers[0].keys
    packed = codec_named("float32").pack(cache)
    assert codec_named("float32").unpack(packed).layers[0].values is cache.layers[0].values
