"""Which two models a fuser is for."""

from __future__ import annotations

from typing import Annotated

import msgspec

from unspoken.errors import IncompatibleCache
from unspoken.spec import ModelSpec

# What a map between caches depends on; a chat template is not among it, for only content columns pass through.
BOUND = ("weights", "architecture", "tokenizer", "layers", "kv_heads", "head_dim")
# Checked where a pair is read; larger is a broken file rather than a model.
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Side(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of a fuser's two models, as far as a map depends on it.

    Attributes:
        name: For display only.
        weights: Fingerprint of the weights.
        architecture: Fingerprint of the configuration.
        tokenizer: Fingerprint of the tokenizer.
        layers: Layers that keep keys and values.
        kv_heads: Key-value heads of each.
        head_dim: Coordinates of one head.
    """

    name: str
    weights: str
    architecture: str
    tokenizer: str
    layers: Size
    kv_heads: Size
    head_dim: Size

    @staticmethod
    def of(spec: ModelSpec) -> Side:
        """Return a model as a side."""
        return Side(spec.name, **{field: getattr(spec, field) for field in BOUND})

    @property
    def width(self) -> int:
        """Numbers of one column: keys and values of all heads and layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model whose columns go into a fuser, and the one whose columns come out."""

    sender: Side
    receiver: Side

    @staticmethod
    def of(sender: ModelSpec, receiver: ModelSpec) -> Pair:
        """Return the pair of two models."""
        return Pair(Side.of(sender), Side.of(receiver))

    def require(self, sender: ModelSpec, receiver: ModelSpec) -> None:
        """Refuse two models the fuser was not made for.

        Raises:
            IncompatibleCache: With everything that differs.
        """
        found = [
            f"the {role}'s {field} is {getattr(spec, field)}, the fuser's {getattr(side, field)}"
            for role, side, spec in (("sender", self.sender, sender), ("receiver", self.receiver, receiver))
            for field in BOUND
            if getattr(side, field) != getattr(spec, field)
        ]
        if found:
            raise IncompatibleCache(
                f"The fuser is for '{self.sender.name}' to '{self.receiver.name}' and does not fit "
                f"'{sender.name}' to '{receiver.name}': {'; '.join(found)}.",
                "Use a fuser trained for these two models (`unspoken fuser train`), or text.",
            )
