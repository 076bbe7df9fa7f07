"""What a fuser is: one that translates columns, or one that enriches the receiver's own."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.fusers.pair import Pair

Enriched = tuple[
    Float[Tensor, "kv_heads columns head_dim"], Float[Tensor, "kv_heads columns head_dim"], Int[Tensor, " columns"]
]
"""Keys, values and positions of one layer."""


@runtime_checkable
class Translator(Protocol):
    """A fuser that makes the receiver's columns from the sender's alone: the receiver need not see the text.

    What travels is the message, which may be far smaller than the columns on either side.

    Attributes:
        kind: The registered name.
    """

    kind: ClassVar[str]

    @property
    def pair(self) -> Pair:
        """The two models it is for."""
        ...

    def encode(self, rows: Float[Tensor, "columns sender"]) -> Float[Tensor, "columns message"]:
        """Return what travels for some of the sender's columns, aligned to the receiver's tokens."""
        ...

    def decode(self, message: Float[Tensor, "columns message"]) -> Float[Tensor, "columns receiver"]:
        """Return the receiver's columns, position-free, from what travelled."""
        ...


@runtime_checkable
class Enricher(Protocol):
    """A fuser that changes the receiver's own columns by the sender's: both have read the text.

    Attributes:
        kind: The registered name.
    """

    kind: ClassVar[str]

    @property
    def pair(self) -> Pair:
        """The two models it is for."""
        ...

    def enrich(self, rows: Float[Tensor, "columns sender"], own: KVCache) -> list[Enriched]:
        """Return the receiver's columns of every layer, changed.

        Args:
            rows: The sender's columns, position-free, aligned to the receiver's tokens.
            own: The receiver's columns of the same tokens, turned to their positions.
        """
        ...
