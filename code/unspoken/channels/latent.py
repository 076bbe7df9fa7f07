"""Think without words, and hand the thoughts over with everything else (LatentMAS, arXiv 2511.20639).

The sender reads an instruction and then lets its last hidden state be its next input, again and again; each step
adds a column to every layer. The receiver goes on from all of it with a prompt of its own.

Positions are counted here, not taken from a cache's length, and no padding is ever read: three faults of the published
code (its issues 13 and 26, and no position ids at all).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.channels.kv import arrived, measured_for, position_bytes, require_fitting
from unspoken.channels.names import count, labelled
from unspoken.channels.protocol import Delivery, Party, Reading, Request, once_per_source, only, stopwatch
from unspoken.channels.text import content
from unspoken.engines.capabilities import Layered, layered
from unspoken.engines.checks import require_room
from unspoken.engines.prefilled import prefilled
from unspoken.engines.protocol import Prompt
from unspoken.errors import UsageError
from unspoken.manifest import Span, Step
from unspoken.transforms.cast import Cast
from unspoken.transforms.codecs import codec_named

THINK = "\n\nThink about what this text says. A colleague will be asked about it."
# Of the ridge regression that finds the realignment (LatentMAS, section 3.2 and its code).
RIDGE = 1e-5
_REALIGNMENTS: WeakKeyDictionary[object, Float[Tensor, "hidden hidden"]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Latent:
    """The sender's whole cache with some latent steps of thought; the receiver goes on with its own prompt.

    Args:
        amount: Latent steps; none by default, as in the published code.
        variant: `realign` to map hidden states back to embeddings by ridge regression before they are scaled; for
            models with tied embeddings it changes nothing.
        codec: How columns are coded on the wire; by default as they are.

    Raises:
        UsageError: If an option is none of these.
    """

    amount: int | str | None = None
    variant: str | None = None
    codec: str | None = None
    name: ClassVar[str] = "latent"

    def __post_init__(self) -> None:
        count(self.name, self.amount, 0)
        if self.codec is not None:
            codec_named(self.codec)
        if self.variant not in (None, "realign"):
            raise UsageError(
                f"There is no variant '{self.variant}' of 'latent'.", "Write latent@20 or latent:realign@20."
            )

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Let each reading be thought about once; the questions fork the result."""
        return once_per_source(
            requests, lambda sources: [self._delivery(only(each, self.name), receiver) for each in sources]
        )

    def _delivery(self, reading: Reading, receiver: Party) -> Delivery:
        measured_for(reading, receiver)
        require_fitting(reading.cache, receiver.engine)
        codec, took = codec_named(self.codec or receiver.engine.dtype), {"capture": reading.seconds}
        with stopwatch(took, "transform"):
            packed = codec.pack(thought(reading, count(self.name, self.amount, 0), self.variant))
        with stopwatch(took, "inject"):
            past = Cast(receiver.engine.dtype)(codec.unpack(packed))
        name = labelled(self.name, variant=self.variant, amount=self.amount, codec=self.codec)
        # One sink is enough, and a second one in the middle is what no model was trained on.
        own = Prompt(tuple(piece for piece in receiver.frame.before.pieces if piece.kind != "sink"))
        moved = packed.bytes_held() + position_bytes(past)
        return arrived(name, past, past.columns, took, moved, prompt=own)


def thought(reading: Reading, steps: int, variant: str | None) -> KVCache:
    """Return a reader's cache after it was told to think, and has thought for some steps."""
    reader, cache = reading.reader, reading.cache
    engine = layered(reader.engine, Latent.name)
    prompt = content(reader, THINK) + reader.frame.after
    ids, columns, position = prompt.token_ids, cache.columns, cache.next_position
    require_room(position, len(ids) + steps, cache.spec)
    run = torch.arange(len(ids))
    residuals, layers = engine.through(engine.embed(ids), cache.layers, columns + run, position + run)
    matrix = realignment(engine) if variant == "realign" else None
    usual = engine.embeddings().detach().float().norm(dim=1).mean().cpu()
    for step in range(len(ids), len(ids) + steps):
        entering = _as_input(engine.finish(residuals[-1:]), matrix, usual)
        at, where = torch.tensor([columns + step]), torch.tensor([position + step])
        residuals, layers = engine.through(entering, layers, at, where)
    told = prefilled(layers, cache.spec, prompt, cache, reader.engine.name)
    if not steps:
        return told
    spans = (*told.manifest.spans, Span("thought", columns + len(ids), columns + len(ids) + steps))
    return told.rebuilt(
        Step("latent", {"steps": steps, "variant": variant}),
        lambda layer: (layer.keys, layer.values, layer.positions),
        spans=spans,
        token_ids=None,
    )


def realignment(engine: Layered) -> Float[Tensor, "hidden hidden"]:
    """Return the matrix that maps what enters the head to what enters the first layer.

    The ridge solution of W_out A = W_in: (W_out' W_out + lambda I)^-1 W_out' W_in (LatentMAS, section 3.2).
    """
    if engine not in _REALIGNMENTS:
        leaving, entering = engine.unembeddings().detach().float(), engine.embeddings().detach().float()
        gram = leaving.T @ leaving + RIDGE * torch.eye(leaving.shape[1])
        _REALIGNMENTS[engine] = torch.linalg.solve(gram, leaving.T @ entering).cpu()
    return _REALIGNMENTS[engine]


def _as_input(
    hidden: Float[Tensor, "1 hidden"], matrix: Float[Tensor, "hidden hidden"] | None, usual: Float[Tensor, ""]
) -> Float[Tensor, "1 hidden"]:
    """Return a hidden state, mapped if there is a matrix, as long as an embedding usually is (LatentMAS's code)."""
    entering = hidden.float() if matrix is None else hidden.float() @ matrix
    scaled: Tensor = entering * usual / entering.norm()
    return scaled.to(hidden.dtype)
