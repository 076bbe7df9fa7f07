"""Columns computed again are those a prefill makes: of a few tokens or a text, layer by layer or all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from unspoken.cache import KVLayer
from unspoken.engines.fake import FakeEngine
from unspoken.engines.parked import Parked, Slot
from unspoken.engines.protocol import Engine
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import ContextOverflow, IncompatibleCache
from unspoken.transforms.rope import RemoveRope
from unspoken.trust.recompute import CHUNK, first_layer, whole_text
from unspoken.trust.spotcheck import spot_check

from .tampering import changed, cut, neighbours, read, text, tokens


@pytest.fixture(scope="module")
def tiny(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """A model of two layers."""
    return tiny_engine("llama")


def _same(found: Sequence[KVLayer], right: Sequence[KVLayer]) -> None:
    for one, other in zip(found, right, strict=True):
        assert one.index == other.index
        torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, CHUNK, CHUNK + 1, CHUNK + 40])
def test_a_text_comes_out_as_its_prefill(engine: TransformersEngine, count: int) -> None:
    right = RemoveRope()(engine.prefill(text(count, 3)))
    made = whole_text(engine, tokens(count, 3), None, 2)
    assert made.positions.tolist() == right.positions.tolist()
    _same(made.layers, right.layers)
    _same(whole_text(engine, tokens(count, 3), None, 1).layers, right.layers[:1])


def test_a_text_behind_a_prefix_comes_out_without_it(engine: TransformersEngine) -> None:
    before = engine.prefill(text(9, 70))
    right = RemoveRope()(engine.prefill(text(CHUNK + 5, 3), before).slice(9, CHUNK + 14))
    made = whole_text(engine, tokens(CHUNK + 5, 3), before, 2)
    assert made.positions.tolist() == right.positions.tolist() == list(range(9, CHUNK + 14))
    _same(made.layers, right.layers)
    alone = whole_text(engine, tokens(CHUNK + 5, 3), None, 2)
    assert not torch.allclose(alone.layers[1].values, made.layers[1].values, atol=1e-2)  # The prefix is in layer 1.


def test_layer_0_of_tokens_in_any_order_is_that_of_the_text_they_come_from(engine: TransformersEngine) -> None:
    right = RemoveRope()(engine.prefill(text(CHUNK + 40, 3))).layers[0]
    order = torch.randperm(CHUNK + 40, generator=torch.Generator().manual_seed(1))
    ids = [tokens(CHUNK + 40, 3)[at] for at in order.tolist()]
    found = first_layer(engine, ids)
    torch.testing.assert_close(found.keys, right.keys[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.values, right.values[:, order], atol=1e-5, rtol=0)


def test_engines_without_single_layers_find_the_same(tiny: TransformersEngine, fake: FakeEngine) -> None:
    parked: Engine = Parked(lambda: tiny, Slot())
    long = tokens(CHUNK + 40, 3)
    alone = [(first_layer(each, long), *whole_text(each, long, None, 2).layers) for each in (tiny, parked)]
    _same(*alone)
    lying = changed(read(tiny), neighbours, [20])
    for engine in (tiny, parked):
        assert spot_check(lying, engine).deviating == (20,)
        assert spot_check(lying, engine, layers=(0,), columns=None).deviating == (20,)
    honest = read(fake)
    assert spot_check(honest, fake).layers == (0, 1)
    assert spot_check(changed(honest, neighbours, [20]), fake).deviating == (20,)
    assert spot_check(changed(cut(fake), neighbours, [20]), fake, columns=None).deviating == (20,)


def test_what_does_not_fit_is_refused(tiny: TransformersEngine, fake: FakeEngine) -> None:
    with pytest.raises(ContextOverflow):
        whole_text(tiny, tokens(513, 3), None, 2)
    with pytest.raises(ContextOverflow):
        whole_text(tiny, tokens(503, 3), tiny.prefill(text(10, 70)), 2)
    with pytest.raises(IncompatibleCache):
        whole_text(tiny, tokens(5, 3), fake.prefill(text(10, 70)), 2)
