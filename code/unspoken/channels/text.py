"""Text channels: nothing, the whole source, or a message the sender writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from unspoken.channels.protocol import (
    Delivery,
    Party,
    Reading,
    Request,
    Stages,
    once_per_reading,
    peak_rss_bytes,
    stopwatch,
)
from unspoken.engines.protocol import Generation, Limits, Piece, Prompt, Turn
from unspoken.errors import UsageError

# A message with no cap still has to end: long enough for any source the tasks use, far from the context's end.
UNCAPPED_TOKENS = 192
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
        """Hand over the source."""
        return once_per_reading(
            requests,
            lambda readings: [read_by(receiver, each.source, "full-text", {}, lossy=False) for each in readings],
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
        checked_amount(self.name, self.amount)

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Write one message per reading, all in one batch; the receiver reads each once."""
        return once_per_reading(requests, lambda readings: self._deliver(readings, receiver))

    def _deliver(self, readings: Sequence[Reading], receiver: Party) -> list[Delivery]:
        cap = checked_amount(self.name, self.amount)
        took: dict[str, float] = {}
        with stopwatch(took, "transform"):
            messages = _written([(reading, WRITE) for reading in readings], cap)
        share = took["transform"] / len(readings)
        return [
            read_by(
                receiver,
                message.text,
                labelled(self.name, self.amount),
                {"capture": reading.seconds, "transform": share},
                lossy=True,
            )
            for reading, message in zip(readings, messages, strict=True)
        ]


@dataclass(frozen=True)
class TextAsked:
    """The sender knows the question and writes a message for it."""

    amount: int | str | None = None
    name: ClassVar[str] = "text-asked"

    def __post_init__(self) -> None:
        checked_amount(self.name, self.amount)

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Write one message per question, all in one batch; the receiver reads it with the question."""
        cap = checked_amount(self.name, self.amount)
        took: dict[str, float] = {}
        with stopwatch(took, "transform"):
            asked = [(each.reading, WRITE_ASKED.format(question=each.question)) for each in requests]
            messages = _written(asked, cap)
        share = took["transform"] / len(requests)
        return tuple(
            self._delivery(request.reading, message, receiver, share)
            for request, message in zip(requests, messages, strict=True)
        )

    def _delivery(self, reading: Reading, message: Generation, receiver: Party, seconds: float) -> Delivery:
        return Delivery(
            channel=labelled(self.name, self.amount),
            bytes_moved=len(message.text.encode()),
            tokens_prefilled=0,
            tokens_skipped=0,
            seconds=Stages(capture=reading.seconds, transform=seconds),
            lossy=True,
            message=message.text,
            peak_rss_bytes=peak_rss_bytes(),
            past=receiver.prefix,
            prompt=content(receiver, message.text),
        )


def content(party: Party, text: str) -> Prompt:
    """Return a text as content tokens of a party's model."""
    return Prompt((Piece("content", party.engine.encode(text)),))


def read_by(receiver: Party, text: str, channel: str, seconds: dict[str, float], *, lossy: bool) -> Delivery:
    """Let the receiver read a text and return the delivery that leaves it there."""
    return read_tokens(receiver, content(receiver, text), channel, seconds, message=text, lossy=lossy)


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


def labelled(name: str, amount: int | str | None) -> str:
    """Return a channel's name with its amount, as it is written in experiments."""
    return name if amount is None else f"{name}@{amount}"


def checked_amount(name: str, amount: int | str | None) -> int:
    """Return the cap of a message in tokens.

    Raises:
        UsageError: If it is not a whole number of at least 1.
    """
    if amount is None:
        return UNCAPPED_TOKENS
    if not str(amount).isdigit() or int(amount) < 1:
        raise UsageError(f"A message of '{amount}' tokens cannot be written.", f"Write {name}@N with N of 1 or more.")
    return int(amount)


def _written(requests: Sequence[tuple[Reading, str]], cap: int) -> tuple[Generation, ...]:
    """Let the senders write, each on top of what it has read; all of them run on one engine."""
    turns = [
        Turn(content(reading.reader, text) + reading.reader.frame.after, reading.cache) for reading, text in requests
    ]
    return requests[0][0].reader.engine.generate(turns, Limits(new_tokens=cap))
