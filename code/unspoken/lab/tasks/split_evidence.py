"""Evidence that two senders hold between them: a report is cut into pages, in the middle of sentences.

One page ends with a subject ("The library"), the next begins with what is said about it (" sends its goods to
Moscow."). The page with the answer states another fact of the same kind whole, so that alone it offers two values. It
does not say which is meant, but one is another place's, so that it can be guessed; no arm has that page alone to show
how well. The page with the subject says nothing about it. Read in one go, the sentence is whole.

For a receiver that has everything it is plain reading, which small models can do. Chains of two facts, which would be
the other way to need two senders, are beyond the small models the project tests with (docs/log.md).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unspoken.errors import UsageError
from unspoken.lab.tasks.private_facts import FILLERS, KINDS, PLACES
from unspoken.lab.tasks.protocol import Item, Measure, Source


class Relation(NamedTuple):
    """What can be said about a place, and asked."""

    predicate: str
    question: str


class Pool(NamedTuple):
    """Two relations that take values of the same kind: each offers wrong answers to the other."""

    values: tuple[str, ...]
    relations: tuple[Relation, Relation]


class Fact(NamedTuple):
    """One sentence, in two halves, and the question about it."""

    subject: str
    predicate: str
    item: Item

    @property
    def sentence(self) -> str:
        """The sentence whole."""
        return f"{self.subject} {self.predicate}"


_VALUES = {kind.statement.split()[-2] + kind.statement.split()[-1]: kind.values for kind in KINDS}
POOLS = (
    Pool(
        _VALUES["by{value}."],
        (Relation("is run by {value}.", "Who runs {place}?"), Relation("was built by {value}.", "Who built {place}?")),
    ),
    Pool(
        _VALUES["from{value}."],
        (
            Relation("gets its mail from {value}.", "From which city does {place} get its mail?"),
            Relation("sends its goods to {value}.", "To which city does {place} send its goods?"),
        ),
    ),
    Pool(
        _VALUES["sells{value}."],
        (
            Relation("sells {value}.", "What does {place} sell?"),
            Relation("was paid for with {value}.", "What was {place} paid for with?"),
        ),
    ),
    Pool(
        _VALUES["a{value}."],
        (
            Relation("is home to a {value}.", "Which animal lives at {place}?"),
            Relation("is named after a {value}.", "After which animal is {place} named?"),
        ),
    ),
    Pool(
        _VALUES["painted{value}."],
        (
            Relation("is painted {value}.", "What colour is {place} painted?"),
            Relation("has a door that is {value}.", "What colour is the door of {place}?"),
        ),
    ),
)
POOLS_PER_SOURCE, FACTS_PER_RELATION, FILLERS_PER_PART = 2, 2, 2
RELATIONS = 2 * POOLS_PER_SOURCE
MOST_SENDERS = min(RELATIONS + 1, len(FILLERS) // FILLERS_PER_PART)


@dataclass(frozen=True)
class SplitEvidence:
    """One question for each seam between two senders; the four options all stand in the text, chance is one in four.

    Args:
        amount: Senders, from 2 to 4.

    Raises:
        UsageError: If it is another number.
    """

    amount: int | str = 2
    name: str = "split-evidence"
    version: str = "1"
    measure: Measure = "options"

    def __post_init__(self) -> None:
        if not str(self.amount).isdecimal() or not 2 <= int(self.amount) <= MOST_SENDERS:
            raise UsageError(
                f"Evidence cannot be split among '{self.amount}' senders.",
                f"Write split-evidence@2 to split-evidence@{MOST_SENDERS}.",
            )

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return enough sources for so many items; each depends on seed and number alone."""
        senders = int(self.amount)
        return tuple(_source(seed, number, senders) for number in range(-(-items // (senders - 1))))


def _source(seed: int, number: int, senders: int) -> Source:
    draw = random.Random(f"split-evidence/1/{seed}/{number}")  # noqa: S311 - reproducible, not secret
    pairs = _pairs(draw, number)
    cut, other = [pair[0] for pair in pairs[: senders - 1]], [pair[1] for pair in pairs[: senders - 1]]
    rest = [fact for pair in pairs[senders - 1 :] for fact in pair]
    draw.shuffle(rest)
    whole: list[list[Fact]] = [[], *([fact] for fact in other)]
    for fact in rest:
        # Halves count too, so that parts come out about equally long.
        sizes = [len(facts) + 0.5 * (at > 0) + 0.5 * (at < senders - 1) for at, facts in enumerate(whole)]
        whole[sizes.index(min(sizes))].append(fact)
    fillers, parts = draw.sample(FILLERS, FILLERS_PER_PART * senders), []
    for at, facts in enumerate(whole):
        body = [fact.sentence for fact in facts] + fillers[FILLERS_PER_PART * at : FILLERS_PER_PART * (at + 1)]
        draw.shuffle(body)
        opening = [cut[at - 1].predicate] if at else []
        closing = [cut[at].subject] if at < senders - 1 else []
        parts.append((" " if at else "") + " ".join((*opening, *body, *closing)))
    return Source(f"{number:04d}", "".join(parts), tuple(fact.item for fact in cut), tuple(parts))


def _pairs(draw: random.Random, number: int) -> list[Sequence[Fact]]:
    """Return pairs of facts of one relation, relations shuffled, each fact about a place of its own."""
    places = iter(draw.sample(PLACES, RELATIONS * FACTS_PER_RELATION))
    pairs: list[Sequence[Fact]] = []
    for pool in draw.sample(POOLS, POOLS_PER_SOURCE):
        values = draw.sample(pool.values, len(pool.relations) * FACTS_PER_RELATION)
        options = tuple(sorted(values))
        for at, relation in enumerate(pool.relations):
            own = values[at * FACTS_PER_RELATION : (at + 1) * FACTS_PER_RELATION]
            pairs.append([_fact(relation, next(places), value, options, number, len(pairs)) for value in own])
    draw.shuffle(pairs)
    return pairs


def _fact(relation: Relation, place: str, value: str, options: tuple[str, ...], number: int, at: int) -> Fact:
    subject = f"The {place}"
    item = Item(
        id=f"{number:04d}-{at}",
        question=relation.question.format(place=f"the {place}"),
        gold=value,
        options=options,
        stem=f"{subject} {relation.predicate.partition('{value}')[0].strip()}",
    )
    return Fact(subject, relation.predicate.format(value=value), item)
