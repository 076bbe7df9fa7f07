"""Text channels: nothing, the whole source, or a message the sender writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from unspoken.channels.names import count, labelled
from unspoken.channels.protocol import (
    Delivery,
    Party,
    Reading,
    Readings,
    Request,
    Stages,
    once_per_source,
    peak_rss_bytes,
    stopwatch,
)
from unspoken.engines.protocol import Generation, Limits, Piece, Prompt, Turn

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

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Write one message per reading, all in one batch; the receiver reads those about one question in order."""
        return once_per_source(requests, lambda sources: self._deliver(sources, receiver))

    def _deliver(self, sources: Sequence[Readings], receiver: Party) -> list[Delivery]:
        took: dict[str, float] = {}
        asked = [(reading, WRITE) for readings in sources for reading in readings]
        with stopwatch(took, "transform"):
            messages = iter(_written(asked, _cap(self.name, self.amount)))
        share, name = took["transform"] / len(asked), labelled(self.name, amount=self.amount)
        return [
            read_by(
                receiver,
                [APART.join(next(messages).text for _ in readings)],
                name,
                {"capture": sum(each.seconds for each in readings), "transform": share * len(readings)},
                lossy=True,
            )
            for readings in sources
        ]


@dataclass(frozen=True)
class TextAsked:
    """The sender knows the question and writes a message for it."""

    amount: int | str | None = None
    name: ClassVar[str] = "text-asked"

    def __post_init__(self) -> None:
        _cap(self.name, self.amount)

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Write messages for each question, all in one batch; the receiver reads them with the question."""
        took: dict[str, float] = {}
        asked = [
            (reading, WRITE_ASKED.format(question=request.question))
            for request in requests
            for reading in request.readings
        ]
        with stopwatch(took, "transform"):
            messages = iter(_written(asked, _cap(self.name, self.amount)))
        share = took["transform"] / len(asked)
        return tuple(
            self._delivery(request.readings, [next(messages).text for _ in request.readings], receiver, share)
            for request in requests
        )

    def _delivery(self, readings: Readings, messages: Sequence[str], receiver: Party, seconds: float) -> Delivery:
        message = APART.join(messages)
        return Delivery(
            channel=labelled(self.name, amount=self.amount),
            bytes_moved=len(message.encode()),
            tokens_prefilled=0,
            tokens_skipped=0,
            seconds=Stages(capture=sum(each.seconds for each in readings), transform=seconds * len(readings)),
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


def _written(requests: Sequence[tuple[Reading, str]], cap: int) -> tuple[Generation, ...]:
    """Let the senders write, each on top of what it has read; all of them run on one engine."""
    turns = [
        Turn(content(reading.reader, text) + reading.reader.frame.after, reading.cache) for reading, text in requests
    ]
    return requests[0][0].reader.engine.generate(turns, Limits(new_tokens=cap))
