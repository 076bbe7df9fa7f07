"""Placing a segment in one pass gives exactly what casting, moving, turning and joining give one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.cachefile import read_cache, write_cache
from unspoken.channels.kv import content_columns
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache
from unspoken.manifest import Span, Step
from unspoken.spec import ModelSpec, RopeSpec
from unspoken.transforms.cast import Cast
from unspoken.transforms.place import place, place_behind
from unspoken.transforms.rope import RemoveRope

PromptOf = Callable[[Engine, str], Prompt]
PAIRINGS: tuple[Literal["half", "interleaved"], ...] = ("half", "interleaved")
BOUND = 1e-6


def _spec(pairing: Literal["half", "interleaved"], weights: str = "w") -> ModelSpec:
    rope = RopeSpec("default", pairing, (1.0, 0.125, 0.015625, 0.001953125))
    return ModelSpec("made", "fake", 2, 2, 8, 260, 4096, rope, weights, "a", "t", "c")


def _made(spec: ModelSpec, positions: Sequence[Sequence[int]], dtype: str, seed: int, **fields: Any) -> KVCache:
    """A cache of random numbers; its layers stand at the positions given."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for index, where in enumerate(positions):
        keys, values = (torch.randn((2, len(where), 8), generator=generator).to(DTYPES[dtype]) for _ in range(2))
        layers.append(KVLayer(index, keys, values, torch.tensor(where, dtype=torch.int32)))
    return KVCache.build(layers, spec, **fields)


def _alike(prefix: KVCache, segment: KVCache) -> KVCache:
    """Place a segment both ways, see that nothing differs, and return it."""
    fast, slow = place_behind(prefix, segment), prefix.concat(place(segment, prefix))
    assert fast.manifest == slow.manifest
    for mine, other in zip(fast.layers, slow.layers, strict=True):
        assert (mine.index, mine.kind) == (other.index, other.kind)
        assert mine.positions.dtype == other.positions.dtype == torch.int32
        assert torch.equal(mine.positions, other.positions)
        for left, right in ((mine.keys, other.keys), (mine.values, other.values)):
            assert left.dtype == right.dtype
            assert left.is_contiguous()
            assert float((left - right).abs().max()) < BOUND
    return fast


@pytest.mark.parametrize(("pairing", "dtype"), list(product(PAIRINGS, sorted(DTYPES))))
@pytest.mark.parametrize("where", [[0, 1, 2], [5, 6, 7], [3, 4, 9, 700], [2000]], ids=str)
def test_one_pass_equals_step_by_step(pairing: Literal["half", "interleaved"], dtype: str, where: list[int]) -> None:
    prefix = _made(_spec(pairing), [[0, 1, 2, 3]] * 2, "float32", 0, spans=[Span("system", 0, 4)], token_ids=range(4))
    segment = _made(
        _spec(pairing),
        [where] * 2,
        dtype,
        1,
        rope="removed",
        spans=[Span("content", 0, len(where))],
        token_ids=range(len(where)),
        lineage=[Step("rope.remove")],
        sender="lyra",
    )
    placed = _alike(prefix, segment)
    assert placed.positions.tolist() == [0, 1, 2, 3, *(4 + each - where[0] for each in where)]
    assert placed.manifest.spans == (Span("system", 0, 4), Span("content", 4, 4 + len(where)))
    assert placed.manifest.sender == "lyra"
    cast = [] if dtype == "float32" else ["cast"]
    assert [step.op for step in placed.manifest.lineage] == ["rope.remove", *cast, "rope.move", "rope.apply", "concat"]


@given(
    pairing=st.sampled_from(PAIRINGS),
    dtypes=st.tuples(*[st.sampled_from(sorted(DTYPES))] * 2),
    before=st.lists(st.integers(0, 1500), min_size=1, max_size=12, unique=True).map(sorted),
    positions=st.lists(st.lists(st.integers(0, 1500), min_size=1, max_size=12), min_size=2, max_size=2),
    alike=st.booleans(),
    rope=st.sampled_from(("removed", "applied")),
    tokens=st.booleans(),
)
@settings(max_examples=100)
def test_any_segment_behind_any_prefix(
    pairing: Literal["half", "interleaved"],
    dtypes: tuple[str, str],
    before: list[int],
    positions: list[list[int]],
    alike: bool,
    rope: Literal["removed", "applied"],
    tokens: bool,
) -> None:
    where = [positions[0]] * 2 if alike else positions
    prefix = _made(_spec(pairing), [before] * 2, dtypes[0], 2, token_ids=range(len(before)))
    ids = range(len(where[0])) if tokens and alike else None
    placed = _alike(prefix, _made(_spec(pairing), where, dtypes[1], 3, rope=rope, token_ids=ids))
    assert (placed.manifest.token_ids is None) == (ids is None)
    assert min(int(layer.positions[len(before) :].min()) for layer in placed.layers) == before[-1] + 1


def test_a_placed_segment_is_what_a_prefill_there_would_have_made(
    tiny_engine: Callable[..., TransformersEngine], content: PromptOf
) -> None:
    engine = tiny_engine()
    prefix = engine.prefill(content(engine, "You are Vera."))
    cache = engine.prefill(content(engine, "The old mill is run by Anna."), start=90)
    placed = place_behind(prefix, RemoveRope()(cache))
    there = engine.prefill(content(engine, "The old mill is run by Anna."), start=prefix.next_position)
    for mine, other in zip(placed.layers, there.layers, strict=True):
        assert float((mine.keys[:, prefix.columns :] - other.keys).abs().max()) < 1e-4
        assert float((mine.values[:, prefix.columns :] - other.values).abs().max()) < 1e-4


def test_neither_prefix_nor_segment_is_changed(fake: FakeEngine, content: PromptOf) -> None:
    prefix, cache = fake.prefill(content(fake, "Vera.")), fake.prefill(content(fake, "The old mill."), start=40)
    segment = Cast("bfloat16")(content_columns(cache))
    held = [each.clone() for one in (prefix, segment) for layer in one.layers for each in (layer.keys, layer.values)]
    placed = place_behind(prefix, segment)
    placed.layers[0].keys.zero_()
    after = [each for one in (prefix, segment) for layer in one.layers for each in (layer.keys, layer.values)]
    assert all(torch.equal(new, old) for new, old in zip(after, held, strict=True))
    assert segment.positions.tolist() == list(range(40, 53))


def test_a_segment_straight_from_a_file_can_be_placed(fake: FakeEngine, content: PromptOf, tmp_path: Path) -> None:
    prefix, cache = fake.prefill(content(fake, "Vera.")), fake.prefill(content(fake, "The old mill."))
    segment = Cast("bfloat16")(content_columns(cache))
    write_cache(segment, tmp_path / "a.kv.safetensors")
    placed = _alike(prefix, read_cache(tmp_path / "a.kv.safetensors"))
    assert torch.equal(placed.layers[1].keys, place_behind(prefix, segment).layers[1].keys)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("rope", ["removed", "applied"])
def test_a_foreign_segment_is_refused(dtype: str, rope: Literal["removed", "applied"]) -> None:
    prefix = _made(_spec("half"), [[0, 1]] * 2, "float32", 0)
    for foreign, difference in ((_spec("half", "other"), "weights is other"), (_spec("interleaved"), "rope is")):
        segment = _made(foreign, [[0, 1]] * 2, dtype, 1, rope=rope)
        with pytest.raises(IncompatibleCache, match=difference):
            place_behind(prefix, segment)


def test_another_models_segment_is_refused(fake: FakeEngine, content: PromptOf) -> None:
    foreign = FakeEngine(seed=1)
    segment = content_columns(foreign.prefill(content(foreign, "The old mill.")))
    with pytest.raises(IncompatibleCache, match="was made by 'fake-1' and does not fit 'fake-0': weights is"):
        place_behind(fake.prefill(Prompt((Piece("system", (65, 66)),))), segment)


@pytest.mark.parametrize("rope", ["removed", "applied"])
def test_a_segment_without_a_layer_is_refused(rope: Literal["removed", "applied"]) -> None:
    prefix = _made(_spec("half"), [[0, 1]] * 2, "float32", 0)
    with pytest.raises(IncompatibleCache, match="over 2 layers cannot be followed by"):
        place_behind(prefix, _made(_spec("half"), [[0, 1]], "float32", 1, rope=rope))


def test_names_and_chat_templates_do_not_matter(fake: FakeEngine, content: PromptOf) -> None:
    prefix, cache = fake.prefill(content(fake, "Vera.")), content_columns(fake.prefill(content(fake, "The old mill.")))
    spec = msgspec.structs.replace(cache.spec, name="another folder", chat_template="another")
    renamed = KVCache(cache.layers, msgspec.structs.replace(cache.manifest, spec=spec))
    assert torch.equal(_alike(prefix, renamed).layers[0].keys, place_behind(prefix, cache).layers[0].keys)
