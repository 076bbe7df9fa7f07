"""int8 and int4: answers worked out by hand, the slow way beside the fast one, and how far a number may be off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.errors import UsageError
from unspoken.manifest import Span, Step
from unspoken.transforms.blocks import hadamard
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.rope import ApplyRope, RemoveRope

from .packing import cache_of, random_cache, slow_side, two_in_a_byte

CODECS = ["int8", "int4"]


def rotated(numbers: Tensor, codec: str, side: str) -> Tensor:
    """What a codec quantises: int4 rotates heads of 64 and 128, keys whole and values in blocks of 64."""
    head_dim = numbers.shape[-1]
    if codec == "int8" or head_dim % 64:
        return numbers.float()
    return torch.from_numpy(hadamard(numbers.float().contiguous().numpy(), head_dim if side == "keys" else 64))


def test_int8_keys_share_a_scale_per_channel_and_values_per_token() -> None:
    # Channel 0 of the keys goes from 0 to 127.5 in steps of 0.5, channel 1 from -1 to 254 in steps of 1.
    keys = torch.tensor([[[0.0, 254.0], [10.0, 0.4], [127.5, -1.0]]])
    # Token 0 goes from 1 in steps of 0.25, token 1 is constant, token 2 goes from -2 in steps of 2.
    values = torch.tensor([[[1.0, 64.75], [3.0, 3.0], [508.0, -2.0]]])
    packed = codec_named("int8").pack(cache_of([keys], [values]))
    found = {name.removeprefix("layers.0."): tensor.tolist() for name, tensor in packed.tensors.items()}
    assert found == {
        "positions": [0, 1, 2],
        "keys": [[[0, 255], [20, 1], [255, 0]]],
        "keys.scale": [[[0.5, 1.0]]],
        "keys.minimum": [[[0.0, -1.0]]],
        "values": [[[0, 255], [0, 0], [255, 0]]],
        "values.scale": [[[0.25], [0.0], [2.0]]],
        "values.minimum": [[[1.0], [3.0], [-2.0]]],
    }
    back = codec_named("int8").unpack(packed).layers[0]
    assert back.keys.tolist() == [[[0.0, 254.0], [10.0, 0.0], [127.5, -1.0]]]
    assert back.values.tolist() == values.tolist()


def test_two_int4_codes_share_a_byte_the_first_half_of_a_head_in_the_low_bits() -> None:
    keys = torch.tensor([[[0.0, 7.0, -3.0, 1.0], [15.0, 7.0, 12.0, 31.0], [4.0, 7.0, 0.0, 9.0]]])
    values = torch.tensor([[[0.0, 7.5, 1.0, 2.6]]]).expand(1, 3, 4).contiguous()
    packed = codec_named("int4").pack(cache_of([keys], [values]))
    found = {name.removeprefix("layers.0."): tensor.tolist() for name, tensor in packed.tensors.items()}
    assert found["keys.scale"] == [[[1.0, 0.0, 1.0, 2.0]]]
    assert found["keys.minimum"] == [[[0.0, 7.0, -3.0, 1.0]]]
    # Codes of the tokens: (0, 0, 0, 0), (15, 0, 15, 15), (4, 0, 3, 4).
    assert found["keys"] == [[[0x00, 0x00], [0xFF, 0xF0], [0x34, 0x40]]]
    # Codes of each token: (0, 15, 2, 5).
    assert found["values"] == [[[0x20, 0x5F]] * 3]
    assert (found["values.scale"], found["values.minimum"]) == ([[[0.5]] * 3], [[[0.0]] * 3])
    assert codec_named("int4").unpack(packed).layers[0].values[0, 0].tolist() == [0.0, 7.5, 1.0, 2.5]


def test_the_minimum_is_rounded_down_and_the_scale_up() -> None:
    # float16 has 0.0999755859375 and 0.10003662109375 around 0.1, and steps of 2**-24 next to 0.
    values = torch.tensor([[[0.1, 0.1], [-0.1, -0.1]]])
    packed = codec_named("int8").pack(cache_of([torch.zeros(1, 2, 2)], [values]))
    assert packed.tensors["layers.0.values.minimum"].tolist() == [[[0.0999755859375], [-0.10003662109375]]]
    # (0.1 - 0.0999755859375) / 255 is 1.6 steps, (0.10003662109375 - 0.1) / 255 is 2.4.
    assert packed.tensors["layers.0.values.scale"].tolist() == [[[2 * 2**-24], [3 * 2**-24]]]


def test_int4_rotates_keys_by_heads_and_values_in_blocks_of_64() -> None:
    unit = np.zeros((1, 1, 128), np.float32)
    unit[..., 5] = 15.0
    keys, values = torch.from_numpy(hadamard(unit, 128)), torch.from_numpy(hadamard(unit, 64))
    packed = codec_named("int4").pack(cache_of([keys], [values]))
    # One token: each channel of the keys is its own group, and its minimum, to float16's precision.
    assert torch.allclose(packed.tensors["layers.0.keys.minimum"].float(), torch.from_numpy(unit), atol=1e-4)
    assert packed.tensors["layers.0.values"][0, 0, 5] == 15
    assert packed.tensors["layers.0.values"].count_nonzero() == 1
    assert packed.tensors["layers.0.values.scale"].tolist() == [[[1.0, 0.0, 0.0, 0.0]]]


@pytest.mark.parametrize("codec", CODECS)
def test_a_loud_channel_of_the_keys_costs_the_others_nothing(codec: str) -> None:
    generator = torch.Generator().manual_seed(1)
    quiet = torch.randn((1, 70, 80), generator=generator)
    loud = quiet.clone()
    loud[..., 7] *= 1000
    others = torch.arange(80) != 7
    for keys in (quiet, loud):
        cache = cache_of([keys], [quiet])
        back = codec_named(codec).unpack(codec_named(codec).pack(cache)).layers[0].keys
        assert (back - keys)[..., others].abs().max() < 8 / (256 if codec == "int8" else 16)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
@pytest.mark.parametrize("columns", [1, 31, 33, 64, 65, 130, 200])
def test_the_fast_way_gives_the_codes_of_the_slow_one(codec: str, head_dim: int, columns: int) -> None:
    cache = random_cache([columns], head_dim)
    packed = codec_named(codec).pack(cache)
    for side in ("keys", "values"):
        slow = slow_side(rotated(getattr(cache.layers[0], side), codec, side).numpy(), codec, side)
        codes = slow.codes if codec == "int8" else two_in_a_byte(slow.codes)
        assert np.array_equal(packed.tensors[f"layers.0.{side}.minimum"].numpy(), slow.minimum)
        assert np.array_equal(packed.tensors[f"layers.0.{side}.scale"].numpy(), slow.scale)
        assert np.array_equal(packed.tensors[f"layers.0.{side}"].numpy(), codes)


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.data())
@settings(max_examples=25)
def test_no_number_is_off_by_more_than_half_a_step(codec: str, data: st.DataObject) -> None:
    columns = data.draw(st.lists(st.integers(1, 200), min_size=1, max_size=2))
    head_dim = data.draw(st.sampled_from([32, 64, 80, 128]))
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    cache = random_cache(columns, head_dim, heads=1, seed=data.draw(st.integers(0, 99)), dtype=dtype)
    back = codec_named(codec).unpack(codec_named(codec).pack(cache))
    assert back.manifest.dtype == "float32"
    for found, layer in zip(back.layers, cache.layers, strict=True):
        assert found.positions.tolist() == layer.positions.tolist()
        for side in ("keys", "values"):
            wanted = rotated(getattr(layer, side), codec, side)
            error = (rotated(getattr(found, side), codec, side) - wanted).abs()
            step = torch.from_numpy(slow_side(wanted.numpy(), codec, side).step)
            assert (error <= step / 2 + 1e-5 * wanted.abs().max()).all()


@pytest.mark.parametrize("codec", [*CODECS, "q8_0", "q4_0"])
def test_keys_are_packed_without_their_rope_and_come_back_with_it(codec: str) -> None:
    free = random_cache([90, 70], seed=3)
    applied = ApplyRope()(free)
    again = RemoveRope()(applied)  # As the codec removes it, in float32.
    packed, expected = codec_named(codec).pack(applied), codec_named(codec).pack(again)
    for name, tensor in expected.tensors.items():
        assert torch.equal(packed.tensors[name], tensor), name
    back, same = codec_named(codec).unpack(packed), ApplyRope()(codec_named(codec).unpack(expected))
    assert (packed.manifest.rope, back.manifest.rope) == ("applied", "applied")
    for one, other in zip(back.layers, same.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
    assert codec_named(codec).unpack(expected).manifest.rope == "removed"
    assert back.manifest.lineage == (*applied.manifest.lineage, Step("pack", {"codec": codec}))


@pytest.mark.parametrize("codec", CODECS)
def test_sinks_are_kept_in_bfloat16(codec: str) -> None:
    spans = [Span("sink", 0, 2), Span("content", 2, 70), Span("sink", 40, 43), Span("sink", 41, 44)]
    cache = random_cache([70, 70], spans=spans)
    for layer in cache.layers:
        layer.keys[:, 0] *= 1000  # As a sink's are: without it, the others have small steps.
    sinks = torch.zeros(70, dtype=torch.bool)
    sinks[:2] = sinks[40:44] = True
    packed = codec_named(codec).pack(cache)
    back = codec_named(codec).unpack(packed)
    rest = cache_of([cache.layers[0].keys[:, ~sinks]], [cache.layers[0].values[:, ~sinks]])
    alone = codec_named(codec).unpack(codec_named(codec).pack(rest))
    assert packed.tensors["layers.1.keys.sink"].shape == (2, 6, 64)
    for layer, found in zip(cache.layers, back.layers, strict=True):
        assert torch.equal(found.keys[:, sinks], layer.keys[:, sinks].bfloat16().float())
        assert torch.equal(found.values[:, sinks], layer.values[:, sinks].bfloat16().float())
    assert torch.equal(back.layers[0].keys[:, ~sinks], alone.layers[0].keys)
    assert torch.equal(back.layers[0].values[:, ~sinks], alone.layers[0].values)


@pytest.mark.parametrize("codec", CODECS)
def test_a_cache_of_sinks_alone_and_layers_of_different_columns_can_be_packed(codec: str) -> None:
    alone = random_cache([3], spans=[Span("sink", 0, 3)])
    back = codec_named(codec).unpack(codec_named(codec).pack(alone))
    assert torch.equal(back.layers[0].keys, alone.layers[0].keys.bfloat16().float())
    different = random_cache([5, 9], spans=[Span("sink", 0, 2)])
    packed = codec_named(codec).pack(different)
    assert not any("sink" in name for name in packed.tensors)
    assert [layer.columns for layer in codec_named(codec).unpack(packed).layers] == [5, 9]


@pytest.mark.parametrize(("codec", "most"), [("int8", 0.55), ("int4", 0.32)])
@pytest.mark.parametrize("columns", [32, 33, 63, 64, 100, 800, 2048])
def test_bytes_stay_within_their_bound(codec: str, most: float, columns: int) -> None:
    cache = random_cache([columns])
    assert codec_named(codec).pack(cache).bytes_held() <= most * codec_named("bf16").pack(cache).bytes_held()


def test_groups_are_no_smaller_than_they_may_be_however_long_the_cache() -> None:
    from unspoken.layout import token_runs

    for columns in (*range(1, 300), 64 * 63 + 1, 64 * 1000 + 1, 1 << 22):
        runs = token_runs(columns, 64)
        sizes = [run.tokens for run in runs for _ in range(min(run.groups, 2))]
        assert sum(run.groups * run.tokens for run in runs) == columns
        assert [run.start for run in runs][1:] == [runs[0].groups * runs[0].tokens][: len(runs) - 1]
        assert min(sizes) >= min(columns, 64)
        assert max(sizes) - min(sizes) <= 1
    assert token_runs(0, 64) == ()


@pytest.mark.parametrize("codec", [*CODECS, "q8_0", "q4_0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("place", ["keys", "values"])
def test_what_float16_cannot_hold_is_refused(codec: str, value: float, place: str) -> None:
    cache = random_cache([40])
    getattr(cache.layers[0], place)[1, 7, 9] = value
    with pytest.raises(UsageError, match=r"A number of magnitude .+ cannot be"):
        codec_named(codec).pack(cache)


@pytest.mark.parametrize("value", [65504.0, -65504.0])
def test_the_largest_float16_is_no_trouble(value: float) -> None:
    cache = random_cache([40])
    cache.layers[0].values[1, 7, 9] = value
    back: KVCache = codec_named("int8").unpack(codec_named("int8").pack(cache))
    assert abs(back.layers[0].values[1, 7, 9].item() - value) <= 65504 / 255
    cache.layers[0].values[1, 7, 9] = value * 1.01
    with pytest.raises(UsageError, match="float16, which ends at 65504"):
        codec_named("int8").pack(cache)


@pytest.mark.parametrize("codec", CODECS)
def test_a_sink_that_is_no_number_is_refused(codec: str) -> None:
    cache = random_cache([40], spans=[Span("sink", 0, 1)])
    cache.layers[0].keys[0, 0, 0] = float("nan")
    with pytest.raises(UsageError, match=r"NaN or infinite numbers in 'layers\.0\.keys'"):
        codec_named(codec).pack(cache)


@pytest.mark.parametrize("codec", CODECS)
def test_packing_leaves_the_cache_alone_and_takes_columns_in_any_memory_order(codec: str) -> None:
    cache = random_cache([50])
    layer = cache.layers[0]
    keys, values = layer.keys.clone(), layer.values.clone()
    turned = [each.transpose(0, 1).contiguous().transpose(0, 1) for each in (keys, values)]
    packed = codec_named(codec).pack(cache)
    other = codec_named(codec).pack(cache_of([turned[0]], [turned[1]], [layer.positions]))
    assert torch.equal(layer.keys, keys)
    assert torch.equal(layer.values, values)
    for name, tensor in packed.tensors.items():
        assert torch.equal(other.tensors[name], tensor)
