"""C2C's fusers for all layers of a pair, in this package's folder format, bound to both models.

The sender's columns are turned by the sender's own RoPE to the positions of the receiver's, as C2C's fusers expect keys
(arXiv 2510.03215; `unspoken.fusers.c2c`). What C2C's published folders hold is read by `unspoken.fusers.published`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unspoken.cache import KVCache
from unspoken.cachefile.caps import CAPS, FREQUENCY
from unspoken.errors import UsageError
from unspoken.fusers.c2c import C2CFuser
from unspoken.fusers.c2c_pair import C2CPair
from unspoken.fusers.kept import Kept
from unspoken.fusers.layermap import depth_normalised, last_aligned
from unspoken.fusers.pair import Pair
from unspoken.fusers.protocol import Enriched
from unspoken.fusers.rows import as_layers
from unspoken.spec import RopeSpec
from unspoken.transforms.rope import angles, rotated, rotation

MAPPINGS = {"last-aligned": last_aligned, "depth-normalised": depth_normalised}
KV = tuple[Tensor, Tensor]


class C2C(nn.Module, Kept, tags=["c2c"]):
    """One C2C fuser for each of the receiver's layers.

    Args:
        pair: The two models, as plain data (`msgspec.to_builtins` of a `Pair`).
        sender_rope: The sender's rotary embedding, likewise.
        mapping: Which of the sender's layers each of the receiver's listens to: `last-aligned` or `depth-normalised`.
        width: Numbers of a fuser's hidden and intermediate columns.
        dropout: In training.
        anneal_steps: Steps over which the gate's temperature falls.

    Raises:
        UsageError: If there is no such mapping, no fuser of that width, or the rotary embedding is not the sender's.
    """

    kind: ClassVar[str] = "c2c"

    def __init__(
        self,
        pair: dict[str, Any],
        sender_rope: dict[str, Any],
        mapping: str = "last-aligned",
        width: int = 64,
        dropout: float = 0.0,
        anneal_steps: int = 1929,
    ) -> None:
        super().__init__()
        if mapping not in MAPPINGS or width < 1:
            raise UsageError(
                f"C2C fusers of width {width} with the layer map '{mapping}' cannot be.",
                f"Give a width of 1 or more, and a map of {', '.join(MAPPINGS)}.",
            )
        self._pair, self._rope = msgspec.convert(pair, Pair), msgspec.convert(sender_rope, RopeSpec)
        _require_possible(self._pair, self._rope)
        self._config = {
            "kind": self.kind, "pair": msgspec.to_builtins(self._pair), "sender_rope": msgspec.to_builtins(self._rope),
            "mapping": mapping, "width": width, "dropout": dropout, "anneal_steps": msgspec.convert(anneal_steps, int),
        }  # fmt: skip
        sender, receiver = self._pair.sender, self._pair.receiver
        sources = MAPPINGS[mapping](receiver.layers, sender.layers)
        fusers = [
            C2CFuser(
                sender.head_dim, receiver.head_dim, sender.kv_heads, receiver.kv_heads, width, width,
                dropout=dropout, anneal_steps=anneal_steps,
            )
            for _ in range(receiver.layers)
        ]  # fmt: skip
        self.fusing = C2CPair(fusers, {target: (each[0], target) for target, each in enumerate(sources)})

    @property
    def pair(self) -> Pair:
        """The two models it is for."""
        return self._pair

    def update_temperature(self, step: int) -> None:
        """Set the temperature of all gates for a step of training."""
        self.fusing.update_temperature(step)

    def forward(
        self, rows: Float[Tensor, "columns sender"], positions: Int[Tensor, " columns"], own: Sequence[KV]
    ) -> list[KV]:
        """Return the receiver's layers, fused.

        Args:
            rows: The sender's columns, position-free, aligned to the receiver's tokens.
            positions: Where the receiver's stand.
            own: Keys, turned to their positions, and values of each of its layers, `[kv_heads, columns, head_dim]`.

        Raises:
            IncompatibleCache: If the rows are not the sender's.
            UsageError: If the layers are not the receiver's.
        """
        if len(own) != self._pair.receiver.layers:
            raise UsageError(
                f"There are {len(own)} layers of the receiver, expected {self._pair.receiver.layers}.",
                "Give all layers of the model this fuser is for.",
            )
        by = rotation(angles(positions, self._rope))
        sent = [
            (rotated(keys, by, self._rope)[None], values[None])
            for keys, values in as_layers(rows, self._pair.sender).unbind(0)
        ]
        made = self.fusing(sent, [(keys[None], values[None]) for keys, values in own])
        return [(keys[0], values[0]) for keys, values in made]

    def enrich(self, rows: Float[Tensor, "columns sender"], own: KVCache) -> list[Enriched]:
        """Return the receiver's columns of every layer, changed; see `unspoken.fusers.protocol.Enricher`.

        Raises:
            IncompatibleCache: If the rows are not the sender's.
            UsageError: If the cache is not the receiver's, or does not hold as many columns, each at one position and
                turned to it.
        """
        alike = all(torch.equal(layer.positions, own.positions) for layer in own.layers)
        if len(rows) != own.columns or own.manifest.rope != "applied" or not alike:
            raise UsageError(
                f"{len(rows)} columns of the sender came for {own.columns} with RoPE {own.manifest.rope}, "
                f"{'the same' if alike else 'not the same'} in all layers; expected as many, applied, and the same.",
                "Give the receiver's columns as it has read them, and the sender's aligned to its tokens.",
            )
        layers = [(layer.keys.to(rows.dtype), layer.values.to(rows.dtype)) for layer in own.layers]
        made = self(rows, own.positions, layers)
        return [
            (keys.to(layer.keys.dtype), values.to(layer.keys.dtype), layer.positions)
            for (keys, values), layer in zip(made, own.layers, strict=True)
        ]


def _require_possible(pair: Pair, rope: RopeSpec) -> None:
    pairs, sizes = len(rope.inverse_frequencies), (pair.sender.layers, pair.receiver.layers)
    if max(sizes) > CAPS.layers:
        raise UsageError(
            f"C2C fusers between models of {sizes[0]} and {sizes[1]} layers cannot be.",
            f"Give models of {CAPS.layers} layers at most.",
        )
    if 2 * pairs != pair.sender.head_dim or not all(abs(each) <= FREQUENCY for each in rope.inverse_frequencies):
        raise UsageError(
            f"A rotary embedding of {pairs} frequencies, each of {FREQUENCY:.2g} at most, was expected to turn keys of "
            f"{pair.sender.head_dim} coordinates.",
            "Give the sender's own.",
        )
