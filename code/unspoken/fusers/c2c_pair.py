"""All fusers of one pair of models, and several senders' caches fused into one.

Source: Cache-to-Cache, arXiv 2510.03215; the two ways of several senders are those of the published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import torch
from torch import nn

from unspoken.errors import UsageError
from unspoken.fusers.c2c import KV, C2CFuser
from unspoken.fusers.c2c_complex import C2CComplexFuser

Fuser: TypeAlias = C2CFuser | C2CComplexFuser


class C2CPair(nn.Module):
    """Fuse a sender's cache into a receiver's, layer by layer.

    Args:
        fusers: The fusers.
        layers: For each receiver layer that has one, the sender's layer it listens to and its fuser's number.

    Attributes:
        layers: The same.

    Raises:
        UsageError: If a layer is below 0, names no fuser, or a fuser serves no layer.
    """

    def __init__(self, fusers: Sequence[Fuser], layers: Mapping[int, tuple[int, int]]) -> None:
        super().__init__()
        for target, (source, fuser) in layers.items():
            if min(target, source) < 0 or not 0 <= fuser < len(fusers):
                raise UsageError(
                    f"Layer {target} is to listen to layer {source} through fuser {fuser} of {len(fusers)}.",
                    "Layers and fusers count from 0.",
                )
        idle = set(range(len(fusers))) - {fuser for _, fuser in layers.values()}
        if idle:
            raise UsageError(f"Fusers {sorted(idle)} serve no layer.", "Name each fuser in the layer map.")
        self.fusers = nn.ModuleList(fusers)
        self.layers = dict(sorted(layers.items()))

    def forward(
        self, source_layers: Sequence[KV], target_layers: Sequence[KV], generator: torch.Generator | None = None
    ) -> list[KV]:
        """Return the receiver's layers, fused; those without a fuser are the very same tensors.

        Args:
            source_layers: Keys and values of every layer of the sender, each `[batch, heads, seq, head_dim]`.
            target_layers: Those of the receiver.
            generator: Where training's gate noise is drawn from, layer by layer; torch's global one if None.

        Raises:
            UsageError: If there are fewer layers than the map names, or shapes do not fit.
        """
        named = [(target, source) for target, (source, _) in self.layers.items()]
        needed = [max(pair) + 1 for pair in zip(*named, strict=True)] or [0, 0]
        if len(target_layers) < needed[0] or len(source_layers) < needed[1]:
            raise UsageError(
                f"There are {len(source_layers)} sender and {len(target_layers)} receiver layers, expected at least "
                f"{needed[1]} and {needed[0]}.",
                "Give the layers of the two models these fusers were made for.",
            )
        fused = list(target_layers)
        for target, (source, fuser) in self.layers.items():
            fused[target] = self.fusers[fuser](source_layers[source], target_layers[target], generator)
        return fused

    def update_temperature(self, step: int) -> None:
        """Set every gate's temperature for a training step; once per optimiser step.

        Raises:
            UsageError: If the step is below 0.
        """
        for fuser in self.fusers:
            cast("Fuser", fuser).update_temperature(step)


def fused_in_parallel(
    pairs: Sequence[C2CPair],
    sources: Sequence[Sequence[KV]],
    targets: Sequence[KV],
    generator: torch.Generator | None = None,
) -> list[KV]:
    """Return a receiver's layers with what every sender adds to the untouched cache: C + sum of F_j(C, S_j) - C.

    Raises:
        UsageError: If there is not one sender per pair, or shapes do not fit.
    """
    _require_one_each(pairs, sources)
    total = list(targets)
    for pair, source in zip(pairs, sources, strict=True):
        for layer, fused in enumerate(pair(source, targets, generator)):
            total[layer] = _added(total[layer], fused, targets[layer])
    return total


def fused_in_sequence(
    pairs: Sequence[C2CPair],
    sources: Sequence[Sequence[KV]],
    targets: Sequence[KV],
    generator: torch.Generator | None = None,
) -> list[KV]:
    """Return a receiver's layers, each sender fused into the cache that those before it have changed.

    Raises:
        UsageError: If there is not one sender per pair, or shapes do not fit.
    """
    _require_one_each(pairs, sources)
    fused = list(targets)
    for pair, source in zip(pairs, sources, strict=True):
        fused = pair(source, fused, generator)
    return fused


def _added(total: KV, fused: KV, clean: KV) -> KV:
    if total is clean or fused is clean:  # Nothing to add up: one sender alone comes out as it would without others.
        return fused if total is clean else total
    return total[0] + (fused[0] - clean[0]), total[1] + (fused[1] - clean[1])


def _require_one_each(pairs: Sequence[C2CPair], sources: Sequence[Sequence[KV]]) -> None:
    if len(pairs) != len(sources):
        raise UsageError(
            f"There are {len(sources)} senders' caches for {len(pairs)} pairs.", "Give one cache for each pair."
        )
