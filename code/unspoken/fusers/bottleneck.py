"""A small trained translator: a linear map in two factors beside a network, on standardised columns.

    h = gelu(W_in x);  for each block  h = h + gelu(W rms(h));  y = U (D x) + W_out h

`x` is a sender's column, position-free, standardised number by number; `y` a receiver's, likewise. `D` and `U` are the
factors of a ridge regression (`unspoken.fusers.lowrank`) and stay as they are; `W_out` begins at zero, so that training
begins at the regression. What travels is `D x` and the last `h`. In the spirit of Latent Cache Flow (arXiv 2605.22863),
which squeezes a cache through a narrow code; the network and its sizes are ours.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from unspoken.errors import UsageError
from unspoken.fusers.kept import Kept
from unspoken.fusers.lowrank import LowRank
from unspoken.fusers.pair import Pair

MOST_BLOCKS = 100


class Bottleneck(nn.Module, Kept):
    """A translator of at most some million weights.

    Args:
        pair: The two models, as plain data (`msgspec.to_builtins` of a `Pair`).
        rank: Numbers between the two factors of the linear map.
        width: Numbers of the network's inner columns; 0 for none, which leaves the linear map alone.
        blocks: Layers of the network between its first and its last.

    Raises:
        UsageError: If the sizes make no network.
    """

    kind: ClassVar[str] = "bottleneck"
    sender_mean: Tensor
    sender_scale: Tensor
    receiver_mean: Tensor
    receiver_scale: Tensor
    down: Tensor
    up: Tensor

    def __init__(self, pair: dict[str, Any], rank: int = 256, width: int = 512, blocks: int = 1) -> None:
        super().__init__()
        if rank < 1 or width < 0 or not 0 <= blocks <= MOST_BLOCKS:
            raise UsageError(
                f"A fuser of rank {rank}, width {width} and {blocks} blocks cannot be.",
                f"Give a rank of 1 or more, a width of 0 or more, and at most {MOST_BLOCKS} blocks.",
            )
        self._pair = msgspec.convert(pair, Pair)
        self._config = {
            "kind": self.kind,
            "pair": msgspec.to_builtins(self._pair),
            "rank": rank,
            "width": width,
            "blocks": blocks,
        }
        self._rank, sender, receiver = rank, self._pair.sender.width, self._pair.receiver.width
        for name, count in (("sender", sender), ("receiver", receiver)):
            self.register_buffer(f"{name}_mean", torch.zeros(count))
            self.register_buffer(f"{name}_scale", torch.ones(count))
        self.register_buffer("down", torch.zeros(rank, sender))
        self.register_buffer("up", torch.zeros(receiver, rank))
        self.enter = nn.Linear(sender, width) if width else None
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks if width else 0))
        self.leave = nn.Linear(width, receiver) if width else None
        if self.leave is not None:
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)

    @property
    def pair(self) -> Pair:
        """The two models it is for."""
        return self._pair

    def start_from(self, linear: LowRank) -> None:
        """Take over a regression's factors and moments.

        Raises:
            UsageError: If it is of another rank, or of models of another width.
        """
        for name in ("sender_mean", "sender_scale", "receiver_mean", "receiver_scale", "down", "up"):
            own, new = getattr(self, name), getattr(linear, name)
            if own.shape != new.shape:
                raise UsageError(
                    f"The regression's '{name}' is {list(new.shape)}, the fuser's {list(own.shape)}.",
                    "Fit it to columns of the fuser's two models, with the fuser's rank.",
                )
            own.copy_(new)

    def encode(self, rows: Float[Tensor, "columns sender"]) -> Float[Tensor, "columns message"]:
        """Return what travels: the narrow end of the linear map, and of the network."""
        x = (rows - self.sender_mean) / self.sender_scale
        linear = functional.linear(x, self.down)
        if self.enter is None:
            return linear
        hidden = functional.gelu(self.enter(x))
        for block in self.blocks:
            hidden = hidden + functional.gelu(block(functional.rms_norm(hidden, hidden.shape[-1:])))
        return torch.cat((linear, hidden), dim=1)

    def decode(self, message: Float[Tensor, "columns message"]) -> Float[Tensor, "columns receiver"]:
        """Return the receiver's columns, position-free."""
        made = functional.linear(message[:, : self._rank], self.up)
        if self.leave is not None:
            made = made + self.leave(message[:, self._rank :])
        return made * self.receiver_scale + self.receiver_mean

    def forward(self, rows: Float[Tensor, "columns sender"]) -> Float[Tensor, "columns receiver"]:
        """Return the receiver's columns for the sender's."""
        return self.decode(self.encode(rows))
