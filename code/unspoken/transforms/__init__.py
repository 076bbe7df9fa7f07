"""Pure functions from cache to cache, each leaving one step in the lineage; codecs, which pack a cache for the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from unspoken.registry import Registry

if TYPE_CHECKING:
    from unspoken.cache import KVCache
    from unspoken.packed import Packed

TRANSFORMS = Registry(
    "transform",
    "unspoken.transforms",
    {
        "rope.move": "unspoken.transforms.rope:Move",
        "rope.remove": "unspoken.transforms.rope:RemoveRope",
        "rope.apply": "unspoken.transforms.rope:ApplyRope",
        "cast": "unspoken.transforms.cast:Cast",
        "redact": "unspoken.transforms.redact:Redact",
        "control.zero": "unspoken.transforms.controls:Zero",
        "control.noise": "unspoken.transforms.controls:Noise",
        "control.displace": "unspoken.transforms.controls:Displace",
    },
)
# Each is made with its name: one class serves several.
CODECS = Registry(
    "codec",
    "unspoken.codecs",
    {
        "float32": "unspoken.transforms.codecs:Plain",
        "bfloat16": "unspoken.transforms.codecs:Plain",
        "float16": "unspoken.transforms.codecs:Plain",
        "int8": "unspoken.transforms.quantise:Grouped",
        "int4": "unspoken.transforms.quantise:Grouped",
        "q8_0": "unspoken.transforms.quantise_blocks:Blocked",
        "q4_0": "unspoken.transforms.quantise_blocks:Blocked",
    },
)
# What may stand behind a codec's name and a plus sign.
STAGES = Registry("lossless stage", "unspoken.stages", {"blosc2": "unspoken.transforms.lossless:Blosc2"})


@runtime_checkable
class Transform(Protocol):
    """Anything that makes a new cache from an old one and can be built from JSON-able arguments."""

    def __call__(self, cache: KVCache, /) -> KVCache:
        """Return the new cache; the old one is untouched."""
        ...


@runtime_checkable
class Codec(Protocol):
    """A way to pack keys and values for the way; get one with `unspoken.transforms.codecs.codec_named`."""

    @property
    def name(self) -> str:
        """What it is registered as, with its lossless stage: `int8`, `bfloat16+blosc2`."""
        ...

    def pack(self, cache: KVCache, /) -> Packed:
        """Return the packed cache; the old one is untouched.

        Raises:
            UsageError: If the cache cannot be packed like this.
        """
        ...

    def unpack(self, packed: Packed, /) -> KVCache:
        """Return the cache again, in the RoPE state it came in; what it lost is the codec's error."""
        ...
