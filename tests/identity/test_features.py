"""What is averaged: content columns alone, without their positions, against means by hand and moved prefixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.identity.features import alike, content, places, pooled, pooled_windows, runs
from unspoken.manifest import Span, Step
from unspoken.transforms.rope import Move, RemoveRope
from unspoken.transforms.select import keep

SPEC = FakeEngine().spec
TEXT = "The old mill is run by Anna."


def random(columns: Sequence[int] = (7, 7), start: int = 3, dtype: torch.dtype = torch.float32) -> KVCache:
    """A position-free cache of random numbers, all of it content."""
    generator = torch.Generator().manual_seed(0)
    layers = []
    for at, count in enumerate(columns):
        keys, values = torch.randn(2, 2, count, 8, generator=generator).to(dtype)
        layers.append(KVLayer(at, keys, values, torch.arange(start, start + count, dtype=torch.int32)))
    return KVCache.build(layers, SPEC, rope="removed", spans=[Span("content", 0, max(columns))])


def read(engine: TransformersEngine, text: str, past: KVCache | None = None) -> KVCache:
    return engine.prefill(Prompt((Piece("content", engine.encode(text)),)), past)


def prefix(engine: TransformersEngine) -> KVCache:
    return engine.prefill(engine.frame("You are Lyra.").before)


def test_only_content_columns_count(engine: TransformersEngine) -> None:
    whole = read(engine, TEXT, prefix(engine))
    found = content(whole)
    start = whole.columns - len(TEXT)
    assert found.manifest.token_ids == engine.encode(TEXT)
    assert [span.kind for span in found.manifest.spans] == ["content"]
    assert found.manifest.rope == "removed"
    for layer, all_of_it in zip(found.layers, whole.layers, strict=True):
        assert torch.equal(layer.values, all_of_it.values[:, start:])
        assert layer.positions.tolist() == list(range(start, whole.columns))


def test_keys_without_rope_are_those_of_position_0(engine: TransformersEngine) -> None:
    # Layer 0 knows the token alone, so a prefill of one token at position 0 is what its key was turned from.
    found = content(read(engine, TEXT, prefix(engine))).layers[0].keys
    alone = [engine.prefill(Prompt((Piece("content", (token,)),)), start=0) for token in engine.encode(TEXT)]
    torch.testing.assert_close(found, torch.cat([each.layers[0].keys for each in alone], dim=1), atol=1e-4, rtol=1e-4)


def test_a_moved_cache_and_one_read_behind_a_moved_prefix_say_the_same(engine: TransformersEngine) -> None:
    here, there = prefix(engine), Move(120)(prefix(engine))
    expected = pooled(content(read(engine, TEXT, here)))
    for other in (read(engine, TEXT, there), Move(77)(read(engine, TEXT, here))):
        torch.testing.assert_close(pooled(content(other)), expected, atol=1e-4, rtol=0)
    turned = pooled(read(engine, TEXT, there).span("content"))
    assert (turned - expected).norm() > 0.1 * expected.norm()  # Without taking positions out they would not.


def test_runs_of_content_are_joined_and_what_lies_between_is_left_out(fake: FakeEngine) -> None:
    pieces = [Piece("system", (1, 2)), Piece("content", (3, 4, 5)), Piece("template", (6,)), Piece("content", (7, 8))]
    found = content(fake.prefill(Prompt(tuple(pieces))))
    assert found.manifest.token_ids == (3, 4, 5, 7, 8)
    assert found.positions.tolist() == [2, 3, 4, 6, 7]


def test_a_cache_of_content_alone_is_taken_as_it_is() -> None:
    cache = random()
    assert content(cache) is cache
    apart = random((7, 5))
    assert content(apart) is apart


def test_a_cache_without_content_or_layers_is_refused(fake: FakeEngine) -> None:
    with pytest.raises(UsageError, match="no content columns"):
        content(fake.prefill(Prompt((Piece("system", (1, 2, 3)),))))
    with pytest.raises(UsageError, match="lacks 1 of 2 layers"):
        content(KVCache.build(random().layers[1:], SPEC, spans=[Span("content", 0, 7)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averages_are_those_by_hand(dtype: torch.dtype) -> None:
    cache = random((7, 4), dtype=dtype)
    found = pooled(cache)
    assert (found.shape, found.dtype) == ((2, 2, 2, 8), torch.float32)
    for at, layer in enumerate(cache.layers):
        for part, numbers in enumerate((layer.keys, layer.values)):
            by_hand = numbers.to(torch.float64).numpy().sum(axis=1) / layer.columns
            assert found[at, part].numpy() == pytest.approx(by_hand, abs=1e-6)


def test_a_layer_without_columns_has_no_average() -> None:
    emptied = keep(random(), [torch.arange(7), torch.arange(0)], Step("select.test"))
    with pytest.raises(UsageError, match="Layer 1 holds no column"):
        pooled(emptied)


@given(columns=st.integers(1, 60), width=st.integers(1, 20))
def test_windows_follow_one_another_and_only_the_last_is_longer(columns: int, width: int) -> None:
    found = runs(columns, width)
    assert found[0][0] == 0
    assert found[-1][1] == columns
    assert all(left[1] == right[0] for left, right in pairwise(found))
    assert all(stop - start == width for start, stop in found[:-1])
    assert columns < width or width <= found[-1][1] - found[-1][0] < 2 * width


@given(columns=st.integers(1, 40), width=st.integers(1, 40))
def test_windows_weigh_up_to_the_whole(columns: int, width: int) -> None:
    cache = random((columns, columns))
    if width > columns:
        with pytest.raises(UsageError, match=f"Windows of {width} columns"):
            pooled_windows(cache, width)
        return
    found = pooled_windows(cache, width)
    weights = torch.tensor([stop - start for start, stop in runs(columns, width)], dtype=torch.float32) / columns
    torch.testing.assert_close(torch.einsum("w,w...->...", weights, found), pooled(cache), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], pooled(cache.slice(0, runs(columns, width)[0][1])))


def test_windows_of_layers_with_different_columns_are_refused() -> None:
    with pytest.raises(UsageError, match=r"layers with \[5, 7\] columns"):
        pooled_windows(random((7, 5)), 2)


def test_the_same_places_are_taken_of_another_reading() -> None:
    cache = random()
    chosen = [torch.tensor([0, 2, 6], dtype=torch.int32), torch.tensor([5], dtype=torch.int32)]
    found = alike(cache, chosen)
    for layer, before, where in zip(found.layers, cache.layers, chosen, strict=True):
        assert np.array_equal(layer.keys, before.keys.numpy()[:, where.numpy()])
        assert np.array_equal(layer.values, before.values.numpy()[:, where.numpy()])
    assert alike(cache, [torch.arange(7, dtype=torch.int32)] * 2) is cache
    with pytest.raises(UsageError, match="Layer 1 has 7 columns; 1 to 7 were chosen"):
        alike(cache, [chosen[0], torch.tensor([1, 7], dtype=torch.int32)])


def test_places_are_counted_from_the_texts_first_token() -> None:
    picked = keep(random(start=40), [torch.tensor([2, 4]), torch.tensor([1, 6])], Step("select.test"))
    assert [each.tolist() for each in places(picked)] == [[1, 3], [0, 5]]
    assert [each.tolist() for each in places(picked, 40)] == [[2, 4], [1, 6]]
    assert [each.tolist() for each in places(picked, 0)] == [[42, 44], [41, 46]]


def test_a_layer_without_columns_has_no_places_and_hides_none() -> None:
    emptied = keep(random(start=9), [torch.arange(0), torch.tensor([3, 5])], Step("select.test"))
    assert [each.tolist() for each in places(emptied)] == [[], [0, 2]]


@given(st.lists(st.integers(0, 11), min_size=1, unique=True).map(sorted), st.integers(0, 500))
def test_what_stands_at_a_selections_places_is_that_selection(kept: list[int], start: int) -> None:
    cache = random((12, 12), start=start)
    picked = keep(cache, [torch.tensor(kept)] * 2, Step("select.test"))
    assert torch.equal(pooled(alike(cache, places(picked, start))), pooled(picked))


def test_features_do_not_depend_on_whether_rope_was_on(
    reader: TransformersEngine, heard: Callable[[str, str], KVCache]
) -> None:
    cache = heard("You are Lyra.", TEXT)
    torch.testing.assert_close(pooled(content(RemoveRope()(cache))), pooled(content(cache)), atol=1e-6, rtol=0)
