"""Channels over llama.cpp: what moves columns works as in transformers, what needs more is refused and says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.channels.kv import content_columns, packed_bytes
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Delivery, Request
from unspoken.engines import gate
from unspoken.engines.gate import BOUNDS, ensure_pair
from unspoken.engines.llamacpp.engine import LlamaCppEngine
from unspoken.engines.protocol import Engine, Limits, Piece, Prompt
from unspoken.errors import GateFailed, IncompatibleCache, UnspokenError, UsageError
from unspoken.session import Agent
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.place import place

from .tiny import WIDE

Engines = Callable[..., Any]
PARTS = ("The old mill is run by Anna.", " It was calm.", " The inn sells silk and salt.")
NAMES = ("lyra", "cc", "dora")
QUESTION = "Who runs the old mill?"
CARD = "You are one of us."
# As in `test_engine.py`: what llama.cpp's attention in float16 may do to a logit, and to a key or value.
ROUNDING = 0.03


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which pairs this process measured, and what a test measures with it."""
    monkeypatch.setattr(gate, "_PAIRS", {})


def send(channel: str, receiver: Agent, *senders: Engine, question: str = QUESTION, card: str = CARD) -> Delivery:
    """Let an agent on each engine read a part and send it all through a channel of a name."""
    read = tuple(Agent(name, each, card).read(part) for name, each, part in zip(NAMES, senders, PARTS, strict=False))
    (delivery,) = build_channel(channel).send([Request(read, question)], receiver)
    return delivery


def apart(left: Tensor, right: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((left.float() - right.float()).abs().max())


def columns_apart(left: KVCache, right: KVCache) -> float:
    """The largest difference of any key or value of two caches at the same positions."""
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(left.layers, right.layers, strict=True))
    return max(
        max(apart(a.keys, b.keys), apart(a.values, b.values)) for a, b in zip(left.layers, right.layers, strict=True)
    )


def asked(receiver: Agent, delivery: Delivery) -> Tensor:
    """Log-probabilities of the first token of a receiver's answer."""
    (reply,) = receiver.answer([QUESTION], [delivery], Limits(4))
    return reply.generation.first_logprobs


def jointly(receiver: Agent, parts: Sequence[str]) -> KVCache:
    """The receiver's own reading of all parts, tokenised apart."""
    pieces = tuple(Piece("content", receiver.engine.encode(part)) for part in parts)
    return receiver.engine.prefill(Prompt(pieces), receiver.prefix)


@pytest.mark.parametrize("codec", ["int8", "q8_0", "int4"])
@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
def test_coded_columns_arrive_as_the_codec_leaves_them_and_are_gone_on_from_as_in_transformers(
    codec: str, kv_type: str, tiny_llama: Engines, tiny_hf: Engines
) -> None:
    ours, theirs = tiny_llama("llama", kv_type, **WIDE), tiny_hf("llama", **WIDE)
    receiver = Agent("vera", ours)
    delivery = send(f"kv+{codec}", receiver, ours)
    packed = codec_named(codec).pack(content_columns(Agent("lyra", ours, CARD).read(PARTS[0]).cache))
    expected = receiver.prefix.concat(place(codec_named(codec).unpack(packed), receiver.prefix))
    assert delivery.past is not None
    assert columns_apart(delivery.past, expected) < 1e-5
    assert delivery.bytes_moved == packed_bytes(packed)
    assert delivery.bytes_moved < send("kv", receiver, ours).bytes_moved
    # The same columns in transformers: the codec's error is in both, and only the cells' type lies between them.
    question = receiver.asked(QUESTION)
    there, here = theirs.logits(question, delivery.past), ours.logits(question, delivery.past)
    bound = BOUNDS[f"ggml-{kv_type}"]
    assert apart(here, there) < bound
    assert apart(ours.logits(question, jointly(receiver, [PARTS[0][::-1]])), there) > 2 * bound


@pytest.mark.parametrize("channel", ["compose:align", "kv", "compose:legolink@0"])
def test_segments_stand_behind_one_another(channel: str, tiny_llama: Engines) -> None:
    engine = tiny_llama()
    receiver = Agent("vera", engine)
    delivery = send(f"{channel}+float32", receiver, *[engine] * 3)
    expected = receiver.prefix
    for name, part in zip(NAMES, PARTS, strict=True):
        segment = content_columns(Agent(name, engine, CARD).read(part).cache)
        expected = expected.concat(place(segment, expected))
    assert delivery.past is not None
    assert columns_apart(delivery.past, expected) < 1e-5
    assert delivery.past.positions.tolist() == list(range(expected.columns))
    answer = engine.logits(receiver.asked(QUESTION), expected)[-1].log_softmax(dim=-1)
    assert apart(asked(receiver, delivery), answer) < 1e-4


def test_legolink_over_everything_is_joint_prefill(kind: str, tiny_llama: Engines) -> None:
    # With one card for all, the first segment saw the same prefix, and is right as it came.
    engine = tiny_llama(kind)
    receiver, channels = Agent("vera", engine, CARD), ("compose:legolink@100+float32", "compose+float32")
    linked, moved = (send(name, receiver, *[engine] * 3) for name in channels)
    joint = jointly(receiver, PARTS)
    assert linked.past is not None
    assert moved.past is not None
    assert columns_apart(linked.past, joint) < ROUNDING
    expected = engine.logits(receiver.asked(QUESTION), joint)[-1].log_softmax(dim=-1)
    assert apart(asked(receiver, linked), expected) < 2 * ROUNDING
    # What is only moved has not seen what stands before it.
    assert columns_apart(moved.past, joint) > 10 * ROUNDING
    assert linked.past.manifest.token_ids == joint.manifest.token_ids
    assert linked.recomputed == pytest.approx(1 - len(PARTS[0]) / sum(map(len, PARTS)))


@pytest.mark.parametrize("channel", ["need:recency@0.5", "need:value-norm@0.5"])
def test_what_is_kept_of_each_layer_is_answered_on_as_in_transformers(
    channel: str, kind: str, tiny_llama: Engines, tiny_hf: Engines
) -> None:
    ours, theirs = tiny_llama(kind), tiny_hf(kind)
    here, there = Agent("vera", ours), Agent("vera", theirs)
    # One sender reads for both, so that both get the same columns; the pair is measured on the way.
    mine, other = (send(channel, receiver, ours) for receiver in (here, there))
    assert len(gate._PAIRS) == 1
    assert mine.past is not None
    kept = [layer.positions.tolist() for layer in mine.past.layers]
    assert {len(each) for each in kept} == {here.prefix.columns + len(PARTS[0]) // 2}
    assert (len(set(map(tuple, kept))) > 1) == (channel == "need:value-norm@0.5")
    answers = [receiver.answer([QUESTION], [made], Limits(6))[0] for receiver, made in ((here, mine), (there, other))]
    assert apart(*(each.generation.first_logprobs for each in answers)) < 2 * ROUNDING
    assert answers[0].generation.token_ids == answers[1].generation.token_ids
    assert apart(asked(here, mine), asked(here, send("kv", here, ours))) > 4 * ROUNDING


def test_layers_of_different_columns_are_not_read_on(tiny_llama: Engines) -> None:
    engine = tiny_llama()
    receiver = Agent("vera", engine)
    past = send("need:value-norm@0.5", receiver, engine).past
    with pytest.raises(IncompatibleCache, match="keeps one position for all layers"):
        engine.prefill(receiver.asked(QUESTION), past)


REFUSED = {
    "need@0.3": "'need' needs attention weights, and the engine 'llamacpp' does not show them",
    "layers@0.5": "'layers' needs attention weights, and the engine 'llamacpp' does not show them",
    "compose:blend@0.15": "'compose:blend' needs single layers, and the engine 'llamacpp' does not show them",
    "compose:cacheblend@0.15": "needs single layers, and the engine 'llamacpp' does not show them",
    "latent@2": "'latent' needs single layers",
    "embedding@2": "'embedding' needs single layers",
    "activation": "'activation' needs single layers",
    "finetune:0-1": "'finetune' needs single layers",
    "finetune:1-1": "'finetune' needs single layers",
}


@pytest.mark.parametrize("channel", sorted(REFUSED))
def test_what_needs_more_than_columns_is_refused_with_the_reason(channel: str, tiny_llama: Engines) -> None:
    engine = tiny_llama()
    with pytest.raises(UsageError, match=REFUSED[channel]) as error:
        send(channel, Agent("vera", engine), engine)
    assert "transformers" in error.value.hint


@pytest.mark.parametrize("channel", sorted({*REFUSED} - {"need@0.3", "latent@2"}))
def test_a_receiver_in_llamacpp_cannot_take_them_from_transformers_either(
    channel: str, tiny_llama: Engines, tiny_hf: Engines
) -> None:
    with pytest.raises(UsageError, match=REFUSED[channel]):
        send(channel, Agent("vera", tiny_llama()), tiny_hf())


@pytest.mark.parametrize("channel", ["need@0.3", "latent@2"])
def test_what_only_the_sender_has_to_show_goes_into_llamacpp(
    channel: str, tiny_llama: Engines, tiny_hf: Engines
) -> None:
    here, there = Agent("vera", tiny_llama()), Agent("vera", tiny_hf())
    mine, other = (send(channel, receiver, tiny_hf()) for receiver in (here, there))
    assert apart(asked(here, mine), asked(there, other)) < 2 * ROUNDING
    assert mine.bytes_moved == other.bytes_moved


def test_concatenated_segments_are_refused_where_the_question_would_not_stand_next(tiny_llama: Engines) -> None:
    engine = tiny_llama()
    receiver = Agent("vera", engine)
    delivery = send("compose:concat", receiver, *[engine] * 2)
    assert delivery.past is not None
    assert delivery.onset.position != delivery.past.next_position
    with pytest.raises(UsageError, match="'llamacpp' cannot read a prompt at another position"):
        receiver.answer([QUESTION], [delivery], Limits(2))


@pytest.mark.parametrize("channel", ["finetune", "finetune:0-0", "finetune:1-1"])
def test_between_engines_a_sisters_columns_are_taken_only_after_the_pair_was_measured(
    channel: str, tiny_llama: Engines, tiny_hf: Engines
) -> None:
    sister, receiver = tiny_llama("llama", seed=1), Agent("vera", tiny_hf())
    with pytest.raises(GateFailed, match="goes on from caches of 'tiny' made by llamacpp is not known"):
        send(channel, receiver, sister)
    ensure_pair("llamacpp", receiver.engine, lambda: tiny_llama())
    if channel == "finetune:1-1":  # The residuals are the sister's to make.
        with pytest.raises(UsageError, match="'finetune' needs single layers, and the engine 'llamacpp'"):
            send(channel, receiver, sister)
        return
    delivery = send(channel, receiver, sister)
    assert delivery.past is not None
    prefix = receiver.prefix.columns
    segment = content_columns(Agent("lyra", sister, CARD).read(PARTS[0]).cache)
    assert apart(delivery.past.layers[1].values[:, prefix:], segment.layers[1].values) < 0.02  # bfloat16 on the way


def test_another_model_is_refused_whatever_the_channel(tiny_llama: Engines, tiny_hf: Engines) -> None:
    stranger = tiny_llama("qwen2")
    assert isinstance(stranger, LlamaCppEngine)
    for channel in ("kv+int8", "compose", "need:recency@0.5", "latent@2", "embedding@2", "activation", "finetune:0-1"):
        with pytest.raises(UnspokenError, match=r"family is qwen2|needs single layers"):
            send(channel, Agent("vera", tiny_hf()), stranger)
