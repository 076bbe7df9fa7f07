"""Lists of words to train fusers on: nothing but words and their order."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from unspoken.train.lesson import Asked, Lesson
from unspoken.train.vocabulary import Vocabulary

HEADS = ("In order: {words}.", "The list reads {words}.", "Items on the list: {words}.", "They are called {words}.")
AFTER = ("Which word comes after {word}?", "What stands behind {word} in the list?", "What follows {word}?")
BEFORE = ("Which word comes before {word}?", "What stands in front of {word} in the list?")
STEMS = ("The word is", "It is", "Answer:")
ASKED = 6


@dataclass(frozen=True)
class WordLists:
    """Lists of some length.

    Attributes:
        vocabulary: Where the words come from.
        words: Of one list.
    """

    vocabulary: Vocabulary
    words: int

    def lesson(self, seed: int, number: int) -> Lesson:
        """Return one list and questions about it, the same for the same seed and number."""
        draw = random.Random(f"lists/1/{seed}/{number}")  # noqa: S311 - reproducible, not secret
        words = draw.sample(self.vocabulary.words, self.words)
        asked = []
        for first, second in draw.sample(list(pairwise(words)), min(ASKED, self.words - 1)):
            known, answer, forms = (first, second, AFTER) if draw.random() < 0.7 else (second, first, BEFORE)
            asked.append(Asked(draw.choice(forms).format(word=known), answer, draw.choice(STEMS)))
        return Lesson(draw.choice(HEADS).format(words=", ".join(words)), tuple(asked))
