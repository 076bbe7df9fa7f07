"""What the fake engine can be told and asked, and what it then says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unspoken.channels.protocol import Delivery
    from unspoken.session import Agent, Reply

SOURCE = "The old mill is run by Anna. The new mill is run by Bob. It was a calm week."
QUESTION = "Who runs the new mill?"


def answered(receiver: Agent, delivery: Delivery) -> Reply:
    """Return what the receiver says to the question, having got this."""
    from unspoken.engines.protocol import Limits

    (reply,) = receiver.answer([QUESTION], [delivery], Limits())
    return reply
