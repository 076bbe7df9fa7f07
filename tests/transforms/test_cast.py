"""What a cache weighs on the wire, and how little of it is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unspoken.cache import KVCache
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Engine, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.manifest import Step
from unspoken.transforms.cast import Cast

PromptOf = Callable[[Engine, str], Prompt]
# Largest relative error of rounding to nearest: half a unit in the last place (IEEE 754; bfloat16 keeps 8 bits).
ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11}


@pytest.fixture
def cache(tiny_engine: Callable[..., TransformersEngine], content: PromptOf) -> KVCache:
    """A real model's cache."""
    return tiny_engine().prefill(content(tiny_engine(), "The old mill is run by Anna."))


@pytest.mark.parametrize("dtype", sorted(ROUNDING))
def test_narrow_types_halve_the_bytes_within_their_rounding(cache: KVCache, dtype: str) -> None:
    narrow = Cast(dtype)(cache)
    assert narrow.manifest.dtype == dtype
    assert 2 * narrow.bytes_held() == cache.bytes_held()
    for small, wide in zip(narrow.layers, cache.layers, strict=True):
        for new, old in ((small.keys, wide.keys), (small.values, wide.values)):
            # float16 loses relative accuracy below its smallest normal number.
            assert ((new.float() - old).abs() <= old.abs() * ROUNDING[dtype] + 2**-25).all()


@pytest.mark.parametrize("dtype", sorted(ROUNDING))
def test_widening_loses_nothing(cache: KVCache, dtype: str) -> None:
    narrow = Cast(dtype)(cache)
    again = Cast(dtype)(Cast("float32")(narrow))
    for a, b in zip(again.layers, narrow.layers, strict=True):
        assert torch.equal(a.keys, b.keys)
        assert torch.equal(a.values, b.values)


def test_casting_leaves_positions_tokens_and_spans(cache: KVCache) -> None:
    narrow = Cast("bfloat16")(cache)
    assert torch.equal(narrow.positions, cache.positions)
    assert narrow.manifest.token_ids == cache.manifest.token_ids
    assert narrow.manifest.spans == cache.manifest.spans
    assert narrow.manifest.lineage == (*cache.manifest.lineage, Step("cast", {"dtype": "bfloat16"}))


def test_casting_to_the_same_type_is_the_same_cache(cache: KVCache) -> None:
    assert Cast("float32")(cache) is cache


def test_the_fakes_tokens_survive_the_narrowest_type(fake: FakeEngine, content: PromptOf) -> None:
    values = fake.prefill(content(fake, "".join(map(chr, range(128))))).layers[0].values
    assert torch.equal(values.bfloat16().float(), values)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UsageError, match="no element type 'int3'"):
        Cast("int3")
