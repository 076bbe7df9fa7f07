"""The queries an engine shows are those it attends with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Engine, Prompt
from unspoken.engines.queries import Querying, querying
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError

PromptOf = Callable[[Engine, str], Prompt]
SOURCE = "The old mill is run by Anna. It was calm."
QUESTION = " Who runs the mill?"


def test_queries_and_keys_make_the_engines_attention_weights(engine: TransformersEngine, content: PromptOf) -> None:
    past, question, probes = engine.prefill(content(engine, SOURCE)), content(engine, QUESTION), 5
    whole = engine.prefill(question, past)
    asked = engine.queries(question, past, probes)
    shown = engine.attention(question, past, probes)
    assert len(asked) == len(shown) == engine.spec.layers
    first = whole.columns - probes
    for layer, query, weights in zip(whole.layers, asked, shown, strict=True):
        assert query.dtype == torch.float32
        for head in range(4):
            for probe in range(probes):
                # Query heads 0 and 1 share the first key-value head, 2 and 3 the second.
                seen = layer.keys[head // 2, : first + probe + 1]
                expected = torch.softmax(seen @ query[head, probe] / 16**0.5, dim=0)[: past.columns]
                assert float((weights[head, probe] - expected).abs().max()) < 1e-5


def test_a_prompt_longer_than_one_pass_shows_its_last_tokens(tiny_engine: Callable[..., TransformersEngine]) -> None:
    from unspoken.engines.protocol import Piece

    engine = tiny_engine("llama", max_position_embeddings=1024)
    ids = tuple(int(each) for each in torch.randint(0, 250, (517,), generator=torch.Generator().manual_seed(1)))
    past = engine.prefill(Prompt((Piece("content", ids[:3]),)))
    # 514 tokens are read as 512 and 2; eight of them are asked for.
    at_once = engine.queries(Prompt((Piece("content", ids[3:]),)), past, 8)
    before = engine.prefill(Prompt((Piece("content", ids[3:509]),)), past)
    alone = engine.queries(Prompt((Piece("content", ids[509:]),)), before, 8)
    for mine, expected in zip(at_once, alone, strict=True):
        assert mine.shape == expected.shape == (4, 8, 16)
        assert float((mine - expected).abs().max()) < 1e-4


def test_there_are_no_more_queries_than_tokens(
    tiny_engine: Callable[..., TransformersEngine], content: PromptOf
) -> None:
    engine = tiny_engine()
    past = engine.prefill(content(engine, SOURCE))
    assert {each.shape for each in engine.queries(content(engine, " Who?"), past, 32)} == {(4, 5, 16)}
    with pytest.raises(UsageError, match="queries of 0 tokens"):
        engine.queries(content(engine, " Who?"), past, 0)


def test_an_engine_without_queries_is_refused_by_name(
    fake: FakeEngine, tiny_engine: Callable[..., TransformersEngine]
) -> None:
    assert isinstance(querying(tiny_engine(), "ridge"), Querying)
    with pytest.raises(UsageError, match="'ridge' needs the model's queries, and the engine 'fake'"):
        querying(fake, "ridge")
