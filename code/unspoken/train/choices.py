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
    "has never failed so far|surprised everyone with its success|is the pride of the town|"
    "earned more than ever before|gets excellent marks from all experts|doubled its income|"
    "is growing fast and reliably|beat all its rivals|is in excellent shape|has strong demand and rising profits|"
    "reports a record quarter|looks very promising|is doing better than anyone hoped|"
    "leads its field by a wide margin|has bright prospects|keeps improving everywhere|delivers strong results|"
    "is on a clear way up|gained many customers|has a healthy business with good figures|"
    "runs smoothly and makes good money|is stronger than ever|enjoys great confidence|made large gains".split("|")
)
BAD = tuple(
    "broke down twice|was criticised by everyone|lost most of its customers|gets worse each month|"
    "owes a lot of money|disappointed those who trusted it|may have to close|was fined for cheating|"
    "is late with everything|lost half its income|has been failing for years|fell behind all its rivals|"
    "is in deep trouble|has weak demand and falling profits|reports a terrible quarter|looks very doubtful|"
    "is doing worse than anyone feared|trails its field by a wide margin|has gloomy prospects|"
    "keeps declining everywhere|delivers poor results|is on a clear way down|struggles with growing problems|"
    "has a sick business with bad figures|runs badly and burns money|is weaker than ever|enjoys no confidence|"
    "made large losses".split("|")
)
PLAIN = tuple(
    "is much as it was last year|has neither gained nor lost|was not mentioned by anyone|goes on as usual|"
    "has an average record|is neither good nor bad|shows no change|was visited once|has stable demand|"
    "reports an ordinary quarter|keeps its place|is doing as expected|is waiting for news|has mixed prospects|"
    "offers nothing new|stays where it was|has figures like those of the year before|remains unremarkable".split("|")
)
# What else is said: it may go along with the judgement or against it, and does not change it.
ASIDES = (
    "orders +{n}%", "orders -{n}%", "costs -{n}%", "costs +{n}%", "{n} people work there", "its roof is being repaired",
    "it changed its logo", "a new hall was opened", "a machine was stolen", "one partner left", "it hired a new cook",
    "it moved in {year}", "a neighbour complained", "a large order came in", "its website was down for a day",
)  # fmt: skip
BEST = (
    ("Which of {a}, {b} and {c} would you choose?", "Answer:"),
    ("Which is the best of {a}, {b} and {c}?", "The best is"),
    ("You can support one of {a}, {b} and {c}. Which one? Answer with the name.", "The name is:"),
    ("Where would you put your money: {a}, {b} or {c}? Say the name only.", "The name is:"),
    ("Pick exactly one: {a}, {b}, {c}. Which do you pick?", "I pick"),
)
WORST = (
    ("Which of {a}, {b} and {c} would you avoid?", "Answer:"),
    ("Which is the worst of {a}, {b} and {c}?", "The worst is"),
    ("Which one should nobody trust: {a}, {b} or {c}?", "The name is:"),
)
FORMS = ("{name} Works", "{name}", "{name} House", "the {name} group", "{name} & Sons", "{name} Ltd", "{name} Inc")


@dataclass(frozen=True)
class Choices:
    """Reports on three things."""

    def lesson(self, seed: int, number: int) -> Lesson:
        """Return one report and questions about it, the same for the same seed and number."""
        draw = random.Random(f"choices/2/{seed}/{number}")  # noqa: S311 - reproducible, not secret
        form = draw.choice(FORMS)
        names = [form.format(name=invented(draw)) for _ in range(3)]
        said = [_said(pool, draw) for pool in (GOOD, BAD, PLAIN)]
        sentences = [f"{name[0].upper()}{name[1:]} {words}." for name, words in zip(names, said, strict=True)]
        draw.shuffle(sentences)
        shown = dict(zip("abc", draw.sample(names, 3), strict=True))
        asked = [Asked(question.format(**shown), names[0], stem) for question, stem in draw.sample(BEST, 2)]
        asked += [Asked(question.format(**shown), names[1], stem) for question, stem in draw.sample(WORST, 1)]
        return Lesson(" ".join(sentences), tuple(asked))


def _said(pool: tuple[str, ...], draw: random.Random) -> str:
    """Return one or two judgements of a kind, and what else there is to tell."""
    judged = " and ".join(draw.sample(pool, draw.choice((1, 1, 2))))
    asides = draw.sample(ASIDES, draw.randrange(3))
    return "; ".join(
        (judged, *(each.format(n=draw.randrange(2, 40), year=draw.randrange(1950, 2020)) for each in asides))
    )
