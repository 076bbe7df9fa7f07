"""A text is read out of a cache with nothing but the numbers of layer 0 and the model."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import torch

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.fake import FakeEngine
from unspoken.engines.parked import Parked, Slot
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.manifest import Step
from unspoken.transforms.rope import Move, RemoveRope
from unspoken.transforms.select import keep
from unspoken.trust.leak import GAP, leak
from unspoken.trust.recompute import first_layer

from .tampering import WIRES, changed, cut, neighbours, read, sent, tokens

TEXT = "The door code is 4711; the old mill is run by Anna."


@pytest.fixture(scope="module")
def tiny(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """A model of two layers."""
    return tiny_engine("llama")


def _blank(cache: KVCache, side: str) -> KVCache:
    """The same cache with its keys or its values blanked."""

    def one(layer: KVLayer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        parts = {"keys": layer.keys, "values": layer.values}
        parts[side] = torch.zeros_like(parts[side])
        return parts["keys"], parts["values"], layer.positions

    return cache.rebuilt(Step("blank"), one)


@pytest.mark.parametrize("wire", WIRES)
def test_every_token_is_read_right_in_every_wire_form_without_token_ids(engine: TransformersEngine, wire: str) -> None:
    for cache in (read(engine, 70, 4), cut(engine, 70, 4)):
        found = leak(sent(cache, wire).without_tokens(), engine)
        assert found.token_ids == tokens(70, 4)
        assert found.recovered is None
        assert found.by == "values"
        assert found.distance < 0.2


@pytest.mark.parametrize("side", ["keys", "values"])
def test_blanking_keys_or_values_hides_nothing(engine: TransformersEngine, side: str) -> None:
    for cache in (read(engine, 70, 4), Move(200)(read(engine, 70, 4)), RemoveRope()(read(engine, 70, 4))):
        found = leak(_blank(cache, side), engine)
        assert found.by == {"keys": "values", "values": "keys"}[side]
        assert (found.token_ids, found.recovered) == (tokens(70, 4), 1.0)


def test_the_ids_a_cache_names_are_compared_and_not_believed(tiny: TransformersEngine) -> None:
    cache = read(tiny, 60, 4)
    lying = KVCache(cache.layers, msgspec.structs.replace(cache.manifest, token_ids=(*tokens(45, 4), *[299] * 15)))
    found = leak(lying, tiny)
    assert (found.token_ids, found.recovered) == (tokens(60, 4), 0.75)
    swapped = leak(changed(cache, neighbours, [10, 20, 30]), tiny)
    assert swapped.recovered == pytest.approx(57 / 60)
    assert swapped.token_ids[10] == tokens(60, 4)[9]


def test_the_text_is_spelt_with_a_mark_where_columns_are_missing(tiny: TransformersEngine) -> None:
    from unspoken.engines.protocol import Piece, Prompt

    cache = tiny.prefill(Prompt((Piece("content", tiny.encode(TEXT)),)))
    assert leak(cache, tiny).text == TEXT
    chosen = torch.tensor([*range(4, 13), *range(17, 21)])
    kept = keep(cache, [chosen] * 2, Step("select.test"))
    assert leak(kept, tiny).text == f"door code{GAP}4711"


def test_layers_that_hold_different_columns_are_no_hindrance(tiny: TransformersEngine) -> None:
    cache = read(tiny, 60, 4)
    apart = keep(cache, [torch.arange(0, 60, 3), torch.arange(40)], Step("select.test"))
    found = leak(apart, tiny)
    assert (found.token_ids, found.recovered) == (tokens(60, 4)[::3], None)


def test_only_layer_0_is_read(tiny: TransformersEngine) -> None:
    cache = read(tiny, 60, 4)
    alone = KVCache.build(cache.layers[:1], cache.spec)
    assert leak(alone, tiny).token_ids == tokens(60, 4)
    upper = KVCache.build(cache.layers[1:], cache.spec)
    none = keep(cache, [torch.arange(0), torch.arange(40)], Step("select.test"))
    for without in (upper, none):
        with pytest.raises(UsageError, match="no column of layer 0") as refused:
            leak(without, tiny)
        assert "does not make it safe" in refused.value.hint


def test_vocabularies_are_gone_through_in_steps(tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = read(tiny, 60, 4)
    monkeypatch.setattr("unspoken.trust.leak.CHUNK", 7)
    monkeypatch.setattr("unspoken.trust.leak.DISTANCES", 1)
    assert leak(cache, tiny).token_ids == tokens(60, 4)


def test_engines_without_single_layers_read_the_same(tiny: TransformersEngine, fake: FakeEngine) -> None:
    assert leak(read(tiny, 60, 4), Parked(lambda: tiny, Slot())).token_ids == tokens(60, 4)
    assert leak(read(fake, 60, 4), fake).recovered == 1.0


@pytest.mark.model
def test_of_a_real_models_tokens_all_but_a_few_have_a_column_of_their_own() -> None:
    from unspoken import load_model

    model = load_model("smollm2-135m")
    every = first_layer(model, range(model.spec.vocabulary)).values.transpose(0, 1).flatten(1)
    rounded = (1e4 * every / every.norm(dim=1, keepdim=True)).round()
    alike = torch.unique(rounded, dim=0, return_counts=True)[1]
    assert (len(every), int(alike[alike > 1].sum())) == (49152, 15)
    ids = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:1000]
    cache = KVCache.build([first_layer(model, ids.tolist())], model.spec, rope="removed")
    found = torch.tensor(leak(sent(cache, "q4_0"), model).token_ids)
    wrong = found != ids
    assert int(wrong.sum()) <= 2
    apart = (every[found[wrong]] - every[ids[wrong]]).norm(dim=1) / every[ids[wrong]].norm(dim=1)
    assert bool((apart < 1e-3).all())  # Only what cannot be told apart.


def test_another_model_reads_nothing(tiny: TransformersEngine, fake: FakeEngine) -> None:
    with pytest.raises(IncompatibleCache):
        leak(read(tiny), fake)
