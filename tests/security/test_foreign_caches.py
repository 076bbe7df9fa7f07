"""Sound caches that another model made: each is refused before it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unspoken.cache import KVCache
from unspoken.cachefile import read_cache, write_cache
from unspoken.channels.kv import content_columns
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits, Piece, Prompt, Turn
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache
from unspoken.session import Agent

from .forging import TEXT


def test_a_cache_of_another_model_is_refused_with_every_difference(
    fake: FakeEngine, original: KVCache, tiny_engine: Callable[..., TransformersEngine]
) -> None:
    foreign = tiny_engine()
    cache = foreign.prefill(Prompt((Piece("content", foreign.encode(TEXT)),)))
    segment = content_columns(cache)
    for given_cache in (cache, segment):
        with pytest.raises(IncompatibleCache, match="was made by 'tiny-llama' and does not fit 'fake-0'") as caught:
            Agent("vera", fake).ask_cache("Who?", given_cache)
        for field in ("family is llama", "head_dim is 16", "weights is", "rope is", "vocabulary is", "tokenizer is"):
            assert field in caught.value.problem
        assert "unspoken verify" in caught.value.hint
    with pytest.raises(IncompatibleCache):
        foreign.logits(Prompt((Piece("content", (1,)),)), original)


def test_a_cache_of_other_weights_in_the_same_shape_is_refused(
    original: KVCache, tiny_engine: Callable[..., TransformersEngine], tmp_path: Path
) -> None:
    question = Prompt((Piece("content", (63,)),))
    ours, theirs = tiny_engine(seed=0), tiny_engine(seed=1)
    cache = theirs.prefill(Prompt((Piece("content", theirs.encode(TEXT)),)))
    write_cache(cache, tmp_path / "theirs.kv")
    read = read_cache(tmp_path / "theirs.kv")
    calls: list[Callable[[], object]] = [
        lambda: ours.prefill(question, read),
        lambda: ours.logits(question, read),
        lambda: ours.generate([Turn(question, read)], Limits(1)),
        lambda: FakeEngine(1).logits(question, original),
        lambda: Agent("vera", FakeEngine(1)).ask_cache("Who?", content_columns(original)),
    ]
    for call in calls:
        with pytest.raises(IncompatibleCache, match="weights is") as caught:
            call()
        assert "head_dim" not in caught.value.problem
