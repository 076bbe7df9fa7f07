"""Both ends of composing are exact: read everything again and it is joint prefill, nothing and it is plain moving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.channels import compose
from unspoken.channels.kv import content_columns
from unspoken.channels.protocol import Delivery
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits, Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import ContextOverflow, UsageError
from unspoken.session import Agent
from unspoken.transforms.place import place
from unspoken.transforms.rope import ApplyRope

PARTS = ("The mill is run by Anna.", " It was calm.", " The inn sells silk and salt.", " Rain fell.")
NAMES = ("lyra", "cc", "dora", "emil")
Deliver = Callable[..., Delivery]


def senders(engine: TransformersEngine, parts: Sequence[str], card: str = "") -> list[tuple[Agent, str]]:
    """An agent for each part, on one model."""
    return [(Agent(name, engine, card), part) for name, part in zip(NAMES, parts, strict=False)]


def jointly(receiver: Agent, parts: Sequence[str]) -> KVCache:
    """The receiver's own reading of all parts, tokenised apart."""
    pieces = tuple(Piece("content", receiver.engine.encode(part)) for part in parts)
    return receiver.engine.prefill(Prompt(pieces), receiver.prefix)


def apart(left: KVCache, right: KVCache) -> float:
    """The largest difference of any key or value."""
    found = 0.0
    for mine, other in zip(left.layers, right.layers, strict=True):
        assert torch.equal(mine.positions, other.positions)
        found = max(found, float((mine.keys - other.keys).abs().max()), float((mine.values - other.values).abs().max()))
    return found


def logits(receiver: Agent, past: KVCache | None) -> Tensor:
    """What the receiver makes of a question on top of a cache."""
    return receiver.engine.logits(receiver.asked("Who runs the mill?"), past)


@pytest.mark.parametrize("parts", [PARTS[:1], PARTS[:2], PARTS, PARTS[::-1]])
def test_reading_everything_again_is_joint_prefill(
    engine: TransformersEngine, deliver: Deliver, parts: Sequence[str]
) -> None:
    receiver = Agent("vera", engine)
    delivery = deliver("compose:blend@1.0+float32", receiver, *senders(engine, parts))
    joint = jointly(receiver, parts)
    assert delivery.past is not None
    assert apart(delivery.past, joint) < 1e-4
    assert float((logits(receiver, delivery.past) - logits(receiver, joint)).abs().max()) < 1e-4
    assert delivery.recomputed == 1.0
    assert delivery.past.manifest.token_ids == joint.manifest.token_ids
    assert delivery.past.manifest.spans == joint.manifest.spans or len(parts) > 1


def test_reading_everything_again_in_deep_layers_is_joint_prefill(deep: TransformersEngine, deliver: Deliver) -> None:
    receiver = Agent("vera", deep)
    delivery = deliver("compose:blend@1+float32", receiver, *senders(deep, PARTS))
    assert delivery.past is not None
    assert apart(delivery.past, jointly(receiver, PARTS)) < 1e-4


@pytest.mark.parametrize(
    "channel",
    ["compose:blend@0+float32", "compose:cacheblend@0+float32", "compose:legolink@0+float32", "compose+float32"],
)
def test_reading_nothing_again_is_moving(deep: TransformersEngine, deliver: Deliver, channel: str) -> None:
    receiver, read = Agent("vera", deep), senders(deep, PARTS)
    delivery = deliver(channel, receiver, *read)
    expected = receiver.prefix
    for sender, part in read:
        expected = expected.concat(place(content_columns(sender.read(part).cache), expected))
    assert delivery.past is not None
    assert apart(delivery.past, expected) == 0
    assert delivery.recomputed == 0
    plain = deliver("kv+float32", receiver, *read)
    assert plain.past is not None
    assert apart(plain.past, expected) == 0


def test_legolink_with_all_tokens_is_joint_prefill_where_the_first_segment_was_read_alike(
    deep: TransformersEngine, deliver: Deliver
) -> None:
    # With one card for all, the first segment saw the same prefix, and is right as it came.
    card = "You are one of us."
    receiver, read = Agent("vera", deep, card), senders(deep, PARTS, card)
    delivery = deliver("compose:legolink@100+float32", receiver, *read)
    assert delivery.past is not None
    assert apart(delivery.past, jointly(receiver, PARTS)) < 1e-4
    total = sum(len(part) for part in PARTS)
    assert delivery.recomputed == pytest.approx((total - len(PARTS[0])) / total)


def test_legolink_reads_the_first_tokens_in_context_and_leaves_the_rest(
    deep: TransformersEngine, deliver: Deliver
) -> None:
    receiver, read = Agent("vera", deep), senders(deep, PARTS[:2])
    moved = deliver("compose:align+float32", receiver, *read).past
    linked = deliver("compose:legolink@4+float32", receiver, *read).past
    assert moved is not None
    assert linked is not None
    begin = receiver.prefix.columns + len(PARTS[0])
    again = receiver.engine.prefill(Prompt((Piece("content", deep.encode(PARTS[1])[:4]),)), moved.slice(0, begin))
    for old, new, read_again in zip(moved.layers, linked.layers, again.layers, strict=True):
        assert torch.allclose(new.keys[:, begin : begin + 4], read_again.keys[:, begin:], atol=1e-5)
        assert torch.equal(new.keys[:, :begin], old.keys[:, :begin])
        assert torch.allclose(new.keys[:, begin + 4 :], old.keys[:, begin + 4 :], atol=1e-5)
    assert torch.equal(moved.positions, linked.positions)


def test_concat_leaves_positions_as_they_were_and_the_question_follows_all_columns(
    deep: TransformersEngine, deliver: Deliver
) -> None:
    receiver, read = Agent("vera", deep), senders(deep, PARTS[:3])
    delivery = deliver("compose:concat+float32", receiver, *read)
    past, at = delivery.past, receiver.prefix.columns
    assert past is not None
    for sender, part in read:
        own = ApplyRope()(content_columns(sender.read(part).cache))
        for mine, other in zip(past.layers, own.layers, strict=True):
            assert torch.equal(mine.positions[at : at + own.columns], other.positions)
            assert torch.equal(mine.keys[:, at : at + own.columns], other.keys)
        at += own.columns
    assert delivery.onset.position == past.columns > past.next_position
    (reply,) = receiver.answer(["Who?"], [delivery], Limits(2))
    asked = receiver.asked("Who?")
    expected = deep.logits(asked, past, start=past.columns)[-1].log_softmax(dim=-1)
    assert torch.allclose(reply.generation.first_logprobs, expected, atol=1e-4)


def test_published_lays_whole_caches_side_by_side_and_the_receiver_brings_its_own_prompt(
    deep: TransformersEngine, deliver: Deliver
) -> None:
    receiver, read = Agent("vera", deep), senders(deep, PARTS[:2])
    delivery = deliver("compose:published+float32", receiver, *read)
    wholes = [sender.read(part).cache for sender, part in read]
    assert delivery.past is not None
    assert delivery.past.columns == sum(whole.columns for whole in wholes) == delivery.onset.position
    at = 0
    for whole in wholes:
        for mine, other in zip(delivery.past.layers, whole.layers, strict=True):
            assert torch.equal(mine.keys[:, at : at + whole.columns], other.keys)
            assert torch.equal(mine.positions[at : at + whole.columns], other.positions)
        at += whole.columns
    assert delivery.prompt == receiver.frame.before
    (reply,) = receiver.answer(["Who?"], [delivery], Limits(2))
    expected = deep.logits(delivery.prompt + receiver.asked("Who?"), delivery.past, start=at)[-1]
    assert torch.allclose(reply.generation.first_logprobs, expected.log_softmax(dim=-1), atol=1e-4)
    with pytest.raises(UsageError, match="takes no amount"):
        deliver("compose:published@3", receiver, *read)


def test_order_of_senders_is_data(deep: TransformersEngine, deliver: Deliver) -> None:
    receiver, read = Agent("vera", deep), senders(deep, PARTS[:2])
    one, other = (deliver("compose:blend@1+float32", receiver, *order).past for order in (read, read[::-1]))
    assert one is not None
    assert other is not None
    assert one.manifest.token_ids != other.manifest.token_ids
    assert apart(other, jointly(receiver, PARTS[:2][::-1])) < 1e-4


def test_cacheblend_reads_again_what_differs_most(deep: TransformersEngine) -> None:
    receiver = Agent("vera", deep)
    joint = jointly(receiver, PARTS[:1])
    segment = content_columns(joint)
    # Right columns of the receiver's own reading, but for two that are spoilt in all layers from the second on.
    layers = []
    for layer in segment.layers:
        values = layer.values.clone()
        if layer.index >= 1:
            values[:, [3, 17]] += 5.0
        layers.append(KVLayer(layer.index, layer.keys, values, layer.positions))
    spoilt = KVCache(tuple(layers), segment.manifest)
    columns = segment.columns
    mended = compose.cacheblend([spoilt], receiver, 2 / columns)
    assert apart(mended.past, joint) < 1e-4
    assert mended.recomputed == pytest.approx((2 * columns + 3 * 2) / (5 * columns))
    step = mended.past.manifest.lineage[-1]
    assert step.op == "recompute"
    assert step.args == {"tokens": 2, "of": columns, "whole_layers": 2}
    only_one = compose.cacheblend([spoilt], receiver, 1 / columns)
    assert apart(only_one.past, joint) > 1.0


def test_blend_looks_at_neighbours_and_at_the_size_of_what_differs() -> None:
    came = torch.zeros(1, 7, 2)
    came[0, :, 0] = torch.tensor([10.0, 1, 1, 1, 1, 1, 1])
    fresh = came.clone()
    fresh[0, :, 1] = torch.tensor([3.0, 0, 0, 1, 2, 1, 0])
    assert compose.squared_distance(fresh, came).tolist() == [9, 0, 0, 1, 4, 1, 0]
    # Relative: .09, 0, 0, 1, 4, 1, 0; each with the ones beside it, of which the ends have one.
    expected = torch.tensor([0.045, 0.03, 1 / 3, 5 / 3, 2, 5 / 3, 0.5])
    assert torch.allclose(compose.relative_with_neighbours(fresh, came), expected)


def test_what_is_read_again_needs_tokens_and_counts_their_bytes(deep: TransformersEngine, deliver: Deliver) -> None:
    receiver, read = Agent("vera", deep), senders(deep, PARTS[:2])
    moved, linked = (deliver(name, receiver, *read) for name in ("compose:align", "compose:legolink@4"))
    assert linked.bytes_moved - moved.bytes_moved == 4 * moved.tokens_skipped
    silent = [content_columns(sender.read(part).cache).without_tokens() for sender, part in read]
    for composer in (compose.legolink, compose.cacheblend, compose.blend):
        with pytest.raises(UsageError, match="did not tell the tokens"):
            composer(silent, receiver, 1)
    assert compose.align(silent, receiver).past.columns == receiver.prefix.columns + moved.tokens_skipped


def test_more_segments_than_the_model_has_positions_are_refused_before_any_is_read_again(
    deep: TransformersEngine, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each sender's text fits the model, all together do not.
    receiver, text = Agent("vera", deep), "The mill is run by Anna. " * 10
    read = senders(deep, [text] * 2)
    monkeypatch.setattr(TransformersEngine, "through", lambda *_: pytest.fail("a layer was run"))
    needed = receiver.prefix.columns + 2 * len(text)
    assert needed > deep.spec.context
    for channel in ("compose:blend@0.15", "compose:cacheblend@0.15"):
        with pytest.raises(ContextOverflow, match=f"needs {needed} positions; .* was made for 512"):
            deliver(channel, receiver, *read)


def test_blend_on_an_engine_without_single_layers_is_refused_with_the_reason(
    fake: FakeEngine, deliver: Deliver
) -> None:
    read: Any = [(Agent(name, fake), part) for name, part in zip(NAMES[:2], PARTS, strict=False)]
    receiver = Agent("vera", fake)
    with pytest.raises(UsageError, match="'compose:blend' needs single layers, and the engine 'fake'"):
        deliver("compose:blend@0.5", receiver, *read)
    for channel in ("compose", "compose:legolink@3"):
        (reply,) = receiver.answer(["Who runs the mill?"], [deliver(channel, receiver, *read)], Limits(8))
        assert reply.text == "Anna"
