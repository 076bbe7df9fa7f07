"""A message in embeddings: at a temperature near zero it is the text the sender would write."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unspoken.channels import embedding
from unspoken.channels.protocol import Delivery
from unspoken.channels.text import WRITE, content
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits, Piece, Prompt, Turn
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import ContextOverflow, IncompatibleCache, UsageError
from unspoken.session import Agent

SOURCE = "The old mill is run by Anna."
Deliver = Callable[..., Delivery]


def test_near_temperature_zero_each_vector_is_the_embedding_of_the_greedy_token(engine: TransformersEngine) -> None:
    reading = Agent("lyra", engine).read(SOURCE)
    prompt = content(reading.reader, WRITE) + reading.reader.frame.after
    (greedy,) = engine.generate([Turn(prompt, reading.cache)], Limits(6))
    message = embedding.written(reading, 6, 1e-4)
    expected = engine.embed(greedy.token_ids)
    assert torch.allclose(message[: len(expected)], expected, atol=1e-4)
    if len(greedy.token_ids) < 6:  # It ended where the text does.
        assert len(message) == len(greedy.token_ids)


def test_the_first_vector_is_the_mean_embedding_under_the_next_token(deep: TransformersEngine) -> None:
    reading = Agent("lyra", deep).read(SOURCE)
    prompt = content(reading.reader, WRITE) + reading.reader.frame.after
    probabilities = (deep.logits(prompt, reading.cache)[-1] / 0.7).softmax(dim=-1)
    expected = probabilities @ deep.embeddings().detach()
    (first,) = embedding.written(reading, 1, 0.7)
    assert torch.allclose(first, expected, atol=1e-4)


def test_the_receiver_reads_vectors_as_it_would_read_their_tokens(deep: TransformersEngine, deliver: Deliver) -> None:
    lyra, vera = Agent("lyra", deep), Agent("vera", deep)
    delivery = deliver("embedding:temperature=0.0001@4", vera, (lyra, SOURCE))
    prompt = content(lyra, WRITE) + lyra.frame.after
    (greedy,) = deep.generate([Turn(prompt, lyra.read(SOURCE).cache)], Limits(4))
    assert len(greedy.token_ids) == 4
    expected = deep.prefill(Prompt((Piece("content", greedy.token_ids),)), vera.prefix)
    assert delivery.past is not None
    for mine, other in zip(delivery.past.layers, expected.layers, strict=True):
        # The vectors are bfloat16 on the wire.
        assert torch.allclose(mine.values, other.values, atol=0.05)
        assert torch.equal(mine.positions, other.positions)
    assert delivery.bytes_moved == 4 * deep.embeddings().shape[1] * 2
    assert delivery.tokens_prefilled == 4
    assert delivery.channel == "embedding:temperature=0.0001@4"
    assert delivery.past.manifest.token_ids is None


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("embedding@0", "'0' is no number"),
        ("embedding:temperature=0", "temperature is '0'"),
        ("embedding:temperature=hot", "temperature is 'hot'"),
        ("embedding+int8", "no option 'codec'"),
    ],
)
def test_impossible_messages_are_refused(
    deep: TransformersEngine, deliver: Deliver, channel: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        deliver(channel, Agent("vera", deep), (Agent("lyra", deep), SOURCE))


def test_messages_past_the_models_context_are_refused_before_they_are_written(
    deep: TransformersEngine, deliver: Deliver
) -> None:
    vera = Agent("vera", deep)
    with pytest.raises(ContextOverflow, match="was made for 512"):
        deliver("embedding@1000000000", vera, (Agent("lyra", deep), SOURCE))
    # A message that the sender has room for may be longer than what the receiver has left.
    full = Agent("vera", deep, "x" * (deep.spec.context - len(vera.frame.before.token_ids)))
    assert full.prefix.columns < deep.spec.context
    with pytest.raises(ContextOverflow, match=f"needs {full.prefix.columns + 40} positions"):
        deliver("embedding@40", full, (Agent("lyra", deep), SOURCE))


def test_other_engines_and_models_are_refused(
    deep: TransformersEngine, tiny_engine: Callable[..., TransformersEngine], fake: FakeEngine, deliver: Deliver
) -> None:
    with pytest.raises(UsageError, match="'embedding' needs single layers, and the engine 'fake'"):
        deliver("embedding@4", Agent("vera", fake), (Agent("lyra", fake), SOURCE))
    with pytest.raises(IncompatibleCache, match="weights"):
        deliver("embedding@4", Agent("vera", tiny_engine("llama", 1)), (Agent("lyra", tiny_engine()), SOURCE))
