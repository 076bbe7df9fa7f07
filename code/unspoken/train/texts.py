"""Running text to train fusers on: gaps to fill, and sentences to quote.

Questions are made from the text itself: a sentence with a name, a number or some words taken out (cloze questions, as
Lewis, Denoyer and Riedel make them, arXiv 1906.04980), and a sentence of which the first words are given.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unspoken.errors import StorageError, UsageError
from unspoken.session import BRIEFLY
from unspoken.train.lesson import Asked, Lesson

SENTENCE = re.compile(r"(?<=[.!?])\s+")
NAME = re.compile(r"(?<=[\w,] )(?:[A-Z][\w'-]+(?: [A-Z][\w'-]+)*|\d[\d.,]*\d|\d)(?!\w)")
WORD = re.compile(r"\b[a-z]{5,}\b")
GAP = "____"
FILL = ("Fill the gap: {gapped}", "What is missing? {gapped}", "{gapped} What belongs in the gap?")
QUOTE = ('Quote the sentence that begins with "{begun}".', 'How does the sentence go on that begins "{begun}"?')
STEM = "Answer:"
GAPS, QUOTES, QUOTED_WORDS, SHORTEST, LONGEST = 12, 2, 10, 30, 240


@dataclass(frozen=True)
class Passages:
    """Passages of a file.

    Attributes:
        passages: Texts, in the order of the file.
    """

    passages: tuple[str, ...]

    @staticmethod
    def of(path: Path, letters: int) -> Passages:
        """Return the passages of a text file, or of JSON lines with a field `text`.

        Args:
            path: The file. Paragraphs of a text file are those that empty lines stand between.
            letters: Longest passage; what is longer is cut between sentences.

        Raises:
            StorageError: If the file cannot be read.
            UsageError: If it has no passage, or a line that is no such JSON.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"The text {path} cannot be read: {error.strerror}.", "Give an existing file."
            ) from error
        except UnicodeDecodeError as error:
            raise UsageError(f"The text {path} is not UTF-8.", "Convert it first.") from error
        whole = _lines(path, text) if path.suffix in (".jsonl", ".json") else re.split(r"\n\s*\n", text)
        cut = tuple(piece for each in whole for piece in _cut(" ".join(each.split()), letters))
        if not cut:
            raise UsageError(f"The text {path} has no passage to train on.", "Give running text with whole sentences.")
        return Passages(cut)

    def lesson(self, seed: int, number: int) -> Lesson:
        """Return one passage and questions about it, the same for the same seed and number."""
        text = self.passages[number % len(self.passages)]
        draw = random.Random(f"texts/2/{seed}/{number}")  # noqa: S311 - reproducible, not secret
        sentences = [each for each in SENTENCE.split(text) if SHORTEST <= len(each) <= LONGEST]
        # A sentence may be asked about more than once: of all questions, some are asked each time it is taught.
        gaps: dict[tuple[str, str], Asked] = {}
        for sentence in draw.choices(sentences, k=GAPS) if sentences else ():
            if (found := _gap(sentence, draw)) is not None:
                gaps.setdefault((sentence, found.answer), found)
        quotes = [_quote(each, draw) for each in draw.sample(sentences, min(QUOTES, len(sentences)))]
        return Lesson(text, tuple(asked for asked in (*gaps.values(), *quotes) if asked is not None))


def _lines(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):  # Not at U+2028 and its like, which may stand in a string.
        try:
            found = json.loads(line) if line.strip() else {"text": ""}
        except (ValueError, RecursionError) as error:  # Of what is no JSON, and of endless numbers and brackets.
            raise UsageError(f"Line {number} of {path} is not JSON.", "Give one JSON object a line.") from error
        if not isinstance(found, dict) or not isinstance(found.get("text"), str):
            raise UsageError(f"Line {number} of {path} has no field 'text'.", 'Write {"text": "..."} on each line.')
        if found.get("split") != "held-out":  # An imported memory says what nothing may be trained on.
            yield found["text"]


def _cut(text: str, letters: int) -> Iterator[str]:
    """Yield a text in runs of whole sentences, none longer than so many letters unless one sentence is."""
    run = ""
    for sentence in SENTENCE.split(text):
        if run and len(run) + len(sentence) >= letters:
            yield run
            run = ""
        run = f"{run} {sentence}".strip()
    if len(run) >= SHORTEST:
        yield run


def _gap(sentence: str, draw: random.Random) -> Asked | None:
    """Return a question for something taken out of a sentence: a name or number mostly, else one or two words."""
    names, words = list(NAME.finditer(sentence)), list(WORD.finditer(sentence))
    if names and (draw.random() < 0.75 or not words):
        found = draw.choice(names)
        start, stop = found.span()
    elif words:
        at = draw.randrange(len(words))
        start, stop = words[at].start(), words[at].end()
    else:
        return None
    asked = draw.choice(FILL).format(gapped=sentence[:start] + GAP + sentence[stop:])
    return Asked(BRIEFLY.format(question=asked), sentence[start:stop], STEM)


def _quote(sentence: str, draw: random.Random) -> Asked | None:
    words = sentence.rstrip(".!?").split()
    known = draw.randrange(3, 6)
    if len(words) <= known + 1:
        return None
    begun, rest = " ".join(words[:known]), " ".join(words[known : known + QUOTED_WORDS])
    return Asked(draw.choice(QUOTE).format(begun=begun), rest, begun)
