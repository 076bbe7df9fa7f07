"""Others that read the same words, against prefills by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from unspoken.cache import KVCache
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.identity.cohort import Cohort, read_tokens
from unspoken.transforms.rope import RemoveRope

CARDS = ("You are Lyra, a field researcher.", "You are Vera.", "Be brief.")
TEXT = "The old mill is run by Anna."


def by_hand(engine: TransformersEngine, card: str) -> KVCache:
    """The text's columns behind a card, with RoPE off."""
    before = engine.frame(card).before
    joint = engine.prefill(before + Prompt((Piece("content", engine.encode(TEXT)),)))
    return RemoveRope()(joint.slice(len(before.token_ids), joint.columns))


def test_the_cohort_reads_as_a_prefill_by_hand_does(engine: TransformersEngine) -> None:
    found = Cohort(engine, CARDS).read(engine.encode(TEXT))
    assert found.shape == (3, 2, 2, 2, 16)
    for member, card in zip(found, CARDS, strict=True):
        for layer, features in zip(by_hand(engine, card).layers, member, strict=True):
            torch.testing.assert_close(features[0], layer.keys.mean(dim=1), atol=1e-4, rtol=0)
            torch.testing.assert_close(features[1], layer.values.mean(dim=1), atol=1e-4, rtol=0)


def test_only_the_places_asked_for_count(engine: TransformersEngine) -> None:
    places = [torch.tensor([0, 3, 27], dtype=torch.int32), torch.tensor([8], dtype=torch.int32)]
    found = Cohort(engine, CARDS).read(engine.encode(TEXT), places)
    for member, card in zip(found, CARDS, strict=True):
        for layer, features, where in zip(by_hand(engine, card).layers, member, places, strict=True):
            torch.testing.assert_close(features[0], layer.keys[:, where.long()].mean(dim=1), atol=1e-4, rtol=0)
            torch.testing.assert_close(features[1], layer.values[:, where.long()].mean(dim=1), atol=1e-4, rtol=0)


def test_layer_0_is_the_same_for_all_and_upper_layers_are_not(reader: TransformersEngine) -> None:
    found = Cohort(reader, CARDS).read(reader.encode(TEXT))
    torch.testing.assert_close(found[0, 0], found[1, 0], atol=1e-5, rtol=0)
    assert (found[0, 1:] - found[1, 1:]).norm() > 0.01 * found[0, 1:].norm()


def test_what_stands_before_the_words_is_read_once(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    prefill = fake.prefill

    def counted(prompt: Prompt, past: KVCache | None = None, **rest: Any) -> KVCache:
        seen.append(0 if past is None else past.columns)
        return prefill(prompt, past, **rest)

    monkeypatch.setattr(fake, "prefill", counted)
    cohort = Cohort(fake, CARDS)
    for text in ("One.", "Two.", "Three."):
        cohort.read(fake.encode(text))
    assert seen.count(0) == len(CARDS)
    assert len(seen) == len(CARDS) * 4


def test_reading_nothing_is_refused(fake: FakeEngine) -> None:
    cohort = Cohort(fake, CARDS)
    with pytest.raises(UsageError, match="no token to read"):
        cohort.read([])
    with pytest.raises(UsageError, match="Layer 1 holds no column"):
        cohort.read([1, 2], [torch.tensor([0], dtype=torch.int32), torch.tensor([], dtype=torch.int32)])


def test_what_is_read_is_the_texts_alone(reader: TransformersEngine, heard: Callable[[str, str], KVCache]) -> None:
    prefix = reader.prefill(reader.frame(CARDS[0]).before)
    found = read_tokens(reader, prefix, reader.encode(TEXT))
    assert found.manifest.token_ids == reader.encode(TEXT)
    assert found.manifest.rope == "removed"
    expected = RemoveRope()(heard(CARDS[0], TEXT).span("content"))
    for left, right in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(left.keys, right.keys, atol=1e-5, rtol=0)
        assert torch.equal(left.values, right.values)
