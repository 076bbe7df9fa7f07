"""Ways to tell which of a sender's content columns matter: plug-ins of the channel `need`."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.channels.compose import token_ids
from unspoken.channels.kv import content_columns
from unspoken.channels.protocol import Party, Reading
from unspoken.channels.text import content
from unspoken.engines.capabilities import attentive
from unspoken.engines.protocol import Limits, Piece, Prompt, Turn
from unspoken.registry import Registry

SCORERS = Registry(
    "scorer",
    "unspoken.scorers",
    {
        "attention": "unspoken.channels.scorers:Attention",
        "value-norm": "unspoken.channels.scorers:ValueNorm",
        "random": "unspoken.channels.scorers:Random",
        "recency": "unspoken.channels.scorers:Recency",
    },
)
# What the sender asks itself, in the receiver's stead, to see what it looks at.
BRIEFLY = " Answer briefly."
PROBE = "\n\n{question}" + BRIEFLY
STEM = "Answer:"
PROBE_TOKENS = 8
# The same question in another share or codec is not worth another reading; gone with the reading itself.
_SCORED: WeakKeyDictionary[Reading, dict[str, Tensor]] = WeakKeyDictionary()
_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"')\]\u201d\u2019]*$")


class Need(NamedTuple):
    """What a receiver wants to know of what a sender has read."""

    reading: Reading
    question: str


@runtime_checkable
class Scorer(Protocol):
    """Says how much each content column matters for a need, in each layer.

    Attributes:
        sentences: Whether its scores are good enough to keep whole sentences by.
    """

    sentences: bool

    def scores(self, needs: Sequence[Need]) -> list[Float[Tensor, "layers columns"]]:
        """Return scores for each need: higher is kept first, and all are finite."""
        ...


class Attention:
    """How much the sender attends to a column while it reads the question and answers it for itself.

    Half of a score is the attention of the question's tokens, half that of the tokens that make a short answer of the
    sender's own: question words alone look for themselves, an answer looks where it is. Both are shares of what goes
    to content, averaged over heads. (RASC takes the question's last tokens only; CacheBack, arXiv 2609.32046, moves
    the choice to the sender.)
    """

    sentences = True

    def scores(self, needs: Sequence[Need]) -> list[Float[Tensor, "layers columns"]]:
        """Let each sender answer, all in one batch, and look at what it attended to; what was asked before is kept."""
        unknown = {
            (id(reading), question): Need(reading, question)
            for reading, question in needs
            if question not in _SCORED.get(reading, {})
        }
        if unknown:
            fresh = list(unknown.values())
            for (reading, question), made in zip(fresh, self._made(fresh), strict=True):
                _SCORED.setdefault(reading, {})[question] = made
        return [_SCORED[reading][question] for reading, question in needs]

    def _made(self, needs: Sequence[Need]) -> list[Float[Tensor, "layers columns"]]:
        turns = [Turn(_probe(reading.reader, question), reading.cache) for reading, question in needs]
        engine = needs[0].reading.reader.engine
        shown = attentive(engine, "need")
        answers = engine.generate(turns, Limits(PROBE_TOKENS, (".", "\n")))
        made = []
        for turn, answer, need in zip(turns, answers, needs, strict=True):
            asked, cache = len(turn.prompt.pieces[0].token_ids), need.reading.cache
            whole = turn.prompt + Prompt((Piece("template", answer.token_ids),))
            weights = shown.attention(whole, cache, len(whole.token_ids))
            content_at = _content(need.reading)
            answering = len(turn.prompt.token_ids) - 1
            made.append(
                torch.stack(
                    [
                        (_share(layer[:, 1:asked, content_at]) + _share(layer[:, answering:, content_at])) / 2
                        for layer in weights
                    ]
                )
            )
        return made


class ValueNorm:
    """How long a column's values are, averaged over heads; knows nothing of the need."""

    sentences = False

    def scores(self, needs: Sequence[Need]) -> list[Float[Tensor, "layers columns"]]:
        """Return the norms."""
        return [
            torch.stack([layer.values.float().norm(dim=-1).mean(0) for layer in content_columns(reading.cache).layers])
            for reading, _ in needs
        ]


class Random:
    """Any columns, the same in all layers and for the same source and question."""

    sentences = False

    def scores(self, needs: Sequence[Need]) -> list[Float[Tensor, "layers columns"]]:
        """Draw scores."""
        made = []
        for reading, question in needs:
            seed = zlib.crc32(f"{reading.source}\0{question}".encode())
            drawn = torch.rand(_columns(reading), generator=torch.Generator().manual_seed(seed))
            made.append(drawn.expand(len(reading.cache.layers), -1))
        return made


class Recency:
    """The last columns."""

    sentences = False

    def scores(self, needs: Sequence[Need]) -> list[Float[Tensor, "layers columns"]]:
        """Return each column's place."""
        return [torch.arange(_columns(each)).float().expand(len(each.cache.layers), -1) for each, _ in needs]


def sentence_of(reading: Reading) -> Int[Tensor, " columns"]:
    """Return the number of the sentence that each content column belongs to."""
    ids = token_ids(reading.cache.span("content"))
    spelt = [reading.reader.engine.decode([token]) for token in ids]
    number, numbers = 0, []
    for text, following in zip(spelt, [*spelt[1:], " "], strict=True):
        numbers.append(number)
        ended = bool(_END.search(text.strip())) and following.startswith(" ")
        number += ended or "\n" in text
    return torch.tensor(numbers)


def _probe(reader: Party, question: str) -> Prompt:
    """Return the question as the end of a reader's turn, and the head of its answer."""
    stem = Prompt((Piece("template", reader.engine.encode(STEM)),))
    # The receiver may have asked for brevity itself.
    asked = question.strip().removesuffix(BRIEFLY)
    return content(reader, PROBE.format(question=asked)) + reader.frame.after + stem


def _share(weights: Float[Tensor, "heads probes columns"]) -> Float[Tensor, " columns"]:
    """Return the mean over heads of each column's share of what goes to content."""
    by_head = weights.mean(dim=1)
    return (by_head / by_head.sum(dim=-1, keepdim=True).clamp(min=1e-9)).mean(dim=0)


def _content(reading: Reading) -> slice:
    (span,) = [span for span in reading.cache.manifest.spans if span.kind == "content"]
    return slice(span.start, span.stop)


def _columns(reading: Reading) -> int:
    where = _content(reading)
    return int(where.stop - where.start)
