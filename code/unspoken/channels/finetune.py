"""Hand over between fine-tunes of one model, whose weights differ (DroidSpeak, arXiv 2411.02820).

Most layers' columns of a fine-tune serve its sister well; a few do not. The receiver computes those itself, from the
residuals that entered the first of them at the sender's, and takes the other layers' columns as they come.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.channels.compose import TOKEN_BYTES, token_ids
from unspoken.channels.kv import WIRE, arrived, called, content_columns, measured_for, position_bytes
from unspoken.channels.protocol import Delivery, Party, Reading, Request, once_per_source, only, stopwatch
from unspoken.engines.capabilities import layered
from unspoken.engines.gate import require_pair
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.manifest import Step, compare
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.place import place_behind


@dataclass(frozen=True)
class FineTune:
    """The sender's content columns, with one group of layers computed anew by the receiver.

    Args:
        variant: The layers computed anew, first and last: `10-19`. None computes none. From layer 0 on, tokens travel
            instead of residuals, and all layers together are the receiver's own reading.
        codec: How columns are coded on the wire.

    Raises:
        UsageError: If these are no layers.
    """

    variant: str | None = None
    codec: str = WIRE
    name: ClassVar[str] = "finetune"

    def __post_init__(self) -> None:
        codec_named(self.codec)
        self._group()

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand each reading over once; the questions fork the result."""
        return once_per_source(
            requests, lambda sources: [self._delivery(only(each, self.name), receiver) for each in sources]
        )

    def _delivery(self, reading: Reading, receiver: Party) -> Delivery:
        require_sister(reading, receiver)
        group, codec, took = self._group(), codec_named(self.codec), {"capture": reading.seconds}
        layers = receiver.engine.spec.layers
        if group.stop > layers:
            raise UsageError(
                f"There is no layer {group.stop - 1} among {layers}.", f"Layers go from 0 to {layers - 1}."
            )
        if group:
            layered(receiver.engine, self.name)
        with stopwatch(took, "transform"):
            packed = codec.pack(content_columns(reading.cache))
            residuals = entering(reading, group.start).to(torch.bfloat16) if group.start and group else None
        with stopwatch(took, "inject"):
            segment = codec.unpack(packed)
            past = recomputed(
                adopted(segment, receiver), group, residuals, token_ids(segment) if group else (), receiver
            )
        # The layers computed anew need not travel; where they start from does.
        saved = sum(layer.bytes_held() for layer in segment.layers if layer.index in group) / segment.bytes_held()
        moved = round(packed.bytes_held() * (1 - saved)) + position_bytes(segment)
        if group:
            moved += TOKEN_BYTES * segment.columns if residuals is None else residuals.nbytes
        name = called(self.name, self.codec, variant=self.variant)
        return arrived(name, past, segment.columns, took, moved, recomputed=len(group) / layers)

    def _group(self) -> range:
        if self.variant is None:
            return range(0)
        found = re.fullmatch(r"([0-9]{1,6})-([0-9]{1,6})", self.variant)
        if found is None or int(found[1]) > int(found[2]):
            raise UsageError(f"'{self.variant}' are no layers.", "Write finetune:10-19, first and last.")
        return range(int(found[1]), int(found[2]) + 1)


def require_sister(reading: Reading, receiver: Party) -> None:
    """Refuse a cache of a model that differs in more than the values of its weights, or of an engine not measured.

    Between two engines other weights cannot be told from another order of coordinates: such a pair has to be known
    from caches of the receiver's own weights.

    Raises:
        IncompatibleCache: With every other difference.
        GateFailed: If another engine made the columns, and the pair is not known to pass.
    """
    cache = reading.cache
    fatal = [each for each in compare(cache.spec, receiver.engine.spec) if each.severity == "fatal"]
    others = [each for each in fatal if each.field != "weights"]
    if others:
        listed = "; ".join(f"{each.field} is {each.found}, the model has {each.expected}" for each in others)
        raise IncompatibleCache(
            f"'{cache.spec.name}' is no fine-tune of the same model as '{receiver.engine.spec.name}': {listed}.",
            "Use text between different models.",
        )
    if not fatal:
        measured_for(reading, receiver)
    for engine in cache.manifest.engines():
        require_pair(engine, receiver.engine)


def entering(reading: Reading, layer: int) -> Float[Tensor, "content hidden"]:
    """Return the residuals of a reading's content as they enter a layer of the sender."""
    engine, cache = layered(reading.reader.engine, FineTune.name), reading.cache
    (span,) = [span for span in cache.manifest.spans if span.kind == "content"]
    at = torch.arange(span.start, span.stop)
    ids = token_ids(cache)[span.start : span.stop]
    residuals, _ = engine.through(engine.embed(ids), cache.layers[:layer], at, cache.positions[at].long())
    return residuals


def adopted(segment: KVCache, receiver: Party) -> KVCache:
    """Return a sister's columns behind the receiver's prefix, as columns of the receiver's model."""
    steps = (*segment.manifest.lineage, Step("finetune", {"weights": segment.spec.weights}))
    manifest = msgspec.structs.replace(segment.manifest, spec=receiver.engine.spec, lineage=steps)
    return place_behind(receiver.prefix, KVCache(segment.layers, manifest))


def recomputed(
    past: KVCache,
    group: range,
    residuals: Float[Tensor, "content hidden"] | None,
    ids: Sequence[int],
    receiver: Party,
) -> KVCache:
    """Return columns with a group of layers computed by the receiver's weights.

    Args:
        past: The receiver's prefix and the sister's columns.
        group: Neighbouring layers; if empty, nothing is computed.
        residuals: What enters the first of them; None for the receiver's own embeddings of the tokens.
        ids: The tokens.
        receiver: Whose weights they are.
    """
    if not group:
        return past
    engine = layered(receiver.engine, FineTune.name)
    start = engine.embed(ids) if residuals is None else residuals.to(engine.embeddings().dtype)
    at = torch.arange(receiver.prefix.columns, past.columns)
    _, made = engine.through(start, [past.layers[index] for index in group], at, past.positions[at].long())
    anew = {layer.index: layer for layer in made}
    return past.rebuilt(
        Step("recompute", {"layers": [group.start, group.stop - 1]}),
        lambda layer: (
            anew.get(layer.index, layer).keys,
            anew.get(layer.index, layer).values,
            layer.positions,
        ),
    )
