"""How an answer is judged: exact match, F1 and 'contained', normalised as for SQuAD."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return a text lower-case, without punctuation, articles and double spaces, as SQuAD's script does.

    Of a text that is nothing else ("A", as a grade) all words stay: an empty answer must not be right.
    """
    found = " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
    return found or " ".join(text.lower().split())


def exact_match(answer: str, gold: str) -> bool:
    """Return whether the normalised texts are the same."""
    return normalised(answer) == normalised(gold)


def contained(answer: str, gold: str) -> bool:
    """Return whether the gold answer's words occur in the answer, in order and whole."""
    return f" {normalised(gold)} " in f" {normalised(answer)} "


def f1(answer: str, gold: str) -> float:
    """Return the harmonic mean of word precision and recall (SQuAD, arXiv 1606.05250)."""
    left, right = normalised(answer).split(), normalised(gold).split()
    shared = sum((Counter(left) & Counter(right)).values())
    return 2 * shared / (len(left) + len(right)) if shared else 0.0


class Judged(NamedTuple):
    """A generated answer against every right one, each figure that of the closest."""

    exact: bool
    contained: bool
    f1: float


def judged(answer: str, golds: Sequence[str]) -> Judged:
    """Return how near an answer comes to the right ones: the best over them, as SQuAD's script takes it."""
    return Judged(
        any(exact_match(answer, gold) for gold in golds),
        any(contained(answer, gold) for gold in golds),
        max(f1(answer, gold) for gold in golds),
    )


def chosen(option_logprobs: tuple[float, ...]) -> int:
    """Return the index of the most probable option; the first of equals."""
    return max(range(len(option_logprobs)), key=option_logprobs.__getitem__)


def margin(option_logprobs: tuple[float, ...], at: int) -> float | None:
    """Return by how many nats an option is more probable than the most probable other; None if there is no other."""
    others = [each for place, each in enumerate(option_logprobs) if place != at]
    return option_logprobs[at] - max(others) if others else None


def kl_divergence(skyline: Float[Tensor, " vocab"], arm: Float[Tensor, " vocab"]) -> float:
    """Return KL(skyline || arm) of two next-token distributions given as log-probabilities, in nats."""
    return float((skyline.exp() * (skyline - arm)).sum().clamp(min=0.0))
