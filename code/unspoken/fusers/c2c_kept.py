"""C2C's fusers for all layers of a pair, in this package's folder format, bound to both models.

The sender's columns are turned by the sender's own RoPE to the positions of the receiver's, as C2C's fusers expect keys
(arXiv 2510.03215; `unspoken.fusers.c2c`). What C2C's published folders hold is read by `unspoken.fusers.published`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from unspoken.cache import KVCache
from unspoken.errors import UsageError
from unspoken.fusers import folder
from unspoken.fusers.c2c import C2CFuser
from unspoken.fusers.c2c_pair import C2CPair
from unspoken.fusers.layermap import depth_normalised, last_aligned
from unspoken.fusers.pair import Pair
from unspoken.fusers.protocol import Enriched
from unspoken.fusers.rows import as_layers
from unspoken.spec import RopeSpec
from unspoken.transforms.rope import angles, rotated, rotation

MAPPINGS = {"last-aligned": last_aligned, "depth-normalised": depth_normalised}
KV = tuple[Tensor, Tensor]


class C2C(nn.Module, PyTorchModelHubMixin, library_name="unspoken", tags=["kv-cache", "fuser", "c2c"]):
    """One C2C fuser for each of the receiver's layers.

    Args:
        pair: The two models, as plain data (`msgspec.to_builtins` of a `Pair`).
        sender_rope: The sender's rotary embedding, likewise.
        mapping: Which of the sender's layers each of the receiver's listens to: `last-aligned` or `depth-normalised`.
        width: Numbers of a fuser's hidden and intermediate columns.
        dropout: In training.
        anneal_steps: Steps over which the gate's temperature falls.

    Raises:
        UsageError: If there is no such mapping, or no fuser of that width.
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
        self._config = {
            "kind": self.kind, "pair": pair, "sender_rope": sender_rope, "mapping": mapping, "width": width,
            "dropout": dropout, "anneal_steps": anneal_steps,
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
        """
        by = rotation(angles(positions, self._rope))
        sent = [
            (rotated(keys, by, self._rope)[None], values[None])
            for keys, values in as_layers(rows, self._pair.sender).unbind(0)
        ]
        made = self.fusing(sent, [(keys[None], values[None]) for keys, values in own])
        return [(keys[0], values[0]) for keys, values in made]

    def enrich(self, rows: Float[Tensor, "columns sender"], own: KVCache) -> list[Enriched]:
        """Return the receiver's columns of every layer, changed; see `unspoken.fusers.protocol.Enricher`."""
        layers = [(layer.keys.to(rows.dtype), layer.values.to(rows.dtype)) for layer in own.layers]
        made = self(rows, own.positions, layers)
        return [
            (keys.to(layer.keys.dtype), values.to(layer.keys.dtype), layer.positions)
            for (keys, values), layer in zip(made, own.layers, strict=True)
        ]

    def _save_pretrained(self, save_directory: Path) -> None:
        folder.write(self, self._config, save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **how: Any) -> C2C:
        return cast(C2C, folder.built(cls, model_id, how))
