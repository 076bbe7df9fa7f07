"""What every engine can do, and the values that go in and out of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.errors import UsageError
from unspoken.manifest import Span, SpanKind
from unspoken.spec import ModelSpec


@runtime_checkable
class Source(Protocol):
    """Where a model's files come from; an engine asks for the kind it reads."""

    @property
    def name(self) -> str:
        """What the user called the model."""
        ...

    @property
    def memory(self) -> Path | None:
        """Folder for what is kept between runs; None keeps nothing."""
        ...

    def folder(self) -> tuple[Path, str]:
        """Return a folder in Hugging Face's layout and the name to show."""
        ...

    def gguf(self) -> tuple[Path, str]:
        """Return a GGUF file and the name to show."""
        ...


@dataclass(frozen=True)
class Loading:
    """How a model is opened. What is None is the engine's choice.

    Attributes:
        dtype: Element type the model computes in; llama.cpp takes it from the file.
        device: Device of torch.
        kv_type: Element type of keys and values in llama.cpp: f32, f16, bf16, q8_0 or q4_0.
        context: Columns llama.cpp has room for, over everything that is held at once.
        gpu_layers: Layers llama.cpp puts on the graphics device; -1 for all.
        threads: Threads to compute with.
    """

    dtype: str | None = None
    device: str | None = None
    kv_type: str | None = None
    context: int | None = None
    gpu_layers: int | None = None
    threads: int | None = None

    def refuse(self, engine: str, *names: str) -> None:
        """Refuse settings that an engine does not have, so that none is ignored in silence.

        Raises:
            UsageError: If one of them was given.
        """
        given = [name for name in names if getattr(self, name) is not None]
        if given:
            shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"The engine '{engine}' has no {shown}.", "Leave it out, or choose another engine.")


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
    """A chat template cut at the words said: what stands before, after and between them.

    Attributes:
        before: Sink, system prompt and the head of the user's turn.
        after: The end of the user's turn and the head of the assistant's.
        between: The end of the assistant's turn and the head of the user's next one.
    """

    before: Prompt
    after: Prompt
    between: Prompt


@dataclass(frozen=True)
class Graft:
    """A residual that meets the last prompt token's own, on its way into a layer.

    Attributes:
        layer: The layer whose input is changed.
        residual: What comes from outside.
        how: `replace`, or the `sum` or `mean` of both.
    """

    layer: int
    residual: Float[Tensor, " hidden"] = field(repr=False)
    how: Literal["replace", "sum", "mean"] = "replace"


@dataclass(frozen=True)
class Onset:
    """How a prompt is read on top of a cache, where that is not simply the next tokens in causal order.

    Attributes:
        position: Of the prompt's first token; None for the one after the cache.
        graft: What is put into one of the prompt's residuals.
        lookahead: In layers that hold fewer columns than others, how many later tokens of the prompt a token sees.
            Always 0, but to reproduce a published fault (`unspoken.channels.layers`).
    """

    position: int | None = None
    graft: Graft | None = None
    lookahead: int = 0


PLAIN = Onset()


@dataclass(frozen=True)
class Turn:
    """One thing to answer: a prompt to read on top of a cache.

    Attributes:
        prompt: Tokens to read.
        past: The columns that stand before them, or None.
        options: Texts whose log-probability as the answer is wanted.
        onset: How the prompt is read.
    """

    prompt: Prompt
    past: KVCache | None = None
    options: tuple[str, ...] = ()
    onset: Onset = PLAIN


@dataclass(frozen=True)
class Limits:
    """When generation ends, and how a token is chosen.

    Attributes:
        new_tokens: Most tokens of an answer; it also ends at the model's end token.
        stop: Texts at which it ends; they are not part of the answer.
        temperature: 0 takes the most probable token; above, tokens are drawn.
        top_p: Drawn only from the most probable tokens that have this share of the probability together.
        seed: Of the draws.
    """

    new_tokens: int = 64
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


Hearer = Callable[[int, str], None]
"""Is told the turn's index and each further piece of its answer, as it is made."""


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
class Stateful(Protocol):
    """An engine that keeps columns in memory of its own, so that they have to be put there and taken out."""

    def put(self, cache: KVCache, sequence: int = 0) -> None:
        """Put a cache into one of the engine's sequences, in place of what was there."""
        ...

    def take(self, sequence: int = 0) -> list[KVLayer]:
        """Return the columns of one of the engine's sequences, copied."""
        ...


@runtime_checkable
class Engine(Protocol):
    """A model that can show its cache and take another's.

    Attributes:
        name: The engine's registered name.
        version: Version of the software that computes, and on which kind of device; part of what the gate remembers.
        dtype: Element type of the columns it makes.
        precision: The coarsest type it computes in; what rounding alone may do, and so the gate's bounds, depend
            on it (`unspoken.engines.gate.BOUNDS`).
    """

    name: str
    version: str
    dtype: str
    precision: str

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

    def generate(self, turns: Sequence[Turn], limits: Limits, hear: Hearer | None = None) -> tuple[Generation, ...]:
        """Answer several turns in one batch; each sees only its own past and prompt.

        Args:
            turns: What to answer.
            limits: When an answer ends, and how its tokens are chosen.
            hear: Is told the answers piece by piece, as they are made.
        """
        ...

    def close(self) -> None:
        """Give the model's memory back; the engine cannot be used any more, caches it made can."""
        ...
