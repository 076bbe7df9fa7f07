"""What a hand-over is: its two ends, its cost, and what the receiver holds afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from unspoken.cache import KVCache
from unspoken.engines.protocol import Engine, Frame, Prompt
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
        lossy: Whether the receiver holds something else than its own reading of the source would give.
        lineage: What was done to the columns.
        message: The text, where text was sent.
        peak_rss_bytes: The process's highest resident memory so far, when the delivery was made.
        past: What the receiver starts from.
        prompt: What it must still read before the question.
    """

    channel: str
    bytes_moved: int
    tokens_prefilled: int
    tokens_skipped: int
    seconds: Stages
    lossy: bool
    lineage: tuple[Step, ...] = ()
    message: str | None = None
    peak_rss_bytes: int = 0
    past: KVCache | None = field(default=None, repr=False)
    prompt: Prompt = field(default=Prompt(()), repr=False)


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
class Reading:
    """What a sender has read: the source and the cache it has of it.

    Attributes:
        reader: Who read.
        source: The text.
        cache: Prefix and content, at the reader's own positions.
        seconds: What reading took.
    """

    reader: Party
    source: str
    cache: KVCache = field(repr=False)
    seconds: float


@dataclass(frozen=True)
class Request:
    """One question that will be asked about one reading."""

    reading: Reading
    question: str


@runtime_checkable
class Channel(Protocol):
    """A way of handing over. Built from JSON-able options; `send` does it."""

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand over what was read, with one delivery for each request.

        Only channels named `asked` may look at the questions. Requests about one reading may share
        one delivery: the work is then done once. Work for several readings may be done in one batch;
        its time is then shared evenly.
        """
        ...


def once_per_reading(
    requests: Sequence[Request], deliver: Callable[[Sequence[Reading]], Sequence[Delivery]]
) -> tuple[Delivery, ...]:
    """Return a delivery for each request, made once for each distinct reading."""
    readings = {id(request.reading): request.reading for request in requests}
    made = dict(zip(readings, deliver(list(readings.values())), strict=True))
    return tuple(made[id(request.reading)] for request in requests)


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time of the block to a stage."""
    began = time.perf_counter()
    yield
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


def parse_channel(text: str) -> tuple[str, dict[str, Any]]:
    """Read a channel name with options: `text@32`, `kv`, `kv+float32`.

    `@N` is the channel's amount (tokens of a message), `+NAME` the element type on the wire.
    """
    rest, plus, codec = text.partition("+")
    name, at, amount = rest.partition("@")
    if (plus and not codec) or (at and not amount):
        raise UsageError(
            f"The channel '{text}' ends where an option should follow.", "Write text@32, kv or kv+float32."
        )
    options: dict[str, Any] = {}
    if amount:
        options["amount"] = amount
    if codec:
        options["dtype"] = codec
    return name, options


def build_channel(text: str) -> Channel:
    """Return the channel of a name with options.

    Raises:
        UsageError: If the name is unknown or does not take the options.
    """
    from unspoken.channels import CHANNELS

    name, options = parse_channel(text)
    kind = CHANNELS.load(name)
    try:
        channel: Channel = kind(**options)
    except TypeError as error:
        raise UsageError(
            f"The channel '{name}' does not take the options of '{text}'.", "Write text@32, kv or kv+float32."
        ) from error
    return channel
