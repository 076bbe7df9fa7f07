"""What a hand-over is: its two ends, its cost, and what the receiver holds afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from unspoken.cache import KVCache
from unspoken.engines.protocol import PLAIN, Engine, Frame, Onset, Prompt
from unspoken.errors import UsageError
from unspoken.manifest import Step


@dataclass(frozen=True)
class Stages:
    """Seconds of a hand-over by stage.

    Attributes:
        capture: The sender reads the source.
        transform: The sender makes the message: writes text, or selects, re-positions and casts columns.
        move: Bytes travel.
        inject: The receiver takes the message in: reads text, or joins columns to its own.
        first_token: The receiver reads the question and makes the first token.
        answer: The rest of the answer.
    """

    capture: float = 0.0
    transform: float = 0.0
    move: float = 0.0
    inject: float = 0.0
    first_token: float = 0.0
    answer: float = 0.0

    @property
    def total(self) -> float:
        """All stages together."""
        return self.capture + self.transform + self.move + self.inject + self.first_token + self.answer


@dataclass(frozen=True)
class Delivery:
    """What one hand-over cost and how it was made.

    Attributes:
        channel: The channel's name with its options.
        bytes_moved: Payload between the agents: UTF-8 text, or keys, values and positions.
        tokens_prefilled: Tokens the receiver read for it, the question included once it is asked.
        tokens_skipped: Tokens the receiver did not have to read because their columns came.
        seconds: By stage.
        recomputed: Share of the tokens that came as columns, times layers, that the receiver has read again.
        lossy: Whether the receiver holds something else than its own reading of the source would give.
        lineage: What was done to the columns.
        message: The text, where text was sent.
        peak_rss_bytes: The process's highest resident memory so far, when the delivery was made.
        past: What the receiver starts from.
        prompt: What it must still read before the question.
        onset: How it reads on from there.
    """

    channel: str
    bytes_moved: int
    tokens_prefilled: int
    tokens_skipped: int
    seconds: Stages
    lossy: bool
    recomputed: float = 0.0
    lineage: tuple[Step, ...] = ()
    message: str | None = None
    peak_rss_bytes: int = 0
    past: KVCache | None = field(default=None, repr=False)
    prompt: Prompt = field(default=Prompt(()), repr=False)
    onset: Onset = PLAIN

    def costing(self, transform_seconds: float, bytes_moved: int) -> Delivery:
        """Return the same delivery with more time of making the message, and more bytes, added to what it cost."""
        seconds = replace(self.seconds, transform=self.seconds.transform + transform_seconds)
        return replace(self, seconds=seconds, bytes_moved=self.bytes_moved + bytes_moved)


@runtime_checkable
class Party(Protocol):
    """One end of a hand-over: an agent, as far as a channel needs to know it."""

    @property
    def name(self) -> str:
        """The agent's name."""
        ...

    @property
    def engine(self) -> Engine:
        """The model it runs on."""
        ...

    @property
    def frame(self) -> Frame:
        """Its chat template with its card in place."""
        ...

    @property
    def prefix(self) -> KVCache:
        """The cache of everything that stands before a user's words."""
        ...


@dataclass(frozen=True)
class Draft:
    """A message that was written, token by token, so that the beginning of it is at hand.

    Attributes:
        token_ids: Its tokens.
        limit: Most tokens it could have had; one that has fewer came to its end.
        seconds: What writing it took.
    """

    token_ids: tuple[int, ...]
    limit: int
    seconds: float

    def reaches(self, tokens: int) -> bool:
        """Tell whether a message of at most so many tokens would be the beginning of this one."""
        return tokens <= self.limit or len(self.token_ids) < self.limit

    def cut(self, tokens: int) -> Draft:
        """Return the message as it is when at most so many tokens may be written, with its share of the time."""
        kept = self.token_ids[:tokens]
        return Draft(kept, tokens, self.seconds * len(kept) / max(1, len(self.token_ids)))


@dataclass(frozen=True)
class Reading:
    """What a sender has read: the source and the cache it has of it.

    Attributes:
        reader: Who read.
        source: The text.
        cache: Prefix and content, at the reader's own positions.
        seconds: What reading took.
        drafts: What the reader has written about it so far, by what it was told to write; writing takes the most
            probable token each time, so a shorter message is the beginning of a longer one and is not written again.
    """

    reader: Party
    source: str
    cache: KVCache = field(repr=False)
    seconds: float
    drafts: dict[str, Draft] = field(default_factory=dict, repr=False, compare=False)


Readings = tuple[Reading, ...]
"""What one or several senders have read, in the order in which the receiver gets it."""


@dataclass(frozen=True)
class Request:
    """One question that will be asked about what one or several senders have read."""

    readings: Readings
    question: str


@runtime_checkable
class Channel(Protocol):
    """A way of handing over. Built from JSON-able options; `send` does it."""

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand over what was read, with one delivery for each request.

        Only channels that say so (`text-asked`, `need`) may look at the questions. Requests about the same readings
        may share one delivery: the work is then done once. Work for several may be done in one batch; its time is
        then shared evenly.
        """
        ...


def once_per_source(
    requests: Sequence[Request], deliver: Callable[[Sequence[Readings]], Sequence[Delivery]]
) -> tuple[Delivery, ...]:
    """Return a delivery for each request, made once for all requests about the same readings."""
    distinct = {_identity(request.readings): request.readings for request in requests}
    made = dict(zip(distinct, deliver(list(distinct.values())), strict=True))
    return tuple(made[_identity(request.readings)] for request in requests)


def only(readings: Readings, channel: str) -> Reading:
    """Return the one reading of a channel that cannot take several.

    Raises:
        UsageError: If there are several.
    """
    if len(readings) != 1:
        raise UsageError(
            f"The channel '{channel}' takes what one sender has read, found {len(readings)} senders.",
            "Use compose, kv or text for several senders.",
        )
    return readings[0]


def _identity(readings: Readings) -> tuple[int, ...]:
    return tuple(id(reading) for reading in readings)


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time of the block to a stage, however it ends."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


def peak_rss_bytes() -> int:
    """Return the process's highest resident memory so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows has no such call.
        return 0
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
