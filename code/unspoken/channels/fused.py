"""Hand over between different models: a fuser makes the receiver's columns from the sender's.

The receiver does not see the text (a translator, `unspoken.fusers.protocol`), or both read it and the sender's columns
are fused into the receiver's (an enricher such as C2C's, arXiv 2510.03215).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.channels.kv import WIRE, arrived, called, content_columns
from unspoken.channels.names import count
from unspoken.channels.protocol import Delivery, Party, Reading, Request, once_per_source, only, stopwatch
from unspoken.channels.text import content
from unspoken.engines.capabilities import located
from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError
from unspoken.fusers import load_fuser
from unspoken.fusers.align import by_spans
from unspoken.fusers.protocol import Enricher, Translator
from unspoken.fusers.rows import as_cache, as_rows
from unspoken.manifest import Step
from unspoken.transforms.place import place_behind

NAME = "fused"


@dataclass(frozen=True)
class Fused:
    """The sender's columns, mapped to the receiver's model.

    Args:
        variant: The fuser: a name below `models/`, a folder, or a repository on the hub.
        own: With a translator: the receiver reads the text as well, and keeps its own columns in so many first layers.
        codec: Element type of what travels: `bfloat16`, `float16` or `float32`.

    Raises:
        UsageError: If no fuser is named, or the type is none.
    """

    variant: str = ""
    own: int | str | None = None
    codec: str = WIRE
    name: ClassVar[str] = NAME

    def __post_init__(self) -> None:
        if not self.variant:
            raise UsageError("The channel 'fused' names no fuser.", "Write fused:NAME, a folder below models/.")
        if self.codec not in DTYPES:
            raise UsageError(f"A fused message cannot be sent as '{self.codec}'.", f"Choose of {', '.join(DTYPES)}.")
        count(NAME, self.own, 0, sign=":own=")

    @cached_property
    def fuser(self) -> Translator | Enricher:
        """The fuser, loaded when it is first needed."""
        return load_fuser(self.variant)

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand each reading over once; the questions fork the result."""
        return once_per_source(requests, lambda sources: [self.deliver(only(each, NAME), receiver) for each in sources])

    def deliver(self, reading: Reading, receiver: Party, blank: Step | None = None) -> Delivery:
        """Hand one reading over.

        Args:
            reading: What was read.
            receiver: Who gets it.
            blank: If given, zeros go into the fuser instead of the sender's columns, and this step tells of it: what
                is left is what the fuser alone does.

        Raises:
            IncompatibleCache: If the fuser is for two other models.
            UsageError: If `own` names layers that there are not, or the fuser enriches all of them.
        """
        fuser, spec = self.fuser, receiver.engine.spec
        fuser.pair.require(reading.cache.spec, spec)
        self._require_own(fuser, spec.layers)
        took = {"capture": reading.seconds}
        with stopwatch(took, "transform"):
            rows = sent_rows(reading, receiver.engine)
            rows = rows if blank is None else torch.zeros_like(rows)
        made = self._enriched if isinstance(fuser, Enricher) else self._translated
        past, moved = made(rows, reading, receiver, took)
        past = past if blank is None else past.rebuilt(blank, lambda layer: (layer.keys, layer.values, layer.positions))
        name = called(NAME, self.codec, variant=self.variant, own=self.own)
        read = 0 if self.own is None and isinstance(fuser, Translator) else len(rows)
        return arrived(name, past, len(rows) - read, took, moved, tokens_prefilled=read)

    def _require_own(self, fuser: Translator | Enricher, layers: int) -> None:
        if self.own is None:
            return
        if isinstance(fuser, Enricher):
            raise UsageError(
                f"The fuser '{self.variant}' changes the receiver's own columns, in layers of its own choice.",
                f"Leave ':own={self.own}' out.",
            )
        if count(NAME, self.own, 0, sign=":own=") > layers:
            raise UsageError(
                f"The receiver cannot keep its own columns in {self.own} of {layers} layers.",
                f"Write own=0 to own={layers}.",
            )

    @torch.inference_mode()
    def _translated(
        self, rows: Float[Tensor, "columns sender"], reading: Reading, receiver: Party, took: dict[str, float]
    ) -> tuple[KVCache, int]:
        fuser, spec = self.fuser, receiver.engine.spec
        assert isinstance(fuser, Translator)  # noqa: S101 - told apart in `deliver`
        with stopwatch(took, "transform"):
            message = fuser.encode(rows).to(DTYPES[self.codec])
        with stopwatch(took, "inject"):
            columns = fuser.decode(message.to(torch.float32))
            steps = (*reading.cache.manifest.lineage, Step("fuse", {"fuser": self.variant, "kind": fuser.kind}))
            past = place_behind(receiver.prefix, as_cache(columns, spec, steps, reading.reader.name))
            if self.own is not None:
                past = late(past, _own(reading, receiver), count(NAME, self.own, 0, sign=":own="))
        return past, message.nbytes

    @torch.inference_mode()
    def _enriched(
        self, rows: Float[Tensor, "columns sender"], reading: Reading, receiver: Party, took: dict[str, float]
    ) -> tuple[KVCache, int]:
        fuser = self.fuser
        assert isinstance(fuser, Enricher)  # noqa: S101 - told apart in `deliver`
        sent = rows.to(DTYPES[self.codec])
        with stopwatch(took, "inject"):
            own = _own(reading, receiver)
            segment = own.slice(receiver.prefix.columns, own.columns)
            layers = fuser.enrich(sent.to(torch.float32), segment)
            fused = segment.rebuilt(
                Step("fuse", {"fuser": self.variant, "kind": fuser.kind}), lambda layer: layers[layer.index]
            )
            past = receiver.prefix.concat(fused)
        return past, sent.nbytes


def sent_rows(reading: Reading, receiver: Engine) -> Float[Tensor, "columns sender"]:
    """Return a reading's content columns, position-free, pooled to the tokens the receiver would read.

    Raises:
        UsageError: If tokens cannot be located in the text, or do not align.
    """
    sender, text = reading.reader.engine, reading.source
    spans = located(sender, NAME).located(text), located(receiver, NAME).located(text)
    return by_spans(*spans).pool(as_rows(content_columns(reading.cache)))


def late(fused: KVCache, own: KVCache, layers: int) -> KVCache:
    """Return the receiver's own columns in the first layers, fused ones in the others."""

    def chosen(layer: KVLayer) -> tuple[Tensor, Tensor, Tensor]:
        taken = own.layers[layer.index] if layer.index < layers else layer
        return taken.keys, taken.values, taken.positions

    return fused.rebuilt(Step("late", {"layers": layers}), chosen)


def _own(reading: Reading, receiver: Party) -> KVCache:
    return receiver.engine.prefill(content(receiver, reading.source), receiver.prefix)
