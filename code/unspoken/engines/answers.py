"""What engines do alike while they answer: choose a token, notice the end, tell what was made so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.engines.protocol import Generation, Hearer, Limits

# What a decoder puts where the bytes of a letter are still incomplete.
INCOMPLETE = "\ufffd"


class Answers:
    """The answers of one call while they grow.

    Args:
        count: How many there are.
        limits: When they end, and how their tokens are chosen.
        ends: Tokens that end an answer.
        decode: Returns the text of tokens, special tokens left out.
        hear: Is told of each further piece of text.
    """

    def __init__(
        self,
        count: int,
        limits: Limits,
        ends: Collection[int],
        decode: Callable[[Sequence[int]], str],
        hear: Hearer | None = None,
    ) -> None:
        self._limits, self._ends, self._decode, self._hear = limits, ends, decode, hear
        self._token_ids: list[list[int]] = [[] for _ in range(count)]
        self._told = [0] * count
        # One generator per answer: what is drawn for one must not depend on who else is in the batch.
        self._drawn = [torch.Generator().manual_seed(limits.seed) for _ in range(count)]
        self.going = set(range(count))

    def take(self, at: int, logits: Float[Tensor, " vocab"]) -> int | None:
        """Choose the next token of an answer; None if it has ended, and is then no longer among `going`."""
        token = choose(logits, self._limits, self._drawn[at])
        if token in self._ends:
            self._end(at)
            return None
        made = self._token_ids[at]
        made.append(token)
        stopped = bool(self._limits.stop) and any(stop in self._decode(made) for stop in self._limits.stop)
        if stopped or len(made) == self._limits.new_tokens:
            self._end(at)
            return None
        self._tell(at, self.text(at).removesuffix(INCOMPLETE))
        return token

    def token_ids(self, at: int) -> tuple[int, ...]:
        """Return an answer's tokens so far."""
        return tuple(self._token_ids[at])

    def text(self, at: int) -> str:
        """Return an answer's text so far, cut at a stop string."""
        text = self._decode(self._token_ids[at])
        found = [text.index(stop) for stop in self._limits.stop if stop in text]
        return text[: min(found)] if found else text

    def generations(
        self,
        prompts: Sequence[Sequence[int]],
        first: Sequence[Float[Tensor, " vocab"]],
        scores: Sequence[tuple[float, ...]],
        seconds: tuple[float, float],
    ) -> list[Generation]:
        """Return the answers as results, the call's time shared evenly between them.

        Args:
            prompts: Each answer's prompt.
            first: Log-probabilities of each answer's first token.
            scores: Log-probabilities of each answer's options.
            seconds: From the call to the first token, and to the end.
        """
        share = 1.0 / len(prompts)
        return [
            Generation(
                text=self.text(at),
                token_ids=self.token_ids(at),
                option_logprobs=scores[at],
                first_logprobs=first[at],
                seconds_first_token=seconds[0] * share,
                seconds_total=seconds[1] * share,
                tokens_prefilled=len(prompt),
            )
            for at, prompt in enumerate(prompts)
        ]

    def _end(self, at: int) -> None:
        self.going.discard(at)
        self._tell(at, self.text(at))

    def _tell(self, at: int, text: str) -> None:
        """Tell what is new, but nothing that may still turn out to be the beginning of a stop string."""
        if self._hear is None:
            return
        safe = len(text)
        if at in self.going:
            held = max((_begun(text, stop) for stop in self._limits.stop), default=0)
            safe -= held
        if safe > self._told[at]:
            self._hear(at, text[self._told[at] : safe])
            self._told[at] = safe


def choose(logits: Float[Tensor, " vocab"], limits: Limits, generator: torch.Generator) -> int:
    """Return the most probable token, or draw one if there is a temperature.

    Drawing from the smallest set of tokens that has a share of the probability is nucleus sampling
    (arXiv 1904.09751, section 3.1).
    """
    if limits.temperature <= 0:
        return int(logits.argmax())
    probabilities, order = (logits / limits.temperature).softmax(dim=-1).sort(descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    # The most probable token is always among them, however small the share.
    probabilities[1:][before[1:] >= limits.top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def heard_from(hear: Hearer | None, first: int) -> Hearer | None:
    """Return a hearer for a part of a call's turns, which are numbered from 0 again."""
    return None if hear is None else lambda at, text: hear(first + at, text)


def _begun(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of a stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
