"""Hand over one residual: where the sender's last token stands in a layer (AC, arXiv 2501.14082).

The cheapest of all messages, and a baseline: one vector cannot hold a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.channels.kv import arrived
from unspoken.channels.names import count, labelled
from unspoken.channels.protocol import Delivery, Party, Reading, Request, once_per_source, only, stopwatch
from unspoken.engines.capabilities import layered
from unspoken.engines.protocol import Graft, Onset
from unspoken.errors import UsageError
from unspoken.manifest import require_compatible

# The paper's choice for 32 layers is 26, for sender and receiver alike.
DEPTH = 26 / 32
HOW: dict[str, Literal["replace", "sum", "mean"]] = {"replace": "replace", "sum": "sum", "mean": "mean"}


@dataclass(frozen=True)
class Activation:
    """The residual of the sender's last token takes the place of the receiver's, on its way into one layer.

    Args:
        amount: The layer, from 1 on; by default at 26/32 of the model's depth.
        variant: `replace`, `sum` or `mean`.

    Raises:
        UsageError: If an option is none of these.
    """

    amount: int | str | None = None
    variant: str = "replace"
    name: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        count(self.name, self.amount, 1, least=1)
        if self.variant not in HOW:
            raise UsageError(f"Residuals cannot meet by '{self.variant}'.", f"Choose one of {', '.join(HOW)}.")

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand each reading's residual over; the questions share it."""
        return once_per_source(
            requests, lambda sources: [self._delivery(only(each, self.name), receiver) for each in sources]
        )

    def _delivery(self, reading: Reading, receiver: Party) -> Delivery:
        require_compatible(reading.cache.spec, receiver.engine.spec)
        layered(receiver.engine, self.name)
        layers = receiver.engine.spec.layers
        layer = count(self.name, self.amount, max(1, int(DEPTH * layers)), least=1)
        if layer >= layers:
            raise UsageError(
                f"There is no layer {self.amount or layer} among {layers}.", f"Choose one from 1 to {layers - 1}."
            )
        took = {"capture": reading.seconds}
        with stopwatch(took, "transform"):
            residual = entering(reading, layer).to(torch.bfloat16)
        variant = None if self.variant == "replace" else self.variant
        name = labelled(self.name, variant=variant, amount=self.amount)
        onset = Onset(graft=Graft(layer, residual.float(), HOW[self.variant]))
        return arrived(name, receiver.prefix, 0, took, residual.nbytes, onset=onset)


def entering(reading: Reading, layer: int) -> Float[Tensor, " hidden"]:
    """Return the residual of the last token of a reader's turn as it enters a layer."""
    reader, cache = reading.reader, reading.cache
    engine = layered(reader.engine, Activation.name)
    ids = reader.frame.after.token_ids
    run = torch.arange(len(ids))
    residuals, _ = engine.through(
        engine.embed(ids), cache.layers[:layer], cache.columns + run, cache.next_position + run
    )
    return residuals[-1]
