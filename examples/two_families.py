"""Two model families, one understanding: Qwen reads a report, SmolLM2 answers about it and never sees a word of it.

    make second-model
    python examples/two_families.py

The two have other layers, heads and tokenizers. A fuser (docs/fusers.md) makes SmolLM2's columns out of Qwen's; the
same questions on the columns of another report show how much of the answers comes from the fuser alone.
"""

from __future__ import annotations

from pathlib import Path

from unspoken import Agent, Session, load_model

MODELS = Path(__file__).resolve().parent.parent / "models"
REPORT = (
    "The iron ferry is closed on Friday. The code of the upper library is Mirano. The old windmill was built in 1783, "
    "and its owner is Helen. The upper library smells of candles."
)
OTHER = "The market is closed on Monday. Nobody has seen the keys of the lower gate, which was painted black in 1902."
QUESTIONS = (
    "When was the old windmill built?",
    "Who is the owner of the old windmill?",
    "What is the upper library's code?",
)


def first(answer: str) -> str:
    """Return an answer's first sentence: small models go on and on."""
    return answer.strip().partition(".")[0]


def main() -> None:
    """Ask about a report, and about another one."""
    lyra = Agent("lyra", load_model(str(MODELS / "qwen2.5-coder-0.5b-instruct.gguf")))
    vera = Agent("vera", load_model("smollm2-135m"))
    talk = Session(lyra, vera, channel=f"fused:{MODELS / 'qwen-smollm2'}")
    for question in QUESTIONS:
        told, untold = (talk.ask("vera", question, about=report, new_tokens=12) for report in (REPORT, OTHER))
        print(f"{question} {first(told.text)} [on the other report: {first(untold.text)}]")
    print(f"{told.delivery.bytes_moved / 1e3:.0f} kB moved, {told.delivery.tokens_skipped} tokens not read by vera")


if __name__ == "__main__":
    main()
