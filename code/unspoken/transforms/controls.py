"""Caches that carry no message, or the message in the wrong place: the controls of every experiment.

They keep shape, positions and spans of the cache they replace, so that the receiver pays the same and
sees the same number of columns. Which controls an experiment needs is said in `docs/protocol.md`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.manifest import Step
from unspoken.transforms.rope import ApplyRope, RemoveRope, angles, turned


@dataclass(frozen=True)
class Zero:
    """Replace keys and values by zeros: as many columns, nothing in them."""

    def __call__(self, cache: KVCache, /) -> KVCache:
        """Return the emptied cache."""
        return cache.rebuilt(
            Step("control.zero"),
            lambda layer: (torch.zeros_like(layer.keys), torch.zeros_like(layer.values), layer.positions),
            token_ids=None,
        )


@dataclass(frozen=True)
class Noise:
    """Replace keys and values by Gaussian noise of the same mean and variance per layer and head.

    The moments are those of position-free keys, and the noise is turned to the columns' positions
    afterwards: a rotated key's moments mix all positions and would not match.
    """

    seed: int

    def __call__(self, cache: KVCache, /) -> KVCache:
        """Return the noise, in the RoPE state the cache came in."""
        generator = torch.Generator().manual_seed(self.seed)
        free = RemoveRope()(cache)
        noisy = free.rebuilt(
            Step("control.noise", asdict(self)),
            lambda layer: (_alike(layer.keys, generator), _alike(layer.values, generator), layer.positions),
            token_ids=None,
        )
        return ApplyRope()(noisy) if cache.manifest.rope == "applied" else noisy


@dataclass(frozen=True)
class Displace:
    """Turn each key to a position `offset` further on than where its column stands.

    A code error in positions looks like this: the right content is all there, at the wrong distance from the
    question. Offsets of a few tokens do little, and neither does any order of positions within the segment
    (measured, `docs/log.md`); 1,024 costs the better part of the content.
    """

    offset: int

    def __call__(self, cache: KVCache, /) -> KVCache:
        """Return the displaced cache; it must have RoPE applied."""
        rope = cache.spec.rope
        return turned(
            cache,
            Step("control.displace", asdict(self)),
            lambda old: old,
            lambda old, _: angles(old + self.offset, rope) - angles(old, rope),
        )


def _alike(
    states: Float[Tensor, "kv_heads seq head_dim"], generator: torch.Generator
) -> Float[Tensor, "kv_heads seq head_dim"]:
    wide = states.to(torch.float32)
    mean = wide.mean(dim=(1, 2), keepdim=True)
    spread = wide.std(dim=(1, 2), keepdim=True)
    noise = torch.randn(wide.shape, generator=generator)
    return (mean + spread * noise).to(states.dtype)
