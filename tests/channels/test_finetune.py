"""Between fine-tunes: all layers computed anew is the receiver's own reading, none is the sender's columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from unspoken.cache import KVCache
from unspoken.channels.kv import content_columns
from unspoken.channels.protocol import Delivery
from unspoken.channels.text import content
from unspoken.engines import gate
from unspoken.engines.fake import FakeEngine
from unspoken.engines.transformers import TransformersEngine
from unspoken.engines.tuned import low_rank_copy
from unspoken.errors import GateFailed, IncompatibleCache, UsageError
from unspoken.session import Agent

SOURCE = "The old mill is run by Anna. It was calm."
Deliver = Callable[..., Delivery]


class Other(FakeEngine):
    """The fake model in an engine of another name."""

    name = "other"


class Mixes(Other):
    """One whose values stand in another order."""

    def prefill(self, *given: Any, **more: Any) -> KVCache:
        made = super().prefill(*given, **more)
        return KVCache(tuple(replace(each, values=each.values.flip(-1)) for each in made.layers), made.manifest)


@pytest.fixture
def sister(deep: TransformersEngine) -> TransformersEngine:
    """A copy of the deep model, its projections changed as LoRA changes them."""
    return low_rank_copy(deep, size=0.3, rank=2)


def difference(left: KVCache, right: KVCache) -> list[float]:
    """The largest difference of keys or values in each layer."""
    return [
        max(float((a.keys - b.keys).abs().max()), float((a.values - b.values).abs().max()))
        for a, b in zip(left.layers, right.layers, strict=True)
    ]


def test_all_layers_anew_is_the_receivers_own_reading(
    deep: TransformersEngine, sister: TransformersEngine, deliver: Deliver
) -> None:
    vera = Agent("vera", deep)
    delivery = deliver("finetune:0-4+float32", vera, (Agent("lyra", sister), SOURCE))
    own = deep.prefill(content(vera, SOURCE), vera.prefix)
    assert delivery.past is not None
    assert max(difference(delivery.past, own)) < 1e-5
    asked = vera.asked("Who?")
    assert torch.allclose(deep.logits(asked, delivery.past), deep.logits(asked, own), atol=1e-4)
    assert delivery.recomputed == 1.0
    # Nothing but tokens and positions had to travel.
    assert delivery.bytes_moved == 8 * delivery.tokens_skipped


def test_no_layer_anew_is_the_sisters_columns_moved(
    deep: TransformersEngine, sister: TransformersEngine, deliver: Deliver
) -> None:
    vera, lyra = Agent("vera", deep), Agent("lyra", sister)
    delivery = deliver("finetune+float32", vera, (lyra, SOURCE))
    segment = content_columns(lyra.read(SOURCE).cache)
    assert delivery.past is not None
    for mine, other, prefix in zip(delivery.past.layers, segment.layers, vera.prefix.layers, strict=True):
        assert torch.equal(mine.values[:, prefix.columns :], other.values)
        assert torch.equal(mine.values[:, : prefix.columns], prefix.values)
    assert delivery.recomputed == 0
    assert delivery.past.spec == deep.spec
    assert any(step.op == "finetune" for step in delivery.past.manifest.lineage)


def test_a_group_of_layers_starts_from_the_sisters_residuals(
    deep: TransformersEngine, sister: TransformersEngine, deliver: Deliver
) -> None:
    vera, lyra = Agent("vera", deep), Agent("lyra", sister)
    none, group = (deliver(name, vera, (lyra, SOURCE)) for name in ("finetune+float32", "finetune:2-3+float32"))
    assert none.past is not None
    assert group.past is not None
    changed = [value > 1e-6 for value in difference(none.past, group.past)]
    assert changed == [False, False, True, True, False]
    # The slow way: the sister's hidden states, from transformers itself, into the receiver's layer.
    ids = lyra.read(SOURCE).cache.manifest.token_ids
    start = lyra.prefix.columns
    with torch.inference_mode():
        states = sister._model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, start:]
    at = torch.arange(vera.prefix.columns, group.past.columns)
    wire = states.to(torch.bfloat16).float()
    _, made = deep.through(wire, [none.past.layers[2], none.past.layers[3]], at, none.past.positions[at].long())
    assert torch.allclose(group.past.layers[2].keys, made[0].keys, atol=1e-4)
    assert torch.allclose(group.past.layers[3].values, made[1].values, atol=1e-4)
    assert group.recomputed == pytest.approx(2 / 5)
    assert group.bytes_moved < none.bytes_moved


def test_same_weights_give_the_plain_channel(deep: TransformersEngine, deliver: Deliver) -> None:
    vera, read = Agent("vera", deep), (Agent("lyra", deep), SOURCE)
    plain, relay = deliver("kv", vera, read), deliver("finetune", vera, read)
    assert plain.past is not None
    assert relay.past is not None
    assert max(difference(plain.past, relay.past)) == 0
    assert plain.bytes_moved == relay.bytes_moved


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("finetune:x", "'x' are no layers"),
        ("finetune:3-1", "'3-1' are no layers"),
        ("finetune:²-³", "'²-³' are no layers"),
        (f"finetune:0-{'9' * 5000}", "are no layers"),
        ("finetune:3-5", "no layer 5 among 5"),
        ("finetune@0.3", "no option 'amount'"),
    ],
)
def test_impossible_groups_are_refused(deep: TransformersEngine, deliver: Deliver, channel: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        deliver(channel, Agent("vera", deep), (Agent("lyra", deep), SOURCE))


def test_another_architecture_is_no_fine_tune(
    deep: TransformersEngine, tiny_engine: Callable[..., TransformersEngine], deliver: Deliver
) -> None:
    stranger = Agent("lyra", tiny_engine("qwen2", num_hidden_layers=5))
    with pytest.raises(IncompatibleCache, match=r"is no fine-tune of the same model .* family is qwen2"):
        deliver("finetune", Agent("vera", deep), (stranger, SOURCE))


@pytest.mark.parametrize("seed", [0, 1])
def test_columns_of_an_engine_that_was_not_measured_are_refused(
    seed: int, fake: FakeEngine, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_PAIRS", {})
    vera, read = Agent("vera", fake), (Agent("lyra", Mixes(seed)), SOURCE)
    # With the receiver's own weights the pair is measured, and found wrong; with other weights it cannot be.
    with pytest.raises(GateFailed, match=("does not go on from caches", "made by other is not known")[seed]):
        deliver("finetune", vera, read)


def test_columns_of_an_engine_that_was_measured_are_taken(
    fake: FakeEngine, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_PAIRS", {})
    vera = Agent("vera", fake)
    own, sisters = ((Agent("lyra", Other(seed)), SOURCE) for seed in (0, 1))
    taken = deliver("finetune", vera, own)
    assert taken.tokens_skipped == len(SOURCE)
    assert "other to" in "".join(gate._PAIRS)
    # What was learnt from the receiver's weights holds for a sister's.
    assert deliver("finetune", vera, sisters).tokens_skipped == len(SOURCE)


def test_engines_without_single_layers_are_refused_before_anything_is_packed(
    fake: FakeEngine, deep: TransformersEngine, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspoken.channels.finetune.content_columns", lambda _: pytest.fail("columns were taken"))
    for channel in ("finetune:0-1", "finetune:1-1"):
        with pytest.raises(UsageError, match="'finetune' needs single layers, and the engine 'fake'"):
            deliver(channel, Agent("vera", fake), (Agent("lyra", FakeEngine(1)), SOURCE))
    with pytest.raises(IncompatibleCache, match="family is fake"):
        deliver("finetune:1-1", Agent("vera", deep), (Agent("lyra", fake), SOURCE))


def test_the_copy_differs_by_so_much_in_so_few_directions(deep: TransformersEngine, sister: TransformersEngine) -> None:
    before, after = dict(deep._model.named_parameters()), dict(sister._model.named_parameters())
    for name, weight in before.items():
        change = (after[name] - weight).detach()
        if name.endswith("_proj.weight"):
            assert float(change.norm() / weight.norm()) == pytest.approx(0.3, rel=1e-3)
            assert int(torch.linalg.matrix_rank(change)) == 2
        else:
            assert not change.any()
    assert sister.spec.weights != deep.spec.weights
    for size, rank in ((0.0, 2), (-1.0, 2), (0.1, 0)):
        with pytest.raises(UsageError, match="is none"):
            low_rank_copy(deep, size, rank)
