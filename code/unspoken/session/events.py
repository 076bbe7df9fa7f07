"""What happened in a session, as plain data: enough to tell it, and to do it again without asking the models."""

from __future__ import annotations

import msgspec


class Passage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that was said once, whoever gets to know it afterwards.

    Attributes:
        name: Its name, the same in every fork of the session that has it: "3:lyra".
        speaker: "user", or the agent that said it.
        hearer: The agent it was said to; None for an agent's answer.
        text: The words.
    """

    name: str
    speaker: str
    hearer: str | None
    text: str

    def heading(self) -> str:
        """Return the words that stand before it when it is handed on, so that who said it is known."""
        return f"{self.speaker} said: " if self.hearer is None else f"{self.hearer} was told: "


class Read(msgspec.Struct, frozen=True, tag="read", tag_field="event", forbid_unknown_fields=True):
    """An agent has read a document."""

    agent: str
    source: str


class Asked(msgspec.Struct, frozen=True, tag="asked", tag_field="event", forbid_unknown_fields=True):
    """An agent was asked, once, about documents that others have read, and has answered."""

    agent: str
    question: str
    senders: tuple[str, ...]
    answer: str


class Said(msgspec.Struct, frozen=True, tag="said", tag_field="event", forbid_unknown_fields=True):
    """The user has said something to an agent; with it an exchange begins."""

    passage: Passage


class HandedOver(msgspec.Struct, frozen=True, tag="handed over", tag_field="event", forbid_unknown_fields=True):
    """An agent has handed on what another did not know.

    Attributes:
        sender, receiver: The agents.
        channel: How.
        passages: Names of what was handed on, in order.
        bytes_moved: Payload.
        tokens_prefilled: Tokens the receiver read for it.
        tokens_skipped: Tokens it did not have to read, as their columns came.
        seconds: From beginning to end.
        messages: For each delivery, the text that was sent; None where columns were.
        recognised: The agent whose columns these look like; None for nobody known, or where nobody looked.
    """

    sender: str
    receiver: str
    channel: str
    passages: tuple[str, ...]
    bytes_moved: int
    tokens_prefilled: int
    tokens_skipped: int
    seconds: float
    messages: tuple[str | None, ...]
    recognised: str | None = None


class Replied(msgspec.Struct, frozen=True, tag="replied", tag_field="event", forbid_unknown_fields=True):
    """An agent has answered; with it an exchange ends.

    Attributes:
        passage: What it said.
        token_ids: The tokens of it.
        tokens_prefilled: Tokens it read for it, what it was told included.
        seconds_first_token: Until the first token, from when everything had been handed over.
        seconds: Until the last.
    """

    passage: Passage
    token_ids: tuple[int, ...]
    tokens_prefilled: int
    seconds_first_token: float
    seconds: float


class Rejoined(msgspec.Struct, frozen=True, tag="rejoined", tag_field="event", forbid_unknown_fields=True):
    """What happened in a fork of the session has been taken in.

    Attributes:
        branch: What the names of the fork's passages begin with.
        channel: How each agent got what its other self had learnt.
        common: How many events at the beginning are the same in both.
        events: What happened in the fork after them.
        handed: What moved.
    """

    branch: str
    channel: str
    common: int
    events: tuple[Event, ...]
    handed: tuple[HandedOver, ...]


Event = Read | Asked | Said | HandedOver | Replied | Rejoined
