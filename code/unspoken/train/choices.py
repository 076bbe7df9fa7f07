"""Reports on three things to train fusers on: one does well, one badly, one neither; the receiver has to choose.

Names are invented, and the phrases are none of the public task `tipsheets`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from unspoken.train.facts import invented
from unspoken.train.lesson import Asked, Lesson

GOOD = tuple(
    "was praised by every visitor|won two prizes this year|works better each month|is loved by those who use it|"
    "has never failed so far|surprised everyone with its success|is the pride of the town|earned more than ever before|"
    "gets excellent marks from all experts|doubled its income|is growing fast and reliably|beat all its rivals".split(
        "|"
    )
)
BAD = tuple(
    "broke down twice|was criticised by everyone|lost most of its customers|gets worse each month|owes a lot of money|"
    "disappointed those who trusted it|may have to close|was fined for cheating|is late with everything|"
    "lost half its income|has been failing for years|fell behind all its rivals".split("|")
)
PLAIN = tuple(
    "is much as it was last year|has neither gained nor lost|was not mentioned by anyone|goes on as usual|"
    "has an average record|is neither good nor bad|shows no change|was visited once".split("|")
)
BEST = (
    ("Which of {a}, {b} and {c} would you choose?", "Answer:"),
    ("Which is the best of {a}, {b} and {c}?", "The best is"),
    ("You can support one of {a}, {b} and {c}. Which one? Answer with the name.", "The name is:"),
)
WORST = (
    ("Which of {a}, {b} and {c} would you avoid?", "Answer:"),
    ("Which is the worst of {a}, {b} and {c}?", "The worst is"),
)
FORMS = ("{name} Works", "{name}", "{name} House", "the {name} group", "{name} & Sons")


@dataclass(frozen=True)
class Choices:
    """Reports on three things."""

    def lesson(self, seed: int, number: int) -> Lesson:
        """Return one report and questions about it, the same for the same seed and number."""
        draw = random.Random(f"choices/1/{seed}/{number}")  # noqa: S311 - reproducible, not secret
        form = draw.choice(FORMS)
        names = [form.format(name=invented(draw)) for _ in range(3)]
        said = [" and ".join(draw.sample(pool, draw.randrange(1, 3))) for pool in (GOOD, BAD, PLAIN)]
        sentences = [f"{name[0].upper()}{name[1:]} {words}." for name, words in zip(names, said, strict=True)]
        draw.shuffle(sentences)
        shown = dict(zip("abc", draw.sample(names, 3), strict=True))
        asked = [Asked(question.format(**shown), names[0], stem) for question, stem in draw.sample(BEST, 2)]
        asked += [Asked(question.format(**shown), names[1], stem) for question, stem in draw.sample(WORST, 1)]
        return Lesson(" ".join(sentences), tuple(asked))
