"""The receiver says what it wants to know, the sender sends the columns that matter for it and keeps the rest.

    python examples/need.py

kv hands over all content columns, need@0.3 the three tenths that the sender's own attention marks once it is told the
question, and +int8 codes those in one byte for each number. A selection belongs to one question; kv serves them all.
"""

from __future__ import annotations

from unspoken import Agent, Session, load_model

REPORT = (
    "Inspection of the district, second week of May. It was a calm week and most visitors came on foot. "
    "The northern station is run by Anna, who has kept it since the storm. The budget for next year is still open. "
    "The old mill is closed on Monday. Nobody complained about the new opening hours. The stone bridge is painted blue."
)
QUESTION = "Who runs the northern station?"


def main() -> None:
    """Ask the same question through three channels, and print what moved."""
    model = load_model("smollm2-135m")
    lyra, vera = Agent("lyra", model), Agent("vera", model)
    print(QUESTION)
    whole = 0
    for channel in ("kv", "need@0.3", "need@0.3+int8"):
        reply = Session(lyra, vera, channel=channel).ask("vera", QUESTION, about=REPORT, new_tokens=12)
        moved, columns = reply.delivery.bytes_moved, reply.delivery.tokens_skipped
        whole = whole or moved
        print(f"{channel:<14} {moved:>9,} bytes ({moved / whole:>4.0%}), {columns:>2} columns: {reply.text}")


if __name__ == "__main__":
    main()
