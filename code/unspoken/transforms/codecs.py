"""Find a codec by its name, and the plain ones: keys and values as numbers of one float type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.errors import UsageError
from unspoken.manifest import LayerInfo, Manifest, Step
from unspoken.packed import Packed, plain
from unspoken.transforms import CODECS, STAGES, Codec
from unspoken.transforms.cast import Cast
from unspoken.transforms.rope import ApplyRope

ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def codec_named(name: str) -> Codec:
    """Return the codec of a name: `int8`, `bf16`, or with a lossless stage on top `bfloat16+blosc2`.

    Raises:
        UsageError: If nobody registered such a codec or stage, or the stage's package is not installed.
    """
    base, plus, stage = name.partition("+")
    base = ALIASES.get(base, base)
    codec: Codec = CODECS.load(base)(base)
    if not plus:
        return codec
    staged: Codec = STAGES.load(stage)(codec)
    return staged


@dataclass(frozen=True)
class Plain:
    """Keys and values as they are, in `float32`, `bfloat16` or `float16`: a cast and nothing else."""

    name: str

    def pack(self, cache: KVCache, /) -> Packed:
        """Return the cache's tensors in the codec's type; nothing is copied if they have it already."""
        return plain(Cast(self.name)(cache))

    def unpack(self, packed: Packed, /) -> KVCache:
        """Return the cache in the codec's type; nothing is copied."""
        return KVCache(layers_of(packed, lambda name, _: packed.tensors[name]), packed.manifest)


def packed_manifest(codec: str, cache: KVCache) -> Manifest:
    """Return the manifest of a cache that a codec packs, with that step in its lineage."""
    steps = (*cache.manifest.lineage, Step("pack", {"codec": codec}))
    return msgspec.structs.replace(cache.manifest, dtype=codec, lineage=steps)


def unpacked(packed: Packed, numbers: Callable[[str, LayerInfo], Tensor]) -> KVCache:
    """Return a float32 cache in the RoPE state it came in, from position-free keys and values.

    Args:
        packed: What it is unpacked from.
        numbers: Makes keys or values, float32, from their name ("layers.12.keys") and their layer.
    """
    manifest = msgspec.structs.replace(packed.manifest, dtype="float32")
    free = KVCache(layers_of(packed, numbers), msgspec.structs.replace(manifest, rope="removed"))
    return KVCache(ApplyRope()(free).layers if manifest.rope == "applied" else free.layers, manifest)


def layers_of(packed: Packed, numbers: Callable[[str, LayerInfo], Tensor]) -> tuple[KVLayer, ...]:
    """Return a packed cache's layers, keys and values made by `numbers`, as in `unpacked`.

    Raises:
        UsageError: If a lossless stage was not undone first.
    """
    if packed.stage is not None:
        raise UsageError(
            f"The cache went through '{packed.stage}' after it was packed.",
            f"Unpack it with the codec '{packed.manifest.dtype}+{packed.stage}'.",
        )
    layers = []
    for layer in packed.manifest.layers:
        name = f"layers.{layer.index}"
        keys, values = numbers(f"{name}.keys", layer), numbers(f"{name}.values", layer)
        layers.append(KVLayer(layer.index, keys, values, packed.tensors[f"{name}.positions"], layer.kind))
    return tuple(layers)
