"""A moved column is the column that a prefill at the new position makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Engine, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.manifest import Step
from unspoken.spec import RopeSpec
from unspoken.transforms.rope import ApplyRope, Move, RemoveRope, angles, rotation, turn

TEXT = "The old mill is run by Anna, and the new one by Bob."
PromptOf = Callable[[Engine, str], Prompt]


def _apart(left: KVCache, right: KVCache) -> float:
    return max(
        float((a - b).abs().max())
        for mine, other in zip(left.layers, right.layers, strict=True)
        for a, b in ((mine.keys, other.keys), (mine.values, other.values))
    )


@pytest.mark.parametrize("start", [1, 37, 200])
def test_moved_columns_equal_a_prefill_at_the_new_positions(
    engine: TransformersEngine, content: PromptOf, start: int
) -> None:
    prompt = content(engine, TEXT)
    made, there = engine.prefill(prompt), engine.prefill(prompt, start=start)
    moved = Move(start)(made)
    assert moved.positions.tolist() == there.positions.tolist() == list(range(start, start + len(TEXT)))
    assert _apart(moved, there) < 1e-5
    # The bound means something: a key that was not turned is far off.
    assert _apart(made, there) > 0.1


def test_moving_back_gives_the_first_positions_keys(engine: TransformersEngine, content: PromptOf) -> None:
    prompt = content(engine, TEXT)
    assert _apart(Move(0)(engine.prefill(prompt, start=333)), engine.prefill(prompt)) < 1e-5


def test_removed_and_applied_again_is_the_same_cache(engine: TransformersEngine, content: PromptOf) -> None:
    cache = engine.prefill(content(engine, TEXT), start=11)
    free = RemoveRope()(cache)
    again = ApplyRope()(free)
    assert (free.manifest.rope, again.manifest.rope) == ("removed", "applied")
    assert _apart(again, cache) < 1e-5
    assert all(torch.equal(a.values, b.values) for a, b in zip(free.layers, cache.layers, strict=True))
    assert free.positions.tolist() == cache.positions.tolist()


def test_position_free_keys_do_not_depend_on_where_they_were_made(
    engine: TransformersEngine, content: PromptOf
) -> None:
    prompt = content(engine, TEXT)
    here, there = (RemoveRope()(engine.prefill(prompt, start=start)) for start in (0, 200))
    assert _apart(here, there) < 1e-5


def test_a_position_free_segment_is_turned_once_where_it_is_put(engine: TransformersEngine, content: PromptOf) -> None:
    prompt = content(engine, TEXT)
    placed = ApplyRope()(Move(90)(RemoveRope()(engine.prefill(prompt, start=5))))
    assert _apart(placed, engine.prefill(prompt, start=90)) < 1e-5


def test_yarn_factor_is_in_cached_keys_once(tiny_engine: Callable[..., TransformersEngine], content: PromptOf) -> None:
    engine = tiny_engine("yarn")
    factor = engine.spec.rope.attention_scaling
    # Source of the oracle: YaRN, arXiv 2309.00071, section 3.4: 0.1 ln(s) + 1 with s = 4.
    assert factor == pytest.approx(0.1 * torch.log(torch.tensor(4.0)).item() + 1.0)
    prompt = content(engine, TEXT)
    made, moved = engine.prefill(prompt), Move(50)(engine.prefill(prompt))
    for before, after in zip(made.layers, moved.layers, strict=True):
        assert torch.allclose(after.keys.norm(dim=-1), before.keys.norm(dim=-1), rtol=1e-5)
    # Position 0 is turned by nothing, so its cached key is the projected key times the factor, once.
    inner = engine._model.model.layers[0]
    hidden = inner.input_layernorm(engine._model.model.embed_tokens(torch.tensor(prompt.token_ids[:1])))
    projected = inner.self_attn.k_proj(hidden).view(2, 16)
    assert torch.allclose(made.layers[0].keys[:, 0], projected * factor, atol=1e-5)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_turning_equals_multiplication_of_complex_numbers(pairing: Any) -> None:
    rope = RopeSpec("default", pairing, (1.0, 0.3, 0.01, 0.002))
    keys = torch.randn((2, 6, 8), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 1, 5, 77, 300, 4000], dtype=torch.int32)
    turned = turn(keys, rotation(angles(positions, rope)), rope)
    first, second = (keys[..., :4], keys[..., 4:]) if pairing == "half" else (keys[..., 0::2], keys[..., 1::2])
    radians = positions.double()[:, None] * torch.tensor(rope.inverse_frequencies, dtype=torch.float32).double()
    product = torch.complex(first.double(), second.double()) * torch.exp(1j * radians)
    parts = (product.real, product.imag)
    expected = torch.cat(parts, -1) if pairing == "half" else torch.stack(parts, -1).flatten(-2)
    # Angles are rounded to float32, which at position 4000 is an error of up to 2e-4 radians.
    assert torch.allclose(turned.double(), expected, atol=1e-3)
    assert torch.allclose(turned[:, :4].double(), expected[:, :4], atol=1e-5)


def test_interleaved_pairs_are_half_pairs_in_another_order() -> None:
    keys = torch.randn((1, 3, 8), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([3, 4, 9], dtype=torch.int32)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    ropes = [RopeSpec("default", pairing, (1.0, 0.5, 0.1, 0.01)) for pairing in ("half", "interleaved")]
    by = rotation(angles(positions, ropes[0]))
    assert torch.equal(turn(keys, by, ropes[1])[..., order], turn(keys[..., order], by, ropes[0]))


@given(a=st.integers(0, 3000), b=st.integers(0, 3000))
@settings(max_examples=25)
def test_moving_twice_equals_moving_once(a: int, b: int) -> None:
    engine = FakeEngine()
    cache = RemoveRope()(ApplyRope()(_gapped(engine, [0, 1, 5, 8])))
    for state in (cache, ApplyRope()(cache)):
        twice, once = Move(b)(Move(a)(state)), Move(b)(state)
        assert twice.positions.tolist() == once.positions.tolist() == [b, b + 1, b + 5, b + 8]
        # Angles of a few thousand radians are rounded to 2e-4 in float32; each move rounds again.
        assert _apart(twice, once) < 2e-3


@given(delta=st.integers(-500, 500))
@settings(max_examples=15)
def test_turning_keeps_lengths_and_relative_angles(delta: int) -> None:
    engine = FakeEngine()
    cache = _gapped(engine, [600, 601, 640])
    moved = Move(600 + delta)(cache)
    for before, after in zip(cache.layers, moved.layers, strict=True):
        products = [keys @ keys.transpose(1, 2) for keys in (before.keys, after.keys)]
        assert torch.allclose(*products, atol=1e-3)


def test_gaps_between_columns_are_kept(fake: FakeEngine) -> None:
    assert Move(7)(_gapped(fake, [2, 3, 9])).positions.tolist() == [7, 8, 14]


def test_layers_with_other_columns_move_together(fake: FakeEngine) -> None:
    first, second = _gapped(fake, [4, 5, 6]).layers[0], _gapped(fake, [5, 6, 9]).layers[1]
    moved = Move(10)(KVCache.build([first, second], fake.spec))
    assert [layer.positions.tolist() for layer in moved.layers] == [[10, 11, 12], [11, 12, 15]]


def test_each_step_is_in_the_lineage(fake: FakeEngine, content: PromptOf) -> None:
    cache = fake.prefill(content(fake, "abc"))
    made = ApplyRope()(Move(9)(RemoveRope()(cache))).manifest.lineage
    assert made[-3:] == (Step("rope.remove"), Step("rope.move", {"start": 9}), Step("rope.apply"))
    assert RemoveRope()(RemoveRope()(cache)).manifest.lineage == RemoveRope()(cache).manifest.lineage
    assert ApplyRope()(cache) is cache


def test_the_old_cache_is_untouched(fake: FakeEngine, content: PromptOf) -> None:
    cache = fake.prefill(content(fake, "abc"))
    keys = [layer.keys.clone() for layer in cache.layers]
    Move(100)(cache)
    RemoveRope()(cache)
    assert all(torch.equal(layer.keys, old) for layer, old in zip(cache.layers, keys, strict=True))
    assert cache.positions.tolist() == [0, 1, 2]


def test_a_segment_cannot_be_moved_before_the_first_position(fake: FakeEngine, content: PromptOf) -> None:
    with pytest.raises(UsageError, match="position -1"):
        Move(-1)(fake.prefill(content(fake, "abc")))


def _gapped(engine: FakeEngine, positions: list[int]) -> KVCache:
    """A cache of the fake's keys at some positions."""
    where = torch.tensor(positions, dtype=torch.int32)
    base = torch.randn((2, len(positions), 8), generator=torch.Generator().manual_seed(3))
    keys = turn(base, rotation(angles(where, engine.spec.rope)), engine.spec.rope)
    return KVCache.build([KVLayer(index, keys, base.clone(), where) for index in range(2)], engine.spec)
