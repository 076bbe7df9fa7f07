"""One reading, many receivers: the report is read once, three agents with their own cards answer from it.

    python examples/fan_out.py

A cache is immutable, so a fork of it costs nothing: no receiver sees another's columns, and the questions of one
receiver are answered in one batch on the same columns.
"""

from __future__ import annotations

from pathlib import Path

from unspoken import Agent, load_model
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Request
from unspoken.engines.protocol import Limits

CARDS = Path(__file__).resolve().parent.parent / "data" / "agents"
REPORT = (
    "The upper farm is home to a goat and sells milk. Nobody complained about the new opening hours. "
    "The quiet chapel is run by Maria. The wooden tower is painted white and is closed on Sunday."
)
QUESTIONS = ("Which animal lives at the upper farm?", "Who runs the quiet chapel?")


def main() -> None:
    """Let Lyra read once and three agents answer the same questions."""
    model = load_model("smollm2-135m")
    reading = Agent.from_card(CARDS / "lyra.yaml", model).read(REPORT)
    channel = build_channel("kv")
    print(f"lyra read {reading.cache.span('content').columns} tokens, once")
    receivers = [Agent.from_card(CARDS / f"{name}.yaml", model) for name in ("vera", "cc")]
    for receiver in (*receivers, Agent("ada", model, "You are Ada. You answer in as few words as you can.")):
        # One delivery per reading: both questions fork the same columns, placed behind this receiver's own card.
        deliveries = channel.send([Request((reading,), question) for question in QUESTIONS], receiver)
        replies = receiver.answer(QUESTIONS, deliveries, Limits(16, (".", "\n")))
        print(f"{receiver.name} ({receiver.prefix.columns} columns of its own before the report)")
        for question, reply in zip(QUESTIONS, replies, strict=True):
            print(f"  {question} {reply.text}")


if __name__ == "__main__":
    main()
