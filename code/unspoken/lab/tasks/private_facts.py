"""Facts nobody can know: random pairs of a place and a value, in prose.

The sender reads six facts of three kinds, two of each (who runs the old mill, who runs the iron bridge, on
which day ...), between sentences that say nothing. The receiver is asked for one of them and has six options
of the right kind: the right value, the other value of that kind in the source, and four that are not in it.
Knowing which values occur thus gets one in two; telling the two apart needs the binding. Pairs are drawn at
random, so no training set contains them; without the source, chance is one in six.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from unspoken.errors import UsageError
from unspoken.lab.tasks.forms import Form, form_named
from unspoken.lab.tasks.protocol import Item, Measure, Source


class Kind(NamedTuple):
    """One kind of fact: how it is stated, asked and answered, and the values it can take."""

    statement: str
    question: str
    stem: str
    values: tuple[str, ...]


# Values are common words, one token each in the vocabularies we looked at, so that no option is favoured by length.
KINDS = (
    Kind(
        "The {place} is run by {value}.",
        "Who runs the {place}?",
        "The {place} is run by",
        tuple("Alice Anna Arthur Ben Carl Charles Daniel David Edward Emily Frank George Henry Jack James Jane Maria "
              "Mary Paul Peter Robert Sarah Simon Thomas William".split()),
    ),
    Kind(
        "The {place} is painted {value}.",
        "What colour is the {place} painted?",
        "The {place} is painted",
        tuple("red blue green yellow purple orange brown pink white black".split()),
    ),
    Kind(
        "The {place} is closed on {value}.",
        "On which day is the {place} closed?",
        "The {place} is closed on",
        tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
    ),
    Kind(
        "The {place} is home to a {value}.",
        "Which animal lives at the {place}?",
        "The {place} is home to a",
        tuple("horse dog cat goat fox bear wolf duck pig cow rabbit lion tiger monkey".split()),
    ),
    Kind(
        "The {place} sells {value}.",
        "What does the {place} sell?",
        "The {place} sells",
        tuple("bread honey tea coffee fish rice sugar milk cheese salt wine corn silk wool paper glass".split()),
    ),
    Kind(
        "The {place} gets its mail from {value}.",
        "From which city does the {place} get its mail?",
        "The {place} gets its mail from",
        tuple("Paris London Berlin Rome Madrid Vienna Tokyo Moscow Boston Chicago Cairo Delhi Sydney Toronto".split()),
    ),
)  # fmt: skip
ADJECTIVES = tuple(
    "northern southern eastern western old new upper lower little grand royal hidden quiet stone wooden iron".split()
)
PLACES = tuple(
    "station mill harbour library bakery lighthouse museum school garden theatre hospital bridge tower market chapel "
    "factory farm inn brewery archive observatory workshop quarry ferry".split()
)
FILLERS = (
    "It was a calm week in the district.",
    "The roads were dry and most visitors came on foot.",
    "Several letters arrived late because of the storm.",
    "The council will meet again after the harvest.",
    "Nobody complained about the new opening hours.",
    "A short inspection found everything in order.",
    "The budget for next year is still open.",
    "Repairs were finished earlier than planned.",
)
# For longer texts: every opening with every remark, nearly five hundred sentences more.
OPENINGS = (
    "The clerk|A visitor|The committee|A neighbour|The surveyor|The messenger|A guest|The treasurer|"
    "The foreman|A traveller|The secretary|An apprentice|The chairman|A stranger|The porter|A passer-by|"
    "The watchman|A pupil|The judge|A helper|The tailor|A painter|The carter|A good friend"
).split("|")
REMARKS = (
    "spoke of the weather again|asked about the harvest|wrote a long letter to a cousin|"
    "waited for an answer all morning|had nothing to add|remembered an earlier winter|"
    "found the minutes in good order|praised the road to the coast|counted the visitors twice|"
    "left before the speeches|arrived late and stayed long|thought the plan too costly|"
    "agreed after some time|wanted to hear it once more|could not recall the date|made a note of it|"
    "hoped for a dry summer|said that all was well|promised to come again|took the matter to heart"
).split("|")
PROSE = "prose"
KINDS_PER_SOURCE, FACTS_PER_KIND, OPTIONS, FILLERS_PER_SOURCE = 3, 2, 6, 3
FACTS = KINDS_PER_SOURCE * FACTS_PER_KIND
MOST_FILLERS = len(FILLERS) + len(OPENINGS) * len(REMARKS)


@dataclass(frozen=True)
class PrivateFacts:
    """Six facts a source, six questions a source, chance one in six.

    Args:
        amount: Senders the sentences of a source are shared out among, in order; by default one reads them all.
        fillers: Sentences that say nothing, evenly between the facts: about nine tokens each.
        form: How the facts are stated: in `prose`, or as `unspoken.lab.tasks.forms` has it. Questions and options are
            the same.

    Raises:
        UsageError: If there are more senders than sentences, or none, or more fillers than there are, or no such form.
    """

    amount: int | str = 1
    fillers: int | str = FILLERS_PER_SOURCE
    form: str = PROSE
    name: str = "private-facts"
    version: str = "1"
    measure: Measure = "options"

    def __post_init__(self) -> None:
        if not str(self.fillers).isdecimal() or not 0 <= int(self.fillers) <= MOST_FILLERS:
            raise UsageError(
                f"Facts cannot stand between '{self.fillers}' fillers.",
                f"Write private-facts:fillers=0 to {MOST_FILLERS}.",
            )
        if self.form != PROSE and form_named(self.form) and str(self.amount) != "1":
            raise UsageError(
                f"Facts stated as '{self.form}' cannot be shared out.", "Leave the number of senders out, or the form."
            )
        most = FACTS + int(self.fillers)
        if not str(self.amount).isdecimal() or not 1 <= int(self.amount) <= most:
            raise UsageError(
                f"Facts cannot be shared out among '{self.amount}' senders.", f"Write private-facts@1 to @{most}."
            )

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return enough sources for so many items; each depends on seed and number alone."""
        form = _prose(int(self.fillers)) if self.form == PROSE else form_named(self.form)
        numbers = range(-(-items // FACTS))
        return tuple(_source(seed, number, int(self.amount), int(self.fillers), form) for number in numbers)


def _source(seed: int, number: int, senders: int, fillers: int, form: Form) -> Source:
    draw = random.Random(f"private-facts/1/{seed}/{number}")  # noqa: S311 - reproducible, not secret
    kinds = draw.sample(KINDS, KINDS_PER_SOURCE)
    adjectives, nouns = draw.sample(ADJECTIVES, FACTS), draw.sample(PLACES, FACTS)
    places = [f"{adjective} {noun}" for adjective, noun in zip(adjectives, nouns, strict=True)]
    facts: list[tuple[str, Item]] = []
    for at, kind in enumerate(kinds):
        values = draw.sample(kind.values, OPTIONS)
        for fact in range(FACTS_PER_KIND):
            place = places[at * FACTS_PER_KIND + fact]
            item = Item(
                id=f"{number:04d}-{at * FACTS_PER_KIND + fact}",
                question=kind.question.format(place=place),
                gold=values[fact],
                options=tuple(sorted(values)),
                stem=kind.stem.format(place=place),
            )
            facts.append((form.states(KINDS.index(kind), place, values[fact]), item))
    draw.shuffle(facts)
    sentences = [statement for statement, _ in facts]
    fillers = min(fillers, len(form.fillers))
    for at, filler in enumerate(draw.sample(form.fillers, fillers)):
        sentences.insert(at * (FACTS + fillers) // fillers, filler)
    text = f"{form.before}{form.between.join(sentences)}{form.after}"
    return Source(f"{number:04d}", text, tuple(item for _, item in facts), _shared_out(sentences, senders))


def _prose(fillers: int) -> Form:
    """Return how facts are stated unless something else is said; a few fillers come from the first ones, as ever."""
    further = (f"{opening} {remark}." for opening in OPENINGS for remark in REMARKS)
    pool = FILLERS if fillers <= len(FILLERS) else (*FILLERS, *further)
    return Form(tuple(kind.statement for kind in KINDS), fillers=pool)


def _shared_out(sentences: Sequence[str], senders: int) -> tuple[str, ...]:
    """Return the sentences in as many runs of about equal length; none if one sender reads them all."""
    if senders == 1:
        return ()
    bounds = [round(len(sentences) * at / senders) for at in range(senders + 1)]
    runs = [" ".join(sentences[start:stop]) for start, stop in pairwise(bounds)]
    return (runs[0], *(f" {run}" for run in runs[1:]))
