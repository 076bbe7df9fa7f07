"""What every engine can do, and the values that go in and out of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.manifest import Span, SpanKind
from unspoken.spec import ModelSpec


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one kind. Pieces are tokenised apart, so no token crosses a seam."""

    kind: SpanKind
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """Tokens to be read, in pieces."""

    pieces: tuple[Piece, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens, in order."""
        return tuple(token for piece in self.pieces for token in piece.token_ids)

    def spans(self) -> tuple[Span, ...]:
        """The column ranges of the non-empty pieces; neighbours of one kind become one span."""
        spans: list[Span] = []
        column = 0
        for piece in self.pieces:
            stop = column + len(piece.token_ids)
            if spans and spans[-1].kind == piece.kind:
                spans[-1] = Span(piece.kind, spans[-1].start, stop)
            elif piece.token_ids:
                spans.append(Span(piece.kind, column, stop))
            column = stop
        return tuple(spans)

    def __add__(self, other: Prompt) -> Prompt:
        return Prompt((*self.pieces, *other.pieces))


@dataclass(frozen=True)
class Frame:
    """A chat template cut at the user's words: what stands before them and what after.

    Attributes:
        before: Sink, system prompt and the head of the user's turn.
        after: The end of the user's turn and the head of the assistant's.
    """

    before: Prompt
    after: Prompt


@dataclass(frozen=True)
class Turn:
    """One thing to answer: a prompt to read on top of a cache.

    Attributes:
        prompt: Tokens to read.
        past: The columns that stand before them, or None.
        options: Texts whose log-probability as the answer is wanted.
    """

    prompt: Prompt
    past: KVCache | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """When generation ends: after `new_tokens`, at the model's end token, or at a stop string."""

    new_tokens: int = 64
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """What a model made of one turn, greedily.

    Attributes:
        text: The answer, without special tokens, cut at a stop string.
        token_ids: The tokens behind it.
        option_logprobs: Natural log of the probability of each option's tokens, summed.
        first_logprobs: Log-probabilities of the first token, float32 `[vocab]`.
        seconds_first_token: From the call to the first token, shared evenly by the turns of one call.
        seconds_total: To the last token, shared likewise.
        tokens_prefilled: Tokens of the prompt.
    """

    text: str
    token_ids: tuple[int, ...]
    option_logprobs: tuple[float, ...]
    first_logprobs: Float[Tensor, " vocab"] = field(repr=False)
    seconds_first_token: float
    seconds_total: float
    tokens_prefilled: int


@runtime_checkable
class Engine(Protocol):
    """A model that can show its cache and take another's.

    Attributes:
        name: The engine's registered name.
        version: Version of the software that computes, and on which kind of device; part of what the gate remembers.
        dtype: Element type the model computes in.
    """

    name: str
    version: str
    dtype: str

    @property
    def spec(self) -> ModelSpec:
        """The model, as far as a cache depends on it."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text, with no special tokens added."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        ...

    def frame(self, system: str) -> Frame:
        """Return the model's chat template around a user's words, for a system prompt."""
        ...

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        """Read a prompt and return the cache of `past` and prompt together.

        Args:
            prompt: Tokens to read, at least one.
            past: Columns that stand before them.
            start: Position of the prompt's first token; by default the one after `past`.

        Raises:
            IncompatibleCache: If `past` was made by another model.
            ContextOverflow: If positions would pass the model's context.
        """
        ...

    def logits(
        self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None
    ) -> Float[Tensor, "seq vocab"]:
        """Return the float32 logits at every token of a prompt read on top of `past`."""
        ...

    def generate(self, turns: Sequence[Turn], limits: Limits) -> tuple[Generation, ...]:
        """Answer several turns in one batch, greedily; each sees only its own past and prompt."""
        ...
