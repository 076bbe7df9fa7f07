"""Pure functions from cache to cache; each leaves one step in the lineage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from unspoken.registry import Registry

if TYPE_CHECKING:
    from unspoken.cache import KVCache

TRANSFORMS = Registry(
    "transform",
    "unspoken.transforms",
    {
        "rope.move": "unspoken.transforms.rope:Move",
        "rope.remove": "unspoken.transforms.rope:RemoveRope",
        "rope.apply": "unspoken.transforms.rope:ApplyRope",
        "cast": "unspoken.transforms.cast:Cast",
        "control.zero": "unspoken.transforms.controls:Zero",
        "control.noise": "unspoken.transforms.controls:Noise",
        "control.displace": "unspoken.transforms.controls:Displace",
    },
)


@runtime_checkable
class Transform(Protocol):
    """Anything that makes a new cache from an old one and can be built from JSON-able arguments."""

    def __call__(self, cache: KVCache, /) -> KVCache:
        """Return the new cache; the old one is untouched."""
        ...
