"""Describe what an engine has just read: the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.protocol import Prompt
from unspoken.manifest import Step
from unspoken.spec import ModelSpec


def prefilled(layers: Sequence[KVLayer], spec: ModelSpec, prompt: Prompt, past: KVCache | None, engine: str) -> KVCache:
    """Return layers that hold a past's columns and then a prompt's, described as such.

    Args:
        layers: Columns of both.
        spec: The model that read.
        prompt: What it read.
        past: What stood before, with its spans, tokens, lineage and sender.
        engine: Name of the engine that computed the columns.
    """
    before = 0 if past is None else past.columns
    info = None if past is None else past.manifest
    known = info is None or info.token_ids is not None
    return KVCache.build(
        layers,
        spec,
        spans=(*(info.spans if info else ()), *(span.shifted(before) for span in prompt.spans())),
        token_ids=(*((info.token_ids if info else None) or ()), *prompt.token_ids) if known else None,
        lineage=(
            *(info.lineage if info else ()),
            Step("prefill", {"tokens": len(prompt.token_ids), "engine": engine}),
        ),
        sender=info.sender if info else None,
    )
