"""A translator in closed form: each of the receiver's layers is a linear map of some of the sender's layers.

    y_t = M_t [x_s for s in sources(t)],  M_t = C' (G + ridge)^-1

`x_s` is layer s of a sender's column, keys and values of all heads, position-free and standardised number by number;
`y_t` is layer t of a receiver's, likewise. G and C are correlations (`unspoken.fusers.ridge_fit`). As in KV Ridge
(NVIDIA, arXiv 2608.03893), but for how layers are chosen, and that values help to make keys and keys values. Ridge
regression solves each number of the target by itself, so that one matrix for all heads of a layer is the same as one
for each head.

What travels is each chosen layer of the sender once, standardised, so that rounding on the way costs all numbers alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from unspoken.errors import UsageError
from unspoken.fusers.kept import Kept
from unspoken.fusers.pair import Pair
from unspoken.fusers.ridge_fit import LayerMap


class Ridge(nn.Module, Kept):
    """A translator that nothing was trained for: it is solved for.

    Args:
        pair: The two models, as plain data (`msgspec.to_builtins` of a `Pair`).
        sources: For each of the receiver's layers the sender's layers it is made of, in the order of its map's inputs.

    Raises:
        UsageError: If a layer has no sources, one twice, or one that the sender does not have.
    """

    kind: ClassVar[str] = "ridge"
    sender_mean: Tensor
    sender_scale: Tensor
    receiver_mean: Tensor
    receiver_scale: Tensor

    def __init__(self, pair: dict[str, Any], sources: list[list[int]]) -> None:
        super().__init__()
        self._pair, self._sources = msgspec.convert(pair, Pair), msgspec.convert(sources, list[list[int]])
        sender, receiver = self._pair.sender, self._pair.receiver
        _require_sources(self._sources, self._pair)
        self._config = {"kind": self.kind, "pair": msgspec.to_builtins(self._pair), "sources": self._sources}
        self._chosen = sorted({source for each in self._sources for source in each})
        self._width = sender.width // sender.layers
        for name, count in (("sender", self._width * len(self._chosen)), ("receiver", receiver.width)):
            self.register_buffer(f"{name}_mean", torch.zeros(count))
            self.register_buffer(f"{name}_scale", torch.ones(count))
        heads = 2 * receiver.kv_heads
        for layer, each in enumerate(self._sources):
            # Heads apart, which the folder keeps as float16 and not as int8: large weights of either sign may make up
            # small numbers.
            self.register_buffer(f"map_{layer}", torch.zeros(heads, receiver.head_dim, self._width * len(each)))

    @staticmethod
    def of(pair: Pair, maps: Sequence[LayerMap]) -> Ridge:
        """Return a fuser of fitted maps, one for each of the receiver's layers."""
        fuser = Ridge(msgspec.to_builtins(pair), [list(each.sources) for each in maps])
        fuser._take(maps)
        return fuser.eval()

    @property
    def pair(self) -> Pair:
        """The two models it is for."""
        return self._pair

    @property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """For each of the receiver's layers the sender's layers it is made of."""
        return tuple(tuple(each) for each in self._sources)

    def encode(self, rows: Float[Tensor, "columns sender"]) -> Float[Tensor, "columns message"]:
        """Return what travels: the sender's layers that any map asks for, standardised."""
        layers = rows.reshape(len(rows), self._pair.sender.layers, self._width)
        return (layers[:, self._chosen].flatten(1) - self.sender_mean) / self.sender_scale

    def decode(self, message: Float[Tensor, "columns message"]) -> Float[Tensor, "columns receiver"]:
        """Return the receiver's columns, position-free."""
        layers = message.reshape(len(message), len(self._chosen), self._width)
        made = [
            functional.linear(layers[:, [self._chosen.index(source) for source in each]].flatten(1), matrix)
            for each, matrix in zip(self._sources, self._maps(), strict=True)
        ]
        return torch.cat(made, dim=1) * self.receiver_scale + self.receiver_mean

    def forward(self, rows: Float[Tensor, "columns sender"]) -> Float[Tensor, "columns receiver"]:
        """Return the receiver's columns for the sender's."""
        return self.decode(self.encode(rows))

    def _maps(self) -> list[Tensor]:
        return [self.get_buffer(f"map_{layer}").flatten(0, 1) for layer in range(len(self._sources))]

    def _take(self, maps: Sequence[LayerMap]) -> None:
        """Take over matrices and moments; those of a layer of the sender are the same in every map."""
        mean, scale = self.sender_mean.view(-1, self._width), self.sender_scale.view(-1, self._width)
        for each, matrix in zip(maps, self._maps(), strict=True):
            matrix.copy_(each.matrix)
            at = [self._chosen.index(source) for source in each.sources]
            mean[at] = each.inputs_mean.reshape(-1, self._width)
            scale[at] = each.inputs_scale.reshape(-1, self._width)
        self.receiver_mean.copy_(torch.cat([each.targets_mean for each in maps]))
        self.receiver_scale.copy_(torch.cat([each.targets_scale for each in maps]))


def _require_sources(sources: Sequence[Sequence[int]], pair: Pair) -> None:
    layers = range(pair.sender.layers)
    unfit = [at for at, each in enumerate(sources) if not each or len(set(each)) < len(each) or set(each) - {*layers}]
    if len(sources) != pair.receiver.layers or unfit:
        raise UsageError(
            f"The sources of {len(sources)} layers were given, those of layers {unfit} being unfit; the receiver has "
            f"{pair.receiver.layers} layers and the sender {pair.sender.layers}.",
            "Name for each of the receiver's layers one or more of the sender's, each once.",
        )
