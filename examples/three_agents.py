"""Two agents read a report each, a third answers from what both have understood and has seen neither.

    python examples/three_agents.py

Columns made apart have not seen each other. compose:align moves the second reader's behind the first's and leaves it
at that; compose:blend lets the receiver read the tokens again that differ most from what they would have been.
"""

from __future__ import annotations

from unspoken import Agent, Session, load_model

REPORTS = {
    "lyra": (
        "Notes from the harbour. The grand library is run by Peter and is painted green. The budget for next year is "
        "still open. The iron ferry is closed on Friday. "
    ),
    "cc": (
        "Notes from the hills. The quiet chapel is run by Maria. Nobody complained about the new opening hours. The "
        "wooden tower is painted white and is closed on Sunday."
    ),
}
QUESTIONS = ("Who runs the grand library?", "Who runs the quiet chapel?", "What colour is the wooden tower painted?")


def main() -> None:
    """Ask Vera about both reports in three ways, and print what each cost."""
    model = load_model("smollm2-135m")
    agents = [Agent(name, model) for name in ("lyra", "cc", "vera")]
    for channel in ("text@32", "compose:align+int8", "compose:blend@0.15+int8"):
        # One text for each sender, in the order in which the receiver gets them.
        talk = Session(*agents, channel=channel)
        replies = [talk.ask("vera", question, about=REPORTS, new_tokens=12) for question in QUESTIONS]
        cost = replies[0].delivery
        print(f"{cost.channel}: {cost.bytes_moved:,} bytes moved, {cost.recomputed:.0%} of the content read again")
        for question, reply in zip(QUESTIONS, replies, strict=True):
            print(f"  {question} {reply.text}")


if __name__ == "__main__":
    main()
