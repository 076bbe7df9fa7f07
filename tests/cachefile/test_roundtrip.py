"""What is written is what is read, bit for bit, and nothing half-written is ever left behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.cachefile import peek, read_cache, write_cache, writer
from unspoken.cachefile.header import MANIFEST_KEY, layout, tensor_names
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Engine, Prompt
from unspoken.errors import CacheFileError, StorageError, UsageError
from unspoken.layout import parts
from unspoken.manifest import Span, Step
from unspoken.spec import ModelSpec, RopeSpec

PromptOf = Callable[[Engine, str], Prompt]
TEXT = "The old mill is run by Anna."
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
STEPS = st.builds(Step, NAMES, st.dictionaries(NAMES, PLAIN, max_size=3))
FREQUENCIES = st.floats(0, 1e6, width=32)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Any model of one to four layers."""
    pairs = draw(st.integers(1, 6))
    frequencies = tuple(draw(st.lists(FREQUENCIES, min_size=pairs, max_size=pairs)))
    rope = RopeSpec(draw(NAMES), draw(st.sampled_from(("half", "interleaved"))), frequencies, draw(FREQUENCIES))
    return ModelSpec(
        name=draw(NAMES),
        family=draw(NAMES),
        layers=draw(st.integers(1, 4)),
        kv_heads=draw(st.integers(1, 3)),
        head_dim=2 * pairs,
        vocabulary=draw(st.integers(1, 2**20)),
        context=draw(st.integers(1, 2**20)),
        rope=rope,
        weights=draw(NAMES),
        architecture=draw(NAMES),
        tokenizer=draw(NAMES),
        chat_template=draw(NAMES),
    )


class Drawn(NamedTuple):
    """What a cache is made of; it is built outside the strategy, where drawing at random by a checker does no harm."""

    spec: ModelSpec
    dtype: str
    positions: dict[int, list[int]]
    seed: int
    fields: dict[str, Any]

    def cache(self) -> KVCache:
        """Build the cache."""
        generator, dtype = torch.Generator().manual_seed(self.seed), DTYPES[self.dtype]
        layers = []
        for index, positions in self.positions.items():
            shape = (self.spec.kv_heads, len(positions), self.spec.head_dim)
            keys, values = (_any_bits(shape, dtype, generator) for _ in range(2))
            layers.append(KVLayer(index, keys, values, torch.tensor(positions, dtype=torch.int32)))
        return KVCache.build(layers, self.spec, **self.fields)


@st.composite
def caches(draw: st.DrawFn) -> Drawn:
    """Any cache: some of a model's layers, of any columns, at any positions, with any finite numbers in them."""
    spec = draw(specs())
    held = draw(st.lists(st.integers(0, spec.layers - 1), min_size=1, unique=True).map(sorted))
    alike, columns = draw(st.booleans()), draw(st.integers(1, 40))
    counts = {index: columns if alike else draw(st.integers(1, 40)) for index in held}
    where = st.integers(0, 2**31 - 1)
    longest = max(counts.values())
    kinds = st.sampled_from(("sink", "system", "content", "thought", "template"))
    starts = draw(st.lists(st.integers(0, longest - 1), max_size=3))
    fields = {
        "rope": draw(st.sampled_from(("applied", "removed"))),
        "spans": [Span(draw(kinds), start, draw(st.integers(start + 1, longest))) for start in starts],
        "token_ids": draw(st.none() | st.lists(st.integers(0, 2**31), min_size=longest, max_size=longest)),
        "lineage": draw(st.lists(STEPS, max_size=3)),
        "sender": draw(st.none() | NAMES),
    }
    positions = {index: draw(st.lists(where, min_size=count, max_size=count)) for index, count in counts.items()}
    return Drawn(spec, draw(st.sampled_from(sorted(DTYPES))), positions, draw(st.integers(0, 2**32)), fields)


def _any_bits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Finite numbers of any kind: signed zeros, subnormal and largest ones among them."""
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8, generator=generator)
    found = raw.view(dtype)
    return torch.where(torch.isfinite(found), found, torch.full_like(found, -0.0))


def _same(left: KVCache, right: KVCache) -> bool:
    assert left.manifest == right.manifest
    pairs = list(zip(left.layers, right.layers, strict=True))
    assert [(mine.index, mine.kind) for mine, _ in pairs] == [(other.index, other.kind) for _, other in pairs]
    return all(
        a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for mine, other in pairs
        for a, b in ((mine.keys, other.keys), (mine.values, other.values), (mine.positions, other.positions))
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("roundtrip")


@pytest.fixture
def cache(fake: FakeEngine, content: PromptOf) -> KVCache:
    """The fake's cache of a sentence."""
    return fake.prefill(content(fake, TEXT)).labelled(sender="lyra")


@given(drawn=caches())
@settings(max_examples=60)
def test_any_cache_is_read_back_as_it_was(folder: Path, drawn: Drawn) -> None:
    cache = drawn.cache()
    one, two, three = (folder / f"{name}.kv.safetensors" for name in ("one", "two", "three"))
    manifest = write_cache(cache, one)
    back = read_cache(one)
    assert _same(back, cache)
    assert peek(one).manifest == manifest
    assert manifest.cache == cache.manifest
    write_cache(cache, two)
    write_cache(back, three)
    assert one.read_bytes() == two.read_bytes() == three.read_bytes()


@given(drawn=caches())
@settings(max_examples=25)
def test_safetensors_itself_reads_the_same_tensors(folder: Path, drawn: Drawn) -> None:
    cache = drawn.cache()
    path = folder / "plain.safetensors"
    manifest = write_cache(cache, path)
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == sorted(tensor_names(cache.manifest))
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()[MANIFEST_KEY])["digest"] == manifest.digest
        for layer in cache.layers:
            for part in ("keys", "values", "positions"):
                found, expected = file.get_tensor(f"layers.{layer.index}.{part}"), getattr(layer, part)
                assert found.dtype == expected.dtype
                assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_a_header_is_read_without_torch_or_numpy(cache: KVCache, tmp_path: Path) -> None:
    path = tmp_path / "a.kv.safetensors"
    digest = write_cache(cache, path).digest
    code = (
        "import sys; from unspoken.cachefile import peek; found = peek(sys.argv[1]);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(found.manifest.digest)"
    )
    assert _python(code, str(path)) == digest


def test_two_processes_hand_a_cache_over(cache: KVCache, tmp_path: Path) -> None:
    there, back = tmp_path / "there.kv.safetensors", tmp_path / "back.kv.safetensors"
    write_cache(cache, there)
    code = "import sys; from unspoken import read_cache, write_cache; write_cache(read_cache(sys.argv[1]), sys.argv[2])"
    _python(code, str(there), str(back))
    assert there.read_bytes() == back.read_bytes()
    assert _same(read_cache(back), cache)


def _python(code: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_some_layers_can_be_read_alone(cache: KVCache, tmp_path: Path) -> None:
    path = tmp_path / "a.kv.safetensors"
    write_cache(cache, path)
    part = read_cache(path, layers=[1])
    assert [layer.index for layer in part.layers] == [1]
    assert torch.equal(part.layers[0].keys, cache.layers[1].keys)
    assert part.manifest.token_ids == cache.manifest.token_ids
    write_cache(part, tmp_path / "part.kv.safetensors")
    assert _same(read_cache(tmp_path / "part.kv.safetensors"), part)
    for wanted in ([], [0, 7], [-1]):
        with pytest.raises(UsageError, match="does not hold all of the layers"):
            read_cache(path, layers=wanted)


def test_only_the_layers_wanted_are_touched(cache: KVCache, tmp_path: Path) -> None:
    path = tmp_path / "a.kv.safetensors"
    write_cache(cache, path)
    header = peek(path)
    raw = bytearray(path.read_bytes())
    raw[header.header_bytes + header.tensors["layers.0.keys"].start] ^= 1
    path.write_bytes(raw)
    assert torch.equal(read_cache(path, layers=[1]).layers[0].values, cache.layers[1].values)
    with pytest.raises(CacheFileError, match=r"'layers\.0\.keys' does not match its digest"):
        read_cache(path)


def test_a_reader_keeps_its_tensors_when_the_file_goes(cache: KVCache, fake: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "a.kv.safetensors"
    write_cache(cache, path)
    held = read_cache(path)
    write_cache(cache.slice(3, 9), path)
    assert _same(held, cache)
    other = read_cache(path)
    path.unlink()
    assert _same(held, cache)
    assert _same(other, cache.slice(3, 9))


def test_writing_to_a_tensor_never_reaches_the_file(cache: KVCache, tmp_path: Path) -> None:
    path = tmp_path / "a.kv.safetensors"
    write_cache(cache, path)
    before = path.read_bytes()
    read_cache(path).layers[0].keys.zero_()
    assert path.read_bytes() == before
    assert _same(read_cache(path), cache)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["keys", "values"])
def test_numbers_that_are_none_are_not_written(
    cache: KVCache, tmp_path: Path, dtype: str, value: float, place: str
) -> None:
    states = {part: getattr(cache.layers[1], part).to(DTYPES[dtype], copy=True) for part in ("keys", "values")}
    states[place][-1, -1, -1] = value
    sound = KVLayer(0, *(getattr(cache.layers[0], part).to(DTYPES[dtype]) for part in states), cache.positions)
    bad = KVCache.build([sound, KVLayer(1, **states, positions=cache.positions)], cache.spec)
    with pytest.raises(UsageError, match=rf"NaN, infinite numbers or negative positions in 'layers\.1\.{place}'"):
        write_cache(bad, tmp_path / "bad.kv.safetensors")
    assert list(tmp_path.iterdir()) == []


def _like(cache: KVCache, *layers: KVLayer, **fields: Any) -> KVCache:
    return KVCache.build(layers or cache.layers, cache.spec, **fields)


def _layer(index: int = 0, heads: int = 2, columns: int = 3, first: int = 0) -> KVLayer:
    states = torch.zeros((heads, columns, 8))
    return KVLayer(index, states, states, torch.arange(first, first + columns, dtype=torch.int32))


UNREADABLE: dict[str, tuple[Callable[[KVCache], KVCache], str]] = {
    "negative position": (lambda cache: _like(cache, _layer(first=-1)), "negative positions in 'layers.0.positions'"),
    "no columns": (lambda cache: _like(cache, _layer(columns=0)), "a layer with no columns"),
    "other heads than the model's": (lambda cache: _like(cache, _layer(heads=4)), r"as \[4, 3, 8\]"),
    "layer twice": (lambda cache: _like(cache, _layer(), _layer()), "or one twice"),
    "layers out of order": (lambda cache: _like(cache, _layer(1), _layer(0)), "out of order"),
    "layer the model lacks": (lambda cache: _like(cache, _layer(5)), "does not have"),
    "wrong count of tokens": (lambda cache: _like(cache, token_ids=[1]), f"1 token ids for {len(TEXT)} columns"),
    "span outside": (lambda cache: _like(cache, spans=[Span("content", 0, 99)]), "spans outside its columns"),
    "text that is none": (lambda cache: cache.labelled(sender="\ud800"), "cannot be written as JSON"),
    "object in the lineage": (lambda cache: _like(cache, lineage=[Step("x", {"a": object()})]), "written as JSON"),
}


@pytest.mark.parametrize("name", sorted(UNREADABLE))
def test_what_no_reader_accepts_is_not_written(cache: KVCache, tmp_path: Path, name: str) -> None:
    make, problem = UNREADABLE[name]
    path = tmp_path / "a.kv.safetensors"
    write_cache(cache, path)
    with pytest.raises(UsageError, match=problem) as caught:
        write_cache(make(cache), path)
    assert caught.value.hint
    assert _same(read_cache(path), cache)
    assert list(tmp_path.iterdir()) == [path]


def test_the_manifest_is_written_as_a_reader_will_see_it(cache: KVCache, tmp_path: Path) -> None:
    path = tmp_path / "a.kv.safetensors"
    loose = _like(cache, lineage=[Step("x", {"range": (1, 2), "rate": float("nan")})])
    manifest = write_cache(loose, path)
    assert read_cache(path).manifest == manifest.cache
    assert manifest.cache.lineage == (Step("x", {"range": [1, 2], "rate": None}),)


@pytest.mark.parametrize("place", ["missing/a.kv", "file/a.kv", "folder", "x" * 300])
def test_a_place_that_cannot_be_written_is_told(cache: KVCache, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot be written") as caught:
        write_cache(cache, tmp_path / place)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.parametrize("call", [1, 3, 7])
def test_a_disk_that_fills_up_leaves_the_old_file(
    cache: KVCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    path, calls, real = tmp_path / "a.kv.safetensors", [0], os.pwritev
    monkeypatch.setattr(writer, "TOGETHER", 1)
    write_cache(cache, path)

    def full(descriptor: int, data: list[memoryview], offset: int) -> int:
        calls[0] += 1
        if calls[0] >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_cache(cache.slice(0, 5), path)
    assert list(tmp_path.iterdir()) == [path]
    assert _same(read_cache(path), cache)
    with pytest.raises(StorageError, match="No space left on device"):
        write_cache(cache, tmp_path / "new.kv.safetensors")
    assert list(tmp_path.iterdir()) == [path]


def test_a_system_that_writes_little_at_a_time_writes_it_all(
    cache: KVCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def little(descriptor: int, data: list[memoryview], offset: int) -> int:
        return os.pwrite(descriptor, b"".join(data)[:100], offset)  # Often the end of one and the start of the next.

    monkeypatch.setattr(os, "pwritev", little)
    write_cache(cache, tmp_path / "a.kv.safetensors")
    assert _same(read_cache(tmp_path / "a.kv.safetensors"), cache)


def test_threads_that_write_one_file_do_not_meet(cache: KVCache, tmp_path: Path) -> None:
    path = tmp_path / "a.kv.safetensors"
    versions = [cache.slice(0, stop) for stop in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: write_cache(each, path), versions * 5))
    assert list(tmp_path.iterdir()) == [path]
    assert read_cache(path).columns in range(1, 9)


@given(drawn=caches())
@settings(max_examples=25)
def test_the_layout_has_no_holes_and_aligns_every_tensor(drawn: Drawn) -> None:
    end = 0
    for entry in layout(parts(drawn.cache().manifest)).values():
        assert entry.start == end
        assert entry.start % {"F32": 4, "I32": 4, "BF16": 2, "F16": 2}[entry.dtype] == 0
        end = entry.stop
