"""A cache packed for the way: the tensors that travel or lie in a file, and the manifest that says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.cache import DTYPES, KVCache
from unspoken.manifest import Manifest

# torch's types of the elements that tensors of a packed cache have, see `unspoken.layout.Part`.
ELEMENTS: dict[str, torch.dtype] = DTYPES | {
    "int32": torch.int32,
    "uint8": torch.uint8,
    "q8_0": torch.uint8,
    "q4_0": torch.uint8,
}


@dataclass(frozen=True, eq=False)
class Packed:
    """What a codec makes of a cache.

    Attributes:
        manifest: As the cache's own, but `dtype` names how keys and values are packed, and `rope` says in which state
            the *unpacked* keys are: those of int8, int4, q8_0 and q4_0 are position-free while they are packed.
        tensors: By the names, element types and shapes of `unspoken.layout.parts`; positions are among them.
        stage: The lossless stage that keys and values went through on top, which leaves bytes of no shape; or None.
    """

    manifest: Manifest
    tensors: Mapping[str, Tensor]
    stage: str | None = None

    def bytes_held(self) -> int:
        """Bytes of all keys and values with what belongs to them: scales, minima, sinks. Positions are not counted."""
        return sum(tensor.nbytes for name, tensor in self.tensors.items() if not name.endswith(".positions"))


def plain(cache: KVCache) -> Packed:
    """Return a cache as it is, under its tensors' names; nothing is copied."""
    tensors = positions(cache)
    for layer in cache.layers:
        tensors[f"layers.{layer.index}.keys"] = layer.keys
        tensors[f"layers.{layer.index}.values"] = layer.values
    return Packed(cache.manifest, tensors)


def positions(cache: KVCache) -> dict[str, Tensor]:
    """Return the positions of all layers as int32, under their tensors' names."""
    return {f"layers.{layer.index}.positions": layer.positions.to(torch.int32) for layer in cache.layers}
