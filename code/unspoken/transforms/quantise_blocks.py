"""ggml's blocks of 32 values, rotated as in llama.cpp's caches: the codecs `q8_0` and `q4_0`.

Each token's keys of all heads make one row of bytes, and so do its values: what llama.cpp keeps for a token of a
quantised cache, but for keys that are position-free (see `unspoken.transforms.blocks` for the sources).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.errors import UsageError
from unspoken.layout import BLOCK_VALUES
from unspoken.manifest import LayerInfo
from unspoken.packed import Packed, positions
from unspoken.transforms.blocks import ElementType, decode, encode, hadamard, rotation_size
from unspoken.transforms.codecs import packed_manifest, unpacked
from unspoken.transforms.rope import RemoveRope


@dataclass(frozen=True)
class Blocked:
    """The codecs `q8_0` and `q4_0`, by their name."""

    name: str

    def pack(self, cache: KVCache, /) -> Packed:
        """Return the blocks of all keys and values, one row for each token.

        Raises:
            UsageError: If a number is NaN or too large for the type, or a token's numbers do not fill whole blocks.
        """
        made, row = positions(cache), cache.spec.kv_heads * cache.spec.head_dim
        if row % BLOCK_VALUES:
            raise UsageError(
                f"A token's {row} keys in {cache.spec.kv_heads} heads of {cache.spec.head_dim} do not fill {self.name} "
                f"blocks of {BLOCK_VALUES}.",
                "Choose int8 or int4, which take any number.",
            )
        for layer in RemoveRope()(cache).layers:
            made[f"layers.{layer.index}.keys"] = _packed(layer.keys, self._kind, "keys")
            made[f"layers.{layer.index}.values"] = _packed(layer.values, self._kind, "values")
        return Packed(packed_manifest(self.name, cache), made)

    def unpack(self, packed: Packed, /) -> KVCache:
        """Return the cache in float32."""
        return unpacked(packed, lambda name, layer: self._unpacked(name, layer, packed))

    @property
    def _kind(self) -> ElementType:
        return ElementType.named(self.name)

    def _unpacked(self, name: str, layer: LayerInfo, packed: Packed) -> Float32[Tensor, "kv_heads seq head_dim"]:
        heads, head_dim = packed.manifest.spec.kv_heads, packed.manifest.spec.head_dim
        rows = decode(packed.tensors[name].numpy(), self._kind, heads * head_dim)
        side: Literal["keys", "values"] = "keys" if name.endswith("keys") else "values"
        turned = hadamard(rows, rotation_size(self._kind, head_dim, side))
        return torch.from_numpy(turned).view(layer.columns, heads, head_dim).transpose(0, 1).contiguous()


def _packed(
    numbers: Float[Tensor, "kv_heads seq head_dim"], kind: ElementType, side: Literal["keys", "values"]
) -> UInt8[Tensor, "seq row_bytes"]:
    rows = np.ascontiguousarray(numbers.transpose(0, 1).to(torch.float32).flatten(1).numpy())
    return torch.from_numpy(encode(hadamard(rows, rotation_size(kind, numbers.shape[-1], side)), kind))
