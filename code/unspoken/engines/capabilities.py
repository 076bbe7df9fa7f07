"""What some engines can do beyond answering: show their attention, run single layers, locate tokens in a text.

Channels and fusers ask for it with `attentive`, `layered` and `located`, and say so where an engine cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.protocol import Engine, Prompt
from unspoken.errors import UsageError


@runtime_checkable
class Attentive(Protocol):
    """An engine that shows what tokens attend to."""

    def attention(self, prompt: Prompt, past: KVCache, probes: int) -> tuple[Float[Tensor, "heads probes past"], ...]:
        """Return, layer by layer, how much the last tokens of a prompt attend to the columns before it.

        Args:
            prompt: Tokens read on top of `past`.
            past: The columns looked at.
            probes: How many of the prompt's last tokens look.

        Returns:
            Attention weights in float32; what a token gives to the prompt itself is missing from its sum of one.
        """
        ...


@runtime_checkable
class Layered(Protocol):
    """An engine whose layers can be run by themselves, on any residuals."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    def embed(self, token_ids: Sequence[int]) -> Float[Tensor, "new hidden"]:
        """Return what enters the first layer for some tokens."""
        ...

    def embeddings(self) -> Float[Tensor, "vocab hidden"]:
        """Return the whole table of input embeddings, not a copy."""
        ...

    def unembeddings(self) -> Float[Tensor, "vocab hidden"]:
        """Return the matrix that makes logits, not a copy."""
        ...

    def through(
        self,
        residuals: Float[Tensor, "new hidden"],
        layers: Sequence[KVLayer],
        at: Int[Tensor, " new"],
        positions: Int[Tensor, " new"],
    ) -> tuple[Float[Tensor, "new hidden"], list[KVLayer]]:
        """Run residuals through some neighbouring layers, which write their columns while they go.

        Args:
            residuals: What enters the first of the layers, a row for each token.
            layers: The columns each layer holds; which layers are run is told by their indices.
            at: The column each token's keys and values are written to, in place of what is there; columns that do
                not exist yet follow the last one, in order.
            positions: The position of each token; it sees the columns at its own position and before.

        Returns:
            What leaves the last of the layers, and the layers' columns as they are then. Those given are unchanged.
        """
        ...

    def finish(self, residuals: Float[Tensor, "new hidden"]) -> Float[Tensor, "new hidden"]:
        """Return what leaves the last layer as it enters the head: after the final norm."""
        ...


@runtime_checkable
class Located(Protocol):
    """An engine that tells which characters of a text each of its tokens covers."""

    def located(self, text: str) -> tuple[tuple[int, int], ...]:
        """Return for each token of `encode(text)` the characters [start, stop) of the text that it covers.

        Neither starts nor stops ever go back. A token that holds a part of a character, as byte-level tokenizers cut
        them, covers the whole of it, and so do its other parts. A token that holds none, such as a space that the
        tokenizer put in front, has an empty range. Some tokenizers leave a token's leading spaces out, so that they
        are in no range and a token of nothing but spaces has an empty one; and characters that a tokenizer's
        normalisation drops are in none.

        Raises:
            UsageError: If the tokenizer cannot tell.
        """
        ...


def attentive(engine: Engine, channel: str) -> Attentive:
    """Return an engine as one that shows its attention.

    Raises:
        UsageError: If it does not, saying which channel asked for it.
    """
    if not isinstance(engine, Attentive):
        raise _lacking(engine, channel, "attention weights")
    return engine


def layered(engine: Engine, channel: str) -> Layered:
    """Return an engine as one whose layers can be run by themselves.

    Raises:
        UsageError: If they cannot, saying which channel asked for it.
    """
    if not isinstance(engine, Layered):
        raise _lacking(engine, channel, "single layers")
    return engine


def located(engine: Engine, what: str) -> Located:
    """Return an engine as one that locates its tokens in a text.

    Raises:
        UsageError: If it does not, saying what asked for it.
    """
    if not isinstance(engine, Located):
        raise UsageError(
            f"'{what}' needs the characters that tokens cover, and the engine '{engine.name}' does not show them.",
            "Use the transformers or the llama.cpp engine for it.",
        )
    return engine


def covered(text: str, lengths: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return the characters [start, stop) that tokens cover which stand for the bytes of a text, one behind the other.

    Args:
        text: The text.
        lengths: How many bytes of its UTF-8 each token stands for; together no more than there are.
    """
    holders = [at for at, character in enumerate(text) for _ in character.encode()]
    spans, stop = [], 0
    for length in lengths:
        start, stop = stop, stop + length
        first = holders[start] if start < len(holders) else len(text)
        spans.append((first, holders[stop - 1] + 1 if length else first))
    return tuple(spans)


def _lacking(engine: Engine, channel: str, what: str) -> UsageError:
    return UsageError(
        f"The channel '{channel}' needs {what}, and the engine '{engine.name}' does not show them.",
        "Use the transformers engine for it.",
    )
