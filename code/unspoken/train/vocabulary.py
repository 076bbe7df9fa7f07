"""Words to draw from, taken from a tokenizer: whoever has the model has the words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from unspoken.lab.tasks import private_facts as published

SHORTEST, LONGEST = 4, 9


@dataclass(frozen=True)
class Vocabulary:
    """Lower-case words that a tokenizer has as one token.

    Attributes:
        words: Sorted.
    """

    words: tuple[str, ...]

    @staticmethod
    def of(decode: Callable[[Sequence[int]], str], size: int, without: frozenset[str] = frozenset()) -> Vocabulary:
        """Return the words of a vocabulary of some size, but those of a list.

        Args:
            decode: Returns the text of tokens.
            size: Number of token ids.
            without: Words left out.
        """
        texts = {decode([token]) for token in range(size)}
        words = {text[1:] for text in texts if text[:1] == " " and SHORTEST < len(text) <= LONGEST + 1}
        return Vocabulary(
            tuple(sorted({each for each in words if each.isascii() and each.islower() and each.isalpha()} - without))
        )


@cache
def reserved() -> frozenset[str]:
    """Return the words of the task `private-facts`, its places and its values, in small letters: never drawn."""
    values = {value.lower() for kind in published.KINDS for value in kind.values}
    return frozenset(values | {*published.ADJECTIVES, *published.PLACES})
