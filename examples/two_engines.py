"""One cache, two engines: Lyra reads with transformers, Vera answers with llama.cpp, from the same weights.

    pip install '.[llamacpp]'
    python examples/two_engines.py

The first hand-over between two engines measures whether the receiver goes on from the sender's columns as from its
own; a pair that does not is refused. docs/llamacpp.md tells how the columns of the two are made to agree.
"""

from __future__ import annotations

from unspoken import Agent, Session, load_model
from unspoken.engines.gate import ensure_pair

REPORT = (
    "Notes from the harbour. The grand library is run by Peter and is painted green. The budget for next year is "
    "still open. The iron ferry is closed on Friday. A short inspection found everything in order."
)


def main() -> None:
    """Let one engine read and another answer."""
    lyra = Agent("lyra", load_model("smollm2-135m", engine="transformers"))
    vera = Agent("vera", load_model("smollm2-135m", engine="llamacpp", kv_type="f16"))
    print(f"lyra runs on {lyra.engine.name} {lyra.engine.version}")
    print(f"vera runs on {vera.engine.name} {vera.engine.version}")
    # A session does this by itself; here, to see the numbers.
    measured = ensure_pair(lyra.engine.name, vera.engine, lambda: lyra.engine)
    assert measured is not None  # noqa: S101 - two engines
    print(f"vera's logits on lyra's cache: at most {max(measured.checks.values()):.2f} off, {measured.bound} allowed")
    talk = Session(lyra, vera, channel="kv")
    for question in ("Who runs the grand library?", "On which day is the iron ferry closed?"):
        reply = talk.ask("vera", question, about=REPORT)
        print(f"{question} {reply.text}")
        print(f"    {reply.delivery.tokens_skipped} tokens not read, {reply.delivery.bytes_moved / 1e6:.1f} MB moved")


if __name__ == "__main__":
    main()
