"""What is kept is kept exactly, with its positions, and described as it is."""

from __future__ import annotations

import pytest
import torch

from unspoken.engines.fake import FakeEngine
from unspoken.errors import UsageError
from unspoken.manifest import Span, Step
from unspoken.session import Agent
from unspoken.transforms.rope import Move, RemoveRope
from unspoken.transforms.select import keep

STEP = Step("select.test")


def test_the_same_columns_in_all_layers_keep_spans_and_tokens(fake: FakeEngine) -> None:
    cache = Agent("lyra", fake).read("Anna runs it.").cache
    start = next(span.start for span in cache.manifest.spans if span.kind == "content")
    chosen = torch.tensor([0, start, start + 2, cache.columns - 1])
    kept = keep(cache, [chosen] * len(cache.layers), STEP)
    assert kept.positions.tolist() == chosen.tolist()
    assert kept.manifest.spans[-1] == Span("content", 1, 4)
    assert kept.manifest.token_ids == tuple((cache.manifest.token_ids or ())[at] for at in chosen.tolist())
    assert kept.manifest.lineage == (*cache.manifest.lineage, STEP)
    for mine, whole in zip(kept.layers, cache.layers, strict=True):
        assert torch.equal(mine.keys, whole.keys[:, chosen])
        assert torch.equal(mine.values, whole.values[:, chosen])


def test_different_columns_in_each_layer_have_no_tokens_and_may_be_none_at_all(fake: FakeEngine) -> None:
    cache = RemoveRope()(fake.prefill(Agent("lyra", fake).asked("Who runs it?")))
    sets = [torch.arange(at) for at in range(len(cache.layers))]
    kept = keep(cache, sets, STEP)
    assert [layer.columns for layer in kept.layers] == list(range(len(cache.layers)))
    assert kept.manifest.token_ids is None
    moved = Move(100)(kept)
    assert [layer.positions.tolist() for layer in moved.layers] == [[100 + at for at in each.tolist()] for each in sets]


def test_nothing_and_what_does_not_exist_are_refused(fake: FakeEngine) -> None:
    cache = Agent("lyra", fake).read("Anna runs it.").cache
    with pytest.raises(UsageError, match="keeps no column"):
        keep(cache, [torch.arange(0)] * len(cache.layers), STEP)
    for bad in (torch.tensor([cache.columns]), torch.tensor([-1])):
        with pytest.raises(UsageError, match="were chosen"):
            keep(cache, [bad] * len(cache.layers), STEP)
