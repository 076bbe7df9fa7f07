"""Write a message in embeddings instead of words (CIPHER, arXiv 2310.06272).

Where a token would be drawn, the sender goes on with the mean of all input embeddings, weighted by the probability of
each token. The receiver reads these vectors as if they were its own embeddings of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.channels.kv import arrived
from unspoken.channels.names import count, labelled
from unspoken.channels.protocol import Delivery, Party, Reading, Request, once_per_source, only, stopwatch
from unspoken.channels.text import WRITE, content
from unspoken.engines.capabilities import layered
from unspoken.engines.checks import require_room
from unspoken.engines.prefilled import prefilled
from unspoken.engines.protocol import Piece, Prompt
from unspoken.errors import UsageError
from unspoken.manifest import require_compatible

STEPS = 32


@dataclass(frozen=True)
class Embedding:
    """A message of so many vectors, of which each stands for a mixture of tokens.

    Args:
        amount: Most vectors; the message also ends where the sender would end it.
        temperature: Of the mixture: lower is nearer to a single token.

    Raises:
        UsageError: If an option is none of these.
    """

    amount: int | str | None = None
    temperature: float | int | str = 1.0
    name: ClassVar[str] = "embedding"

    def __post_init__(self) -> None:
        count(self.name, self.amount, STEPS, least=1)
        self._temperature()

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Write one message per reading; the receiver reads it once."""
        return once_per_source(
            requests, lambda sources: [self._delivery(only(each, self.name), receiver) for each in sources]
        )

    def _delivery(self, reading: Reading, receiver: Party) -> Delivery:
        require_compatible(reading.cache.spec, receiver.engine.spec)
        took = {"capture": reading.seconds}
        with stopwatch(took, "transform"):
            message = written(reading, count(self.name, self.amount, STEPS, least=1), self._temperature())
            message = message.to(torch.bfloat16)
        prefix, engine = receiver.prefix, layered(receiver.engine, self.name)
        run = torch.arange(len(message))
        require_room(prefix.next_position, len(message), prefix.spec)
        with stopwatch(took, "inject"):
            entering = message.to(engine.embeddings().dtype)
            _, layers = engine.through(entering, prefix.layers, prefix.columns + run, prefix.next_position + run)
            unspelt = Prompt((Piece("content", (0,) * len(message)),))
            past = prefilled(layers, prefix.spec, unspelt, prefix, receiver.engine.name).without_tokens()
        tuned = None if self._temperature() == 1 else self.temperature
        name = labelled(self.name, amount=self.amount, temperature=tuned)
        return arrived(name, past, 0, took, message.nbytes, tokens_prefilled=len(message))

    def _temperature(self) -> float:
        try:
            value = float(self.temperature)
        except ValueError:
            value = 0.0
        if not 0 < value < 100:
            raise UsageError(f"The temperature is '{self.temperature}'.", "Give a number above 0 and below 100.")
        return value


def written(reading: Reading, most: int, temperature: float) -> Float[Tensor, "message hidden"]:
    """Return the vectors a reader writes about what it has read.

    e = sum over tokens of softmax(logits / T) times the token's embedding (CIPHER, equation 2); it ends where the most
    probable token ends an answer.
    """
    reader, cache = reading.reader, reading.cache
    engine = layered(reader.engine, Embedding.name)
    table, head = engine.embeddings().detach(), engine.unembeddings().detach()
    ids = (content(reader, WRITE) + reader.frame.after).token_ids
    columns, position, run = cache.columns, cache.next_position, torch.arange(len(ids))
    require_room(position, len(ids) + most, cache.spec)
    residuals, layers = engine.through(engine.embed(ids), cache.layers, columns + run, position + run)
    made: list[Tensor] = []
    for step in range(len(ids), len(ids) + most):
        logits = engine.finish(residuals[-1:]).to(head.device) @ head.T
        if made and int(logits.argmax()) in engine.ends:
            break
        made.append(((logits.float() / temperature).softmax(dim=-1).to(table.dtype) @ table).cpu())
        residuals, layers = engine.through(
            made[-1], layers, torch.tensor([columns + step]), torch.tensor([position + step])
        )
    return torch.cat(made)
