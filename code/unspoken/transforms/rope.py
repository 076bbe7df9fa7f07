"""Re-position columns: turn keys to other positions, or make them position-free.

RoPE turns pair i of a key at position p by the angle p·w_i (RoFormer, arXiv 2104.09864, eq. 15 and 34).
Rotations by the same frequencies add up, so a key made at position p becomes the key at position q when
it is turned by q·w_i - p·w_i. Values do not depend on position.

Two things are easy to get wrong, and both are dealt with in here. The rotation used is the *unscaled* one:
YaRN multiplies cos and sin by a factor that a cached key already holds. And angles are rounded to float32
first, as the models themselves do, so that a moved key equals the key a prefill at that position makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.errors import UsageError
from unspoken.manifest import RopeState, Step
from unspoken.spec import RopeSpec


class Rotation(NamedTuple):
    """Unscaled cos and sin of the angle each column's pairs are turned by."""

    cos: Float[Tensor, "seq pairs"]
    sin: Float[Tensor, "seq pairs"]


def angles(positions: Int[Tensor, " seq"], rope: RopeSpec) -> Float[Tensor, "seq pairs"]:
    """Return the angle of each pair at each position, in radians, float64 holding float32-rounded values."""
    frequencies = torch.tensor(rope.inverse_frequencies, dtype=torch.float32)
    return (positions.to(torch.float32)[:, None] * frequencies).to(torch.float64)


def rotation(radians: Float[Tensor, "seq pairs"]) -> Rotation:
    """Return float32 cos and sin of float64 angles."""
    return Rotation(radians.cos().to(torch.float32), radians.sin().to(torch.float32))


def turn(
    keys: Float[Tensor, "kv_heads seq head_dim"], by: Rotation, rope: RopeSpec
) -> Float[Tensor, "kv_heads seq head_dim"]:
    """Return keys turned by an angle per column and pair, computed in float32, in the dtype they came in.

    Source: RoFormer, arXiv 2104.09864, eq. 34, for either pairing of coordinates.
    """
    out = torch.empty(keys.shape, dtype=torch.float32)
    turn_into(out, keys, by, rope)
    return out.to(keys.dtype)


def rotated(
    keys: Float[Tensor, "kv_heads seq head_dim"], by: Rotation, rope: RopeSpec
) -> Float[Tensor, "kv_heads seq head_dim"]:
    """Return what `turn` returns of float32 keys, in a way that gradients pass through."""
    first, second = _pairs(keys, rope)
    pairs = first * by.cos - second * by.sin, second * by.cos + first * by.sin
    return torch.cat(pairs, dim=-1) if rope.pairing == "half" else torch.stack(pairs, dim=-1).flatten(-2)


def turn_into(
    out: Float[Tensor, "kv_heads seq head_dim"],
    keys: Float[Tensor, "kv_heads seq head_dim"],
    by: Rotation,
    rope: RopeSpec,
) -> None:
    """Write keys turned by an angle per column and pair into a float32 tensor, with no copy in between."""
    first, second = _pairs(keys.to(torch.float32), rope)
    into_first, into_second = _pairs(out, rope)
    torch.mul(first, by.cos, out=into_first)
    into_first.addcmul_(second, by.sin, value=-1)
    torch.mul(second, by.cos, out=into_second)
    into_second.addcmul_(first, by.sin)


def _pairs(
    keys: Float[Tensor, "kv_heads seq head_dim"], rope: RopeSpec
) -> tuple[Float[Tensor, "kv_heads seq pairs"], Float[Tensor, "kv_heads seq pairs"]]:
    """Return views of the first and second coordinates of all pairs."""
    half = keys.shape[-1] // 2
    if rope.pairing == "half":
        return keys[..., :half], keys[..., half:]
    return keys[..., 0::2], keys[..., 1::2]


def turned(
    cache: KVCache,
    step: Step,
    place: Callable[[Tensor], Tensor],
    radians: Callable[[Tensor, Tensor], Tensor] | None,
    **manifest_fields: object,
) -> KVCache:
    """Return a cache at positions `place(old)`, its keys turned by `radians(old, new)` (None: not turned).

    Layers usually share their positions, so cos and sin are computed once per distinct set of them.
    """
    known: dict[bytes, tuple[Tensor, Rotation | None]] = {}

    def change(layer: KVLayer) -> tuple[Tensor, Tensor, Tensor]:
        name = layer.positions.numpy().tobytes()
        if name not in known:
            new = place(layer.positions)
            known[name] = (new, None if radians is None else rotation(radians(layer.positions, new)))
        new, by = known[name]
        keys = layer.keys if by is None else turn(layer.keys, by, cache.spec.rope)
        return keys, layer.values, new

    return cache.rebuilt(step, change, **manifest_fields)


@dataclass(frozen=True)
class Move:
    """Move a segment so that its first column stands at position `start`, gaps between columns kept."""

    start: int

    def __call__(self, cache: KVCache, /) -> KVCache:
        """Return the cache at its new positions; keys that have RoPE applied are turned along."""
        if self.start < 0:
            raise UsageError(f"A segment cannot be moved to position {self.start}.", "Give a start of 0 or more.")
        delta = self.start - min(int(layer.positions.min()) for layer in cache.layers if layer.columns)
        rope = cache.spec.rope
        by = None
        if cache.manifest.rope == "applied" and delta != 0:
            by = lambda old, new: angles(new, rope) - angles(old, rope)  # noqa: E731
        return turned(cache, Step("rope.move", asdict(self)), lambda old: old + delta, by)


@dataclass(frozen=True)
class RemoveRope:
    """Make keys position-free; their positions stay beside them as data."""

    def __call__(self, cache: KVCache, /) -> KVCache:
        """Return the position-free cache (the same one if it already is)."""
        return _switched(cache, "removed", -1.0, Step("rope.remove"))


@dataclass(frozen=True)
class ApplyRope:
    """Turn position-free keys to the positions that stand beside them."""

    def __call__(self, cache: KVCache, /) -> KVCache:
        """Return the cache with RoPE applied (the same one if it already is)."""
        return _switched(cache, "applied", 1.0, Step("rope.apply"))


def _switched(cache: KVCache, state: RopeState, sign: float, step: Step) -> KVCache:
    if cache.manifest.rope == state:
        return cache
    rope = cache.spec.rope
    return turned(cache, step, lambda old: old, lambda old, _: sign * angles(old, rope), rope=state)
