"""What tests of sessions share: who takes part, and when two sessions are the same."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unspoken.session import Session

NAMES = ("lyra", "vera", "cc")
TOLD, ASKED = "The old mill is run by Anna.", "Who runs the old mill?"
Made = Callable[..., Session]


def same(left: Session, right: Session) -> None:
    """See that two sessions have the same log, and the same in every mind, down to the last number."""
    assert left.log == right.log
    assert left.agents == right.agents
    for name in left.agents:
        mine, theirs = left.mind(name), right.mind(name)
        assert (mine.held, mine.begun) == (theirs.held, theirs.begun)
        assert mine.prefix.manifest.token_ids == theirs.prefix.manifest.token_ids
        for one, other in zip(mine.prefix.layers, theirs.prefix.layers, strict=True):
            assert torch.equal(one.keys, other.keys)
            assert torch.equal(one.values, other.values)
            assert torch.equal(one.positions, other.positions)
