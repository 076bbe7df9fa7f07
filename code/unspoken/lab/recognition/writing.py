"""Agents that write: short texts of their own on given topics, and the columns they have of them."""

from __future__ import annotations

from collections.abc import Sequence

from unspoken.engines.protocol import Limits, Piece, Prompt, Turn
from unspoken.identity.features import content
from unspoken.lab.recognition.handing import Handed
from unspoken.lab.recognition.people import Mind

ASK = "Write three sentences about {topic}."
TOPICS = tuple(
    ASK.format(topic=topic)
    for topic in (
        "the sea", "a long journey", "bread", "a broken machine", "winter", "an old house", "trust", "a market",
        "rain", "a letter that never came", "music", "a mistake", "the night", "a river", "patience", "a game",
    )
)  # fmt: skip
TEMPERATURE = 0.8


def written(mind: Mind, topics: Sequence[str], tokens: int, seed: int) -> list[Handed]:
    """Return what an agent writes about topics, as content columns in its own answers.

    Args:
        mind: The agent.
        topics: What it is asked.
        tokens: Most tokens of a text.
        seed: Of its draws.
    """
    engine = mind.engine
    asked = [Prompt((Piece("template", engine.encode(topic)),)) + mind.frame.after for topic in topics]
    limits = Limits(new_tokens=tokens, temperature=TEMPERATURE, seed=seed)
    answers = engine.generate([Turn(prompt, mind.prefix) for prompt in asked], limits)
    return [_kept(mind, prompt, answer.token_ids) for prompt, answer in zip(asked, answers, strict=True)]


def _kept(mind: Mind, asked: Prompt, ids: tuple[int, ...]) -> Handed:
    """Return what was written as content columns, what was asked not among them."""
    before = Prompt(tuple(Piece("template", piece.token_ids) for piece in asked.pieces))
    # An agent that wrote nothing at all has still ended its turn.
    kept = ids or mind.engine.encode(".")
    cache = mind.engine.prefill(before + Prompt((Piece("content", kept),)), mind.prefix)
    return Handed(content(cache), kept)
