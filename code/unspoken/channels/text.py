"""Text channels: nothing, the whole source, or a message the sender writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from unspoken.channels.names import count, labelled
from unspoken.channels.protocol import (
    Delivery,
    Draft,
    Party,
    Reading,
    Readings,
    Request,
    Stages,
    once_per_source,
    peak_rss_bytes,
    stopwatch,
)
from unspoken.engines.protocol import Limits, Piece, Prompt, Turn

# A message with no cap still has to end: long enough for any source the tasks use, far from the context's end.
UNCAPPED_TOKENS = 192
# Stands between the messages of several senders.
APART = "\n\n"
WRITE = (
    "\n\nA colleague who has not seen this text will be asked about it and can read only your message. "
    "Write down every fact it states, briefly, with all names."
)
WRITE_ASKED = (
    "\n\nA colleague who has not seen this text must answer this question: {question}\n"
    "Tell your colleague the answer in one sentence."
)


@dataclass(frozen=True)
class Nothing:
    """The receiver gets only the question."""

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand over nothing."""
        peak = peak_rss_bytes()
        nothing = Delivery("none", 0, 0, 0, Stages(), lossy=True, peak_rss_bytes=peak, past=receiver.prefix)
        return (nothing,) * len(requests)


@dataclass(frozen=True)
class FullText:
    """The receiver reads the whole source itself: what no message can be expected to beat."""

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand over the source, or all sources one after the other."""
        return once_per_source(
            requests,
            lambda sources: [
                read_by(receiver, [each.source for each in readings], "full-text", {}, lossy=False)
                for readings in sources
            ],
        )


@dataclass(frozen=True)
class Text:
    """The sender writes a message, not knowing the question; the receiver reads it.

    Args:
        amount: Most tokens of the message; None for no cap (`UNCAPPED_TOKENS`, in fact).
    """

    amount: int | str | None = None
    name: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        _cap(self.name, self.amount)

    @property
    def limit(self) -> int:
        """Most tokens of the message."""
        return _cap(self.name, self.amount)

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Write one message per reading, all in one batch; the receiver reads those about one question in order."""
        return once_per_source(requests, lambda sources: self._deliver(sources, receiver))

    def _deliver(self, sources: Sequence[Readings], receiver: Party) -> list[Delivery]:
        messages = iter(_written([(each, WRITE) for readings in sources for each in readings], self.limit))
        name = labelled(self.name, amount=self.amount)
        return [
            read_by(receiver, [message], name, {"capture": _reading(readings), "transform": seconds}, lossy=True)
            for readings in sources
            for message, seconds in [_joined(readings, [next(messages) for _ in readings])]
        ]


@dataclass(frozen=True)
class TextAsked:
    """The sender knows the question and writes a message for it."""

    amount: int | str | None = None
    name: ClassVar[str] = "text-asked"

    def __post_init__(self) -> None:
        _cap(self.name, self.amount)

    @property
    def limit(self) -> int:
        """Most tokens of the message."""
        return _cap(self.name, self.amount)

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Write messages for each question, all in one batch; the receiver reads them with the question."""
        asked = [
            (reading, WRITE_ASKED.format(question=request.question))
            for request in requests
            for reading in request.readings
        ]
        messages = iter(_written(asked, self.limit))
        return tuple(
            self._delivery(request.readings, [next(messages) for _ in request.readings], receiver)
            for request in requests
        )

    def _delivery(self, readings: Readings, messages: Sequence[Draft], receiver: Party) -> Delivery:
        message, seconds = _joined(readings, messages)
        return Delivery(
            channel=labelled(self.name, amount=self.amount),
            bytes_moved=len(message.encode()),
            tokens_prefilled=0,
            tokens_skipped=0,
            seconds=Stages(capture=_reading(readings), transform=seconds),
            lossy=True,
            message=message,
            peak_rss_bytes=peak_rss_bytes(),
            past=receiver.prefix,
            prompt=content(receiver, message),
        )


def content(party: Party, text: str) -> Prompt:
    """Return a text as content tokens of a party's model."""
    return Prompt((Piece("content", party.engine.encode(text)),))


def read_by(receiver: Party, texts: Sequence[str], channel: str, seconds: dict[str, float], *, lossy: bool) -> Delivery:
    """Let the receiver read texts, tokenised apart, and return the delivery that leaves it there."""
    prompt = sum((content(receiver, text) for text in texts), Prompt(()))
    return read_tokens(receiver, prompt, channel, seconds, message="".join(texts), lossy=lossy)


def read_tokens(
    receiver: Party, prompt: Prompt, channel: str, seconds: dict[str, float], *, message: str, lossy: bool
) -> Delivery:
    """Let the receiver read tokens and return the delivery that leaves it there."""
    past = receiver.prefix
    took = dict(seconds)
    with stopwatch(took, "inject"):
        if prompt.token_ids:
            past = receiver.engine.prefill(prompt, past)
    return Delivery(
        channel=channel,
        bytes_moved=len(message.encode()),
        tokens_prefilled=len(prompt.token_ids),
        tokens_skipped=0,
        seconds=Stages(**took),
        lossy=lossy,
        message=message,
        peak_rss_bytes=peak_rss_bytes(),
        past=past,
    )


def _cap(name: str, amount: int | str | None) -> int:
    return count(name, amount, UNCAPPED_TOKENS, least=1)


def _reading(readings: Readings) -> float:
    return sum(each.seconds for each in readings)


def _joined(readings: Readings, messages: Sequence[Draft]) -> tuple[str, float]:
    """Return the messages about what was read as one text, and the seconds they took to write."""
    told = [reading.reader.engine.decode(each.token_ids) for reading, each in zip(readings, messages, strict=True)]
    return APART.join(told), sum(each.seconds for each in messages)


def _written(requests: Sequence[tuple[Reading, str]], limit: int) -> list[Draft]:
    """Let the senders write, each on top of what it has read; all of them run on one engine.

    Who has written as much before writes nothing anew.
    """
    engine = requests[0][0].reader.engine
    missing = [
        (reading, told)
        for reading, told in requests
        if told not in reading.drafts or not reading.drafts[told].reaches(limit)
    ]
    turns = [Turn(content(each.reader, told) + each.reader.frame.after, each.cache) for each, told in missing]
    made = engine.generate(turns, Limits(new_tokens=limit)) if turns else ()
    for (reading, told), found in zip(missing, made, strict=True):
        reading.drafts[told] = Draft(found.token_ids, limit, found.seconds_total)
    return [reading.drafts[told].cut(limit) for reading, told in requests]
