"""Send only what is needed: the receiver tells its question, the sender keeps the columns its own attention marks.

The question is a few dozen bytes on the way there; the columns that do not come back are what is saved. It is the
choice of RASC (a study on KVComm's setting) made by the sender, as in CacheBack (arXiv 2609.32046).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.channels.kv import WIRE, called, inserted
from unspoken.channels.names import count, share
from unspoken.channels.protocol import Delivery, Party, Reading, Request, stopwatch
from unspoken.channels.scorers import SCORERS, Scorer, sentence_of
from unspoken.channels.scorers import Need as Wanted
from unspoken.errors import UsageError
from unspoken.manifest import Step
from unspoken.transforms.backfill import backfilled
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.select import keep

SHARE = 0.3
# Layers whose attention tells where something is said, as shares of the depth (measured, docs/log.md).
TELLING = (0.33, 0.9)
# Written side by side in one language.
ONE_SCRIPT = ("CJK", "HIRAGANA", "KATAKANA")


@dataclass(frozen=True)
class Need:
    """The share of content columns that matters for the question.

    Args:
        amount: Share of the columns of each layer.
        variant: The scorer: `attention`, `value-norm`, `random`, `recency`, or one that is plugged in.
        backfill: Directions of the values left out that are added to those kept; 0 adds none.
        codec: How columns are coded on the wire.

    Raises:
        UsageError: If an option is none of these.
    """

    amount: float | int | str | None = None
    variant: str = "attention"
    backfill: int | str = 0
    codec: str = WIRE
    name: ClassVar[str] = "need"

    def __post_init__(self) -> None:
        codec_named(self.codec)
        share(self.name, self.amount, SHARE)
        self._directions()
        SCORERS.load(self.variant)

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Choose for each question, all in one batch; each gets a delivery of its own.

        Raises:
            UsageError: If a question is empty or in another script than its source, or no column would be kept.
        """
        needs = [Wanted(reading, request.question) for request in requests for reading in request.readings]
        for reading, question in needs:
            require_sensible(question, reading.source)
        scorer: Scorer = SCORERS.load(self.variant)()
        took: dict[str, float] = {}
        with stopwatch(took, "transform"):
            scored = iter(scorer.scores(needs))
        seconds = took["transform"] / len(needs)
        return tuple(
            self._delivery(request, receiver, scorer, [next(scored) for _ in request.readings], seconds)
            for request in requests
        )

    def _delivery(
        self,
        request: Request,
        receiver: Party,
        scorer: Scorer,
        scores: Sequence[Float[Tensor, "layers _"]],
        seconds: float,
    ) -> Delivery:
        by_reading = {id(reading): each for reading, each in zip(request.readings, scores, strict=True)}

        def change(reading: Reading, segment: KVCache) -> KVCache:
            sentences = sentence_of(reading) if scorer.sentences else None
            return self._selected(segment, by_reading[id(reading)], sentences)

        variant = None if self.variant == "attention" else self.variant
        name = called(self.name, self.codec, variant=variant, amount=self.amount, backfill=self._directions() or None)
        made = inserted(name, request.readings, receiver, codec_named(self.codec), change)
        return made.costing(seconds * len(request.readings), len(request.question.encode()))

    def _selected(
        self, segment: KVCache, scores: Float[Tensor, "layers columns"], sentences: Int[Tensor, " columns"] | None
    ) -> KVCache:
        part = share(self.name, self.amount, SHARE)
        columns = chosen(scores, part, sentences)
        step = Step("select.need", {"scorer": self.variant, "share": part, "kept": len(columns[0])})
        kept = keep(segment, columns, step)
        directions = self._directions()
        if not directions:
            return kept
        layers = []
        for layer, whole, at, score in zip(kept.layers, segment.layers, columns, scores, strict=True):
            mask = torch.zeros(whole.columns, dtype=torch.bool).index_fill_(0, at, True)
            values = backfilled(whole.values, mask, score, directions)
            layers.append(KVLayer(layer.index, layer.keys, values, layer.positions, layer.kind))
        filled = {layer.index: layer.values for layer in layers}
        return kept.rebuilt(
            Step("backfill", {"directions": directions}),
            lambda layer: (layer.keys, filled[layer.index], layer.positions),
        )

    def _directions(self) -> int:
        return count(f"{self.name}:backfill", self.backfill, 0, sign="=")


def chosen(
    scores: Float[Tensor, "layers columns"], part: float, sentences: Int[Tensor, " columns"] | None
) -> list[Int[Tensor, " kept"]]:
    """Return the columns to keep in each layer, in order: as many in all layers.

    Args:
        scores: Of each column in each layer.
        part: Share of the columns.
        sentences: The sentence each column belongs to: whole sentences are then kept in all layers while they fit, best
            first, and the best columns of each layer after that. None keeps the best columns of each layer only.

    Raises:
        UsageError: If the share is too small for one column.
    """
    columns = scores.shape[1]
    many = int(part * columns + 1e-9)
    if many < 1:
        raise UsageError(
            f"A share of {part:g} of {columns} columns is none: nothing would be handed over.", "Give a larger share."
        )
    if sentences is not None:
        scores = scores.masked_fill(_whole_sentences(scores, many, sentences), torch.inf)
    return [each.topk(many).indices.sort().values for each in scores]


def _whole_sentences(
    scores: Float[Tensor, "layers columns"], most: int, sentences: Int[Tensor, " columns"]
) -> Bool[Tensor, " columns"]:
    """Return which columns belong to the sentences with the highest sums, best first, until one does not fit."""
    layers = len(scores)
    told = scores[int(TELLING[0] * layers) : max(int(TELLING[1] * layers), 1)].mean(dim=0)
    sums = torch.zeros(int(sentences.max()) + 1).index_add_(0, sentences, told)
    whole = torch.zeros(len(sentences), dtype=torch.bool)
    for number in sums.argsort(descending=True, stable=True).tolist():
        more = whole | (sentences == number)
        if int(more.sum()) > most:
            break
        whole = more
    return whole


def require_sensible(question: str, source: str) -> None:
    """Refuse a need that cannot mark anything in a source.

    Which language a few words are in cannot be told reliably; which script they are in can.

    Raises:
        UsageError: If it has no word, or is mostly in another script than the source.
    """
    asked, told = _script(question), _script(source)
    if asked is None:
        raise UsageError("The need is empty: there is no word in it.", "Ask a question about what was read.")
    if told is not None and asked != told:
        raise UsageError(
            f"The need is written in {asked.title()} letters, the source in {told.title()}: attention between them "
            "marks nothing reliably.",
            "Ask in the language of the source, or use the channel kv.",
        )


def _script(text: str) -> str | None:
    """Return the script most letters of a text belong to ("LATIN"); None if it has no letters."""
    names = Counter(unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha())
    if not names:
        return None
    most = names.most_common(1)[0][0]
    return "CJK" if most in ONE_SCRIPT else most
