"""What the last tokens of a text ask with: a model's own queries, for judging columns by what attention makes of them.

Keys and values that are near the right ones number by number may still be attended to quite otherwise (arXiv
2608.03893, section on R2); with the queries at hand, what attention comes to can be computed for any columns.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.engines.protocol import Engine, Prompt
from unspoken.errors import UsageError


@runtime_checkable
class Querying(Protocol):
    """An engine that shows what its tokens look for."""

    def queries(self, prompt: Prompt, past: KVCache, probes: int) -> tuple[Float[Tensor, "heads probes head_dim"], ...]:
        """Return, layer by layer, the queries of the last tokens of a prompt, turned to the tokens' positions.

        Args:
            prompt: Tokens read on top of `past`.
            past: The columns before them.
            probes: How many of the prompt's last tokens; all of them if it has fewer.

        Returns:
            Queries in float32; query heads that share a key-value head stand next to each other.
        """
        ...


class Queries:
    """Remembers what the last tokens of a prompt ask with, layer by layer, however many passes it is read in.

    Args:
        probes: How many tokens.

    Raises:
        UsageError: If there are none.
    """

    def __init__(self, probes: int) -> None:
        if probes < 1:
            raise UsageError(f"The queries of {probes} tokens were asked for.", "Ask for those of 1 or more.")
        self._probes = probes
        self.by_layer: dict[int, Float[Tensor, "heads probes head_dim"]] = {}

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "heads new head_dim"],
        key: Float[Tensor, "kv_heads total head_dim"],
        mask: Float[Tensor, "new total"],
        scaling: float,
    ) -> None:
        """Keep the queries of one layer, behind those of the pass before; see `unspoken.engines.attention.Watch`."""
        asked = query[:, -self._probes :].to("cpu", torch.float32)
        known = (self.by_layer[layer], asked) if layer in self.by_layer else (asked,)
        # A copy: a view would keep the queries of the whole pass.
        self.by_layer[layer] = torch.cat(known, dim=1)[:, -self._probes :].clone()


def querying(engine: Engine, what: str) -> Querying:
    """Return an engine as one that shows its queries.

    Raises:
        UsageError: If it does not, saying what asked for it.
    """
    if not isinstance(engine, Querying):
        raise UsageError(
            f"'{what}' needs the model's queries, and the engine '{engine.name}' does not show them.",
            "Use the transformers engine for the receiver.",
        )
    return engine
