"""The cache itself as the channel: its content columns placed behind a prefix, or all of it gone on from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unspoken.channels.kv import content_columns, received, wire_bytes
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Delivery, Request
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache
from unspoken.session import Agent
from unspoken.transforms.cast import Cast
from unspoken.transforms.place import place, place_behind
from unspoken.transforms.rope import Move, RemoveRope

from .told import QUESTION, SOURCE, answered


@pytest.mark.parametrize(("channel", "width"), [("kv", 2), ("kv+float16", 2), ("kv+float32", 4)])
def test_kv_moves_the_content_columns_and_their_positions(
    send: Callable[..., Delivery], receiver: Agent, channel: str, width: int
) -> None:
    delivery = send(channel)
    columns = len(SOURCE)
    per_column = receiver.engine.spec.elements_per_column() * width
    assert delivery.channel == channel
    assert delivery.bytes_moved == columns * per_column + columns * 4
    assert (delivery.tokens_prefilled, delivery.tokens_skipped) == (0, columns)
    assert delivery.lossy
    assert delivery.message is None


def test_kv_brings_content_and_nothing_else_of_the_sender(
    send: Callable[..., Delivery], receiver: Agent, fake: FakeEngine
) -> None:
    past = send("kv").past
    assert past is not None
    ids = past.manifest.token_ids
    assert ids == receiver.prefix.manifest.token_ids + fake.encode(SOURCE)  # type: ignore[operator]
    assert fake._readable(past) == list(ids)
    assert "swordfish" not in fake.decode(ids)
    assert "swordfish" in fake.decode(send("kv-continue").past.manifest.token_ids)  # type: ignore[arg-type,union-attr]


def test_kv_stands_right_after_the_receivers_prefix_with_one_sink(
    send: Callable[..., Delivery], receiver: Agent
) -> None:
    past = send("kv").past
    assert past is not None
    assert all(layer.positions.tolist() == list(range(past.columns)) for layer in past.layers)
    assert [span.kind for span in past.manifest.spans].count("sink") == 1
    content = next(span for span in past.manifest.spans if span.kind == "content")
    assert (content.start, content.stop) == (receiver.prefix.columns, past.columns)


def test_kv_is_what_the_receiver_would_have_read_up_to_the_type_on_the_wire(
    send: Callable[..., Delivery], receiver: Agent
) -> None:
    # The fake's columns do not depend on what stands before them, so nothing else can differ.
    own = receiver.read(SOURCE).cache
    for channel, bound in (("kv+float32", 1e-5), ("kv", 2**-7)):
        past = send(channel).past
        assert past is not None
        for mine, other in zip(past.layers, own.layers, strict=True):
            assert torch.equal(mine.values, other.values)
            assert torch.allclose(mine.keys, other.keys, atol=bound)


def test_kv_continue_hands_over_the_whole_cache(sender: Agent, receiver: Agent) -> None:
    reading = sender.read(SOURCE)
    delivery = build_channel("kv-continue").send([Request((reading,), QUESTION)], receiver)[0]
    assert delivery.past is reading.cache
    assert delivery.tokens_skipped == reading.cache.columns
    assert delivery.bytes_moved == wire_bytes(reading.cache) == reading.cache.bytes_held() + 4 * reading.cache.columns
    assert not delivery.lossy


def test_kv_continue_is_exact_on_a_real_model(engine: TransformersEngine) -> None:
    sender, receiver = Agent("lyra", engine), Agent("vera", engine)
    reading = sender.read("Anna runs it.")
    continued, joint = (
        party.answer([QUESTION], [build_channel(name).send([Request((reading,), QUESTION)], party)[0]], Limits(4))[0]
        for party, name in ((receiver, "kv-continue"), (sender, "full-text"))
    )
    assert continued.generation.token_ids == joint.generation.token_ids
    assert torch.allclose(continued.generation.first_logprobs, joint.generation.first_logprobs, atol=1e-4)


def test_segment_is_position_free_on_the_wire_and_turned_once(sender: Agent, receiver: Agent) -> None:
    segment = content_columns(sender.read(SOURCE).cache)
    assert segment.manifest.rope == "removed"
    standing = place(segment, receiver.prefix)
    assert standing.manifest.rope == "applied"
    assert standing.positions[0] == receiver.prefix.next_position
    assert [step.op for step in standing.manifest.lineage].count("rope.apply") == 1


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_placing_in_one_pass_equals_placing_step_by_step(wire: str, dtype: str) -> None:
    engine = FakeEngine(dtype=dtype)
    prefix = Agent("vera", engine).prefix
    free = Cast(wire)(content_columns(Agent("lyra", engine).read(SOURCE).cache))
    gapped = free.slice(3, 9).concat(free.slice(20, 31))
    for segment in (free, gapped, Move(0)(free), RemoveRope()(Agent("lyra", engine).read(SOURCE).cache)):
        slow, fast = prefix.concat(place(segment, prefix)), place_behind(prefix, segment)
        assert fast.manifest == slow.manifest
        for mine, other in zip(fast.layers, slow.layers, strict=True):
            assert torch.equal(mine.keys, other.keys)
            assert torch.equal(mine.values, other.values)
            assert torch.equal(mine.positions, other.positions)


def test_a_cache_from_elsewhere_is_inserted_if_position_free_and_continued_otherwise(
    sender: Agent, receiver: Agent
) -> None:
    cache = sender.read(SOURCE).cache
    inserted, continued = received(content_columns(cache), receiver), received(cache, receiver)
    assert (inserted.channel, continued.channel) == ("kv", "kv-continue")
    assert inserted.past is not None
    assert inserted.past.columns == receiver.prefix.columns + len(SOURCE)
    assert answered(receiver, inserted).text == answered(receiver, continued).text == "Bob"


@pytest.mark.parametrize("channel", ["kv", "kv-continue"])
def test_caches_of_another_model_are_refused(channel: str, sender: Agent) -> None:
    stranger = Agent("vera", FakeEngine(seed=1))
    reading = sender.read(SOURCE)
    with pytest.raises(IncompatibleCache, match="weights"):
        build_channel(channel).send([Request((reading,), QUESTION)], stranger)
    for cache in (reading.cache, RemoveRope()(reading.cache)):
        with pytest.raises(IncompatibleCache, match="weights"):
            received(cache, stranger)


def test_gaps_in_a_reading_are_kept_on_the_way(sender: Agent, receiver: Agent) -> None:
    cache = content_columns(sender.read(SOURCE).cache)
    gapped = cache.slice(0, 5).concat(cache.slice(9, 12))
    positions = place(gapped, receiver.prefix).positions
    assert (positions - receiver.prefix.next_position).tolist() == [0, 1, 2, 3, 4, 9, 10, 11]
    assert place(gapped, Move(100)(receiver.prefix)).positions[0] == 100 + receiver.prefix.columns
