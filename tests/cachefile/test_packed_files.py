"""Packed caches in files: what is read is what the codec unpacks, and nothing that a header can tell is missed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from unspoken.cache import KVCache, KVLayer
from unspoken.cachefile import peek, read_cache, read_packed, write_cache, write_packed
from unspoken.cachefile.header import VERSION, layout
from unspoken.errors import CacheFileError, UsageError
from unspoken.layout import PACKED, SIZES, parts
from unspoken.manifest import Span, Step
from unspoken.spec import ModelSpec, RopeSpec
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.rope import ApplyRope

Spans = tuple[Span, ...]
SINKS = (Span("sink", 0, 1), Span("content", 1, 40))


def _spec(heads: int, head_dim: int, layers: int) -> ModelSpec:
    rope = RopeSpec("default", "half", tuple(0.5**pair for pair in range(head_dim // 2)))
    return ModelSpec("toy", "llama", layers, heads, head_dim, 10, 4096, rope, "w", "a", "t", "c")


def _cache(columns: tuple[int, ...] = (40, 40, 40), head_dim: int = 64, heads: int = 2, spans: Spans = ()) -> KVCache:
    generator = torch.Generator().manual_seed(sum(columns))
    layers = [
        KVLayer(
            index,
            torch.randn((heads, count, head_dim), generator=generator),
            torch.randn((heads, count, head_dim), generator=generator),
            torch.randint(1, 9, (count,), generator=generator).cumsum(0).to(torch.int32),
        )
        for index, count in enumerate(columns)
    ]
    made_by = _spec(heads, head_dim, len(columns))
    return KVCache.build(layers, made_by, rope="removed", spans=spans, lineage=[Step("prefill")], sender="lyra")


CACHES: dict[str, Callable[[], KVCache]] = {
    "plain": _cache,
    "with sinks": lambda: _cache(spans=SINKS),
    "one column": lambda: _cache((1,)),
    "odd columns": lambda: _cache((7, 33), spans=(Span("sink", 2, 3),)),
    "layers of different columns": lambda: _cache((40, 9, 101), spans=SINKS),
    "only sinks": lambda: _cache((3, 3), spans=(Span("sink", 0, 3),)),
    "heads of 128": lambda: _cache((65,), 128),
    "one head of 32": lambda: _cache((65, 5), 32, 1),
    "RoPE applied": lambda: ApplyRope()(_cache(spans=SINKS)),
    "half precision": lambda: codec_named("fp16").unpack(codec_named("fp16").pack(_cache())),
}


def _same(left: KVCache, right: KVCache) -> bool:
    assert left.manifest == right.manifest
    return all(
        torch.equal(getattr(mine, part), getattr(other, part))
        for mine, other in zip(left.layers, right.layers, strict=True)
        for part in ("keys", "values", "positions")
    )


@pytest.mark.parametrize("codec", PACKED)
@pytest.mark.parametrize("name", sorted(CACHES))
def test_a_packed_file_is_read_as_the_codec_unpacks_it(tmp_path: Path, codec: str, name: str) -> None:
    cache, path = CACHES[name](), tmp_path / "a.kv.safetensors"
    manifest = write_cache(cache, path, codec)
    packed = codec_named(codec).pack(cache)
    assert manifest.cache == packed.manifest == peek(path).manifest.cache
    assert manifest.version == VERSION
    assert _same(read_cache(path), codec_named(codec).unpack(packed))
    there = read_packed(path)
    assert list(there.tensors) == list(parts(packed.manifest))
    assert all(torch.equal(there.tensors[part], tensor) for part, tensor in packed.tensors.items())
    write_packed(there, tmp_path / "again.kv.safetensors")
    assert (tmp_path / "again.kv.safetensors").read_bytes() == path.read_bytes()
    # Whoever reads some layers gets the same ones, whether or not the others hold as many columns.
    last = cache.layers[-1].index
    alone = read_cache(path, layers=[last])
    assert torch.equal(alone.layers[0].keys, read_cache(path).layers[-1].keys)
    assert [layer.index for layer in alone.manifest.layers] == [last]


@pytest.mark.parametrize("codec", PACKED)
@pytest.mark.parametrize("columns", [(7, 41, 8), (41, 41)])
def test_safetensors_itself_reads_the_same_tensors_and_each_is_aligned(
    tmp_path: Path, codec: str, columns: tuple[int, ...]
) -> None:
    path = tmp_path / "a.kv.safetensors"
    write_cache(_cache(columns, spans=SINKS), path, codec)
    packed = read_packed(path)
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == sorted(packed.tensors)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in packed.tensors.items())
    for name, entry in layout(parts(packed.manifest)).items():
        assert entry.start % SIZES[parts(packed.manifest)[name].element] == 0


def test_a_packed_files_header_is_read_without_torch_or_numpy(tmp_path: Path) -> None:
    path = tmp_path / "a.kv.safetensors"
    write_cache(_cache(spans=SINKS), path, "int4")
    code = (
        "import sys; from unspoken.cachefile import peek; print(peek(sys.argv[1]).manifest.cache.dtype);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "int4"), done.stderr


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "bf16", "float16"])
def test_a_plain_codec_writes_the_file_that_a_cast_cache_has(tmp_path: Path, codec: str) -> None:
    cache = _cache()
    write_cache(cache, tmp_path / "one", codec)
    write_cache(codec_named(codec).unpack(codec_named(codec).pack(cache)), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_files_of_plain_types_have_the_bytes_they_always_had(tmp_path: Path) -> None:
    # The worked example of docs/format.md, as releases before packed files wrote it.
    spec = ModelSpec("toy", "llama", 1, 1, 2, 10, 16, RopeSpec("default", "half", (1.0,)), "w", "a", "t", "c")
    keys, values = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[0.5, 0.25], [-1.0, 3.0]]])
    layer = KVLayer(0, keys, values, torch.tensor([5, 6], dtype=torch.int32))
    steps = [Step("prefill", {"tokens": 2}), Step("rope.remove")]
    cache = KVCache.build(
        [layer], spec, rope="removed", spans=[Span("content", 0, 2)], token_ids=[7, 8], lineage=steps, sender="lyra"
    )
    manifest = write_cache(cache, tmp_path / "toy.kv.safetensors")
    assert manifest.digest == "d6561a88d671b48d54ab594c831afd15f26721c69a44c767052648fa4bb57e59"
    assert (tmp_path / "toy.kv.safetensors").stat().st_size == 1320


@pytest.mark.parametrize("codec", ["int8+blosc2", "bfloat16+blosc2", "int3", "int8+zip"])
def test_what_files_do_not_hold_is_refused_before_anything_is_written(tmp_path: Path, codec: str) -> None:
    with pytest.raises(UsageError) as caught:
        write_cache(_cache(), tmp_path / "a.kv", codec)
    assert codec.split("+")[-1] in caught.value.problem
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_was_compressed_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("blosc2")
    with pytest.raises(UsageError, match="went through the lossless stage 'blosc2'"):
        write_packed(codec_named("int8+blosc2").pack(_cache()), tmp_path / "a.kv")


@pytest.mark.parametrize("codec", PACKED)
def test_tensors_that_the_manifest_does_not_tell_are_not_written(tmp_path: Path, codec: str) -> None:
    packed = codec_named(codec).pack(_cache())
    tensors = {**packed.tensors, "layers.1.values": packed.tensors["layers.1.values"][:1]}
    with pytest.raises(UsageError, match=r"has 'layers\.1\.values' as \[1, "):
        write_packed(type(packed)(packed.manifest, tensors), tmp_path / "a.kv")


@pytest.mark.parametrize(("codec", "part"), [("int8", "keys.scale"), ("int4", "values.minimum"), ("int8", "keys.sink")])
def test_a_scale_that_is_no_number_is_not_written(tmp_path: Path, codec: str, part: str) -> None:
    packed = codec_named(codec).pack(_cache(spans=SINKS))
    packed.tensors[f"layers.1.{part}"].view(-1)[-1] = float("inf")
    with pytest.raises(UsageError, match="NaN, infinite numbers"):
        write_packed(packed, tmp_path / "a.kv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", PACKED)
@pytest.mark.parametrize("place", [-1, -40, 60])
def test_a_flipped_bit_and_a_lost_byte_are_found(tmp_path: Path, codec: str, place: int) -> None:
    path = tmp_path / "a.kv.safetensors"
    write_cache(_cache(spans=SINKS), path, codec)
    good, start = path.read_bytes(), peek(path).header_bytes
    raw = bytearray(good)
    raw[place if place < 0 else start + place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CacheFileError, match="does not match its digest"):
        read_cache(path)
    path.write_bytes(good[:-1])
    with pytest.raises(CacheFileError, match="is truncated"):
        peek(path)
