"""Other agents that read the same words: what a text looks like whoever reads it, and how others would have read it.

A signature is what is left of an agent's columns when that common part is taken away. The tokens have to be known for
it; where the sender keeps them to itself, `unspoken.identity.projection` has learned which directions a text moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.errors import UsageError
from unspoken.identity.features import alike, content, pooled


@dataclass(frozen=True)
class Cohort:
    """Agents that nobody wants to recognise, reading what others have read.

    Args:
        engine: The model, that of the caches they are compared with.
        cards: Their system prompts.
    """

    engine: Engine = field(repr=False)
    cards: tuple[str, ...]

    @cached_property
    def prefixes(self) -> tuple[KVCache, ...]:
        """What stands before a user's words, for each; made once."""
        return tuple(self.engine.prefill(self.engine.frame(card).before) for card in self.cards)

    def read(
        self, token_ids: Sequence[int], places: Sequence[Int[Tensor, " _"]] | None = None
    ) -> Float[Tensor, "members layers parts kv_heads head_dim"]:
        """Return the averages of their columns over a text.

        Args:
            token_ids: The text.
            places: For each layer, which of its columns count, from the text's first token; all by default.

        Raises:
            UsageError: If there are no tokens.
        """
        return torch.stack([pooled(self._columns(prefix, token_ids, places)) for prefix in self.prefixes])

    def _columns(
        self, prefix: KVCache, token_ids: Sequence[int], places: Sequence[Int[Tensor, " _"]] | None
    ) -> KVCache:
        read = read_tokens(self.engine, prefix, token_ids)
        return read if places is None else alike(read, places)


def read_tokens(engine: Engine, prefix: KVCache, token_ids: Sequence[int]) -> KVCache:
    """Return the content columns of tokens read behind a prefix, position-free.

    Raises:
        UsageError: If there are no tokens.
        ContextOverflow: If they do not fit the model.
    """
    if not token_ids:
        raise UsageError("There is no token to read.", "Give a text with at least one word.")
    return content(engine.prefill(Prompt((Piece("content", tuple(token_ids)),)), prefix))
