"""A cache is a value: what is cut, joined or changed is a new one, and everything about it follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Piece, Prompt
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.manifest import Span, Step
from unspoken.transforms.cast import Cast
from unspoken.transforms.rope import RemoveRope


@pytest.fixture
def cache(fake: FakeEngine) -> KVCache:
    """Ten columns: a sink, three of a system prompt, five of content, one of template, from position 20."""
    kinds: list[Any] = [("sink", 1), ("system", 3), ("content", 5), ("template", 1)]
    ids = iter(range(10, 20))
    prompt = Prompt(tuple(Piece(kind, tuple(next(ids) for _ in range(count))) for kind, count in kinds))
    return fake.prefill(prompt, start=20).labelled(sender="lyra")


@pytest.fixture
def layer() -> Callable[..., KVLayer]:
    """Make a layer of zeros."""

    def make(index: int = 0, columns: int = 4, dtype: torch.dtype = torch.float32) -> KVLayer:
        states = torch.zeros(2, columns, 8, dtype=dtype)
        return KVLayer(index, states, states.clone(), torch.arange(columns, dtype=torch.int32))

    return make


def test_cache_and_layer_fields_cannot_be_set(cache: KVCache) -> None:
    for target, field in ((cache, "layers"), (cache.layers[0], "keys"), (cache.manifest, "sender")):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
            setattr(target, field, None)


def test_manifest_describes_the_layers_it_is_built_from(cache: KVCache) -> None:
    assert [(info.index, info.kind, info.columns) for info in cache.manifest.layers] == [
        (0, "full", 10),
        (1, "full", 10),
    ]
    assert cache.manifest.dtype == "float32"
    assert cache.manifest.rope == "applied"
    assert cache.columns == 10
    assert cache.next_position == 30
    # 2 layers of 2 heads of 8 coordinates, keys and values, 4 bytes each.
    assert cache.bytes_held() == 10 * 2 * 2 * 8 * 2 * 4 == 10 * cache.spec.elements_per_column() * 4


def test_slice_takes_columns_positions_tokens_and_spans_along(cache: KVCache) -> None:
    cut = cache.slice(2, 6)
    for new, old in zip(cut.layers, cache.layers, strict=True):
        assert torch.equal(new.keys, old.keys[:, 2:6])
        assert torch.equal(new.values, old.values[:, 2:6])
        assert new.keys.is_contiguous()
    assert cut.positions.tolist() == [22, 23, 24, 25]
    assert cut.manifest.token_ids == (12, 13, 14, 15)
    assert cut.manifest.spans == (Span("system", 0, 2), Span("content", 2, 4))
    assert cut.manifest.lineage == (*cache.manifest.lineage, Step("slice", {"start": 2, "stop": 6}))


def test_slice_leaves_the_old_cache_as_it_was(cache: KVCache) -> None:
    before = [layer.keys.clone() for layer in cache.layers]
    cut = cache.slice(0, 5)
    cut.layers[0].keys.zero_()
    assert all(torch.equal(layer.keys, old) for layer, old in zip(cache.layers, before, strict=True))
    assert cache.columns == 10


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (5, 4), (-1, 2), (0, 11)])
def test_slice_refuses_ranges_that_are_empty_or_outside(cache: KVCache, start: int, stop: int) -> None:
    with pytest.raises(UsageError, match=f"Columns {start} to {stop} of a cache with"):
        cache.slice(start, stop)


def test_slice_refuses_layers_that_hold_different_columns(fake: FakeEngine, layer: Callable[..., KVLayer]) -> None:
    with pytest.raises(UsageError, match=r"\[3, 4\] columns"):
        KVCache.build([layer(0, 4), layer(1, 3)], fake.spec).slice(0, 2)


def test_span_cuts_the_one_run_of_a_kind(cache: KVCache) -> None:
    assert cache.span("content").manifest.token_ids == (14, 15, 16, 17, 18)
    assert cache.span("content").manifest.spans == (Span("content", 0, 5),)


def test_span_refuses_no_run_and_several(cache: KVCache) -> None:
    with pytest.raises(UsageError, match="0 runs of 'thought'"):
        cache.span("thought")
    with pytest.raises(UsageError, match="2 runs of 'sink'"):
        cache.concat(cache).span("sink")


def test_concat_puts_the_later_columns_after_the_earlier(cache: KVCache, fake: FakeEngine) -> None:
    later = fake.prefill(Prompt((Piece("content", (7, 8)),)), start=50).labelled(sender="vera")
    both = cache.concat(later)
    for joined, first, second in zip(both.layers, cache.layers, later.layers, strict=True):
        assert torch.equal(joined.keys, torch.cat((first.keys, second.keys), dim=1))
        assert torch.equal(joined.values, torch.cat((first.values, second.values), dim=1))
    assert both.positions.tolist() == [*range(20, 30), 50, 51]
    assert both.next_position == 52
    assert both.manifest.token_ids == (*range(10, 20), 7, 8)
    assert both.manifest.spans[-1] == Span("content", 10, 12)
    assert both.manifest.lineage[-1] == Step("concat", {"before": 10, "after": 2})
    assert both.manifest.sender == "vera"


def test_slices_of_a_cache_join_to_the_cache(cache: KVCache) -> None:
    whole = cache.slice(0, 4).concat(cache.slice(4, 10))
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(whole.layers, cache.layers, strict=True))
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(whole.layers, cache.layers, strict=True))
    assert whole.manifest.token_ids == cache.manifest.token_ids
    assert whole.manifest.spans == cache.manifest.spans


def test_joined_tokens_are_unknown_when_one_side_keeps_them(cache: KVCache) -> None:
    secret = KVCache.build(cache.layers, cache.spec)
    assert cache.concat(secret).manifest.token_ids is None
    assert secret.concat(cache).manifest.token_ids is None
    assert secret.slice(0, 3).manifest.token_ids is None


def test_concat_refuses_another_dtype_rope_state_or_number_of_layers(cache: KVCache) -> None:
    few = KVCache.build(cache.layers[:1], cache.spec)
    for other in (Cast("bfloat16")(cache), RemoveRope()(cache), few):
        with pytest.raises(IncompatibleCache, match="cannot be followed by"):
            cache.concat(other)


def test_concat_refuses_another_models_cache(cache: KVCache) -> None:
    foreign = FakeEngine(seed=1).prefill(Prompt((Piece("content", (1,)),)))
    with pytest.raises(IncompatibleCache, match="weights is"):
        cache.concat(foreign)


def test_a_cache_needs_layers_of_one_known_dtype(fake: FakeEngine, layer: Callable[..., KVLayer]) -> None:
    with pytest.raises(UsageError, match="at least one layer"):
        KVCache.build([], fake.spec)
    with pytest.raises(UsageError, match="one dtype"):
        KVCache.build([layer(0), layer(1, dtype=torch.bfloat16)], fake.spec)
    with pytest.raises(UsageError, match="float64"):
        KVCache.build([layer(0, dtype=torch.float64)], fake.spec)


def test_a_layer_needs_a_position_for_every_column() -> None:
    states = torch.zeros(2, 4, 8)
    # With shape checking on, that is what refuses it.
    with pytest.raises((UsageError, TypeCheckError), match="positions"):
        KVLayer(0, states, states, torch.arange(3, dtype=torch.int32))


def test_labelled_changes_the_label_and_shares_the_columns(cache: KVCache) -> None:
    renamed = cache.labelled(sender="cc", spans=[Span("content", 0, 10)])
    assert (renamed.manifest.sender, cache.manifest.sender) == ("cc", "lyra")
    assert renamed.manifest.spans == (Span("content", 0, 10),)
    assert renamed.layers is cache.layers
