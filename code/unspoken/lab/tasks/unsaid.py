"""What a sender knows without having said it: the same words, read in two states of mind.

Every text is read twice, by senders that differ in nothing but their card, and the card does not travel. What the
words alone tell is therefore the same in both states, and whoever goes by the words, the receiver reading them itself
included, is right in one of two. Only what the sender made of them can tell the states apart.

`sense`: a sentence with an ambiguous word, read by an agent that has the one meaning in mind or the other.
`persona`: a remark that anybody could make, by one of two people.
`knowing`: a question, heard by an agent whose notes have the answer or have not: its confidence.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations
from typing import NamedTuple

import msgspec

from unspoken.errors import UsageError
from unspoken.lab.tasks.private_facts import FACTS, PrivateFacts
from unspoken.lab.tasks.protocol import STATES, Cast, Character, Item, Measure, Source, twin_id

RECEIVER = Character("vera", "You are Vera, a helpful assistant.")
NAME = "lyra"
KNOWN, UNKNOWN = "yes", "no"
NOTES = 400


class Sense(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One meaning of a word, and what an agent that takes it so has in mind."""

    meaning: str
    mind: str


class Material(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What texts and cards are made of."""

    words: dict[str, tuple[Sense, Sense]]
    sentences: tuple[str, ...]
    remarks: tuple[str, ...]
    people: tuple[str, ...]


class Twins(NamedTuple):
    """A text, what is asked about it, and the two states of mind it is read in, each with its right answer."""

    words: str
    text: str
    question: str
    stem: str
    answers: tuple[str, str]
    cards: tuple[str, str]


@cache
def material() -> Material:
    """Return what texts and cards are made of."""
    return msgspec.yaml.decode(files("unspoken.lab.tasks").joinpath("unsaid.yaml").read_bytes(), type=Material)


@dataclass(frozen=True)
class Unsaid:
    """The same words in two states of mind; the receiver is asked which.

    Args:
        variant: What is not said: `sense`, `persona` or `knowing`.

    Raises:
        UsageError: If it is none of these.
    """

    variant: str = "sense"
    name: str = "unsaid"
    version: str = "1"
    measure: Measure = "options"

    def __post_init__(self) -> None:
        if self.variant not in MADE:
            raise UsageError(f"There is no state of mind '{self.variant}'.", f"Write unsaid:{', unsaid:'.join(MADE)}.")

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return twins with at least so many questions in all, two for each pair, in an order that the seed gives.

        Raises:
            UsageError: If there are not so many.
        """
        pairs = list(MADE[self.variant](seed))
        random.Random(f"unsaid/{self.variant}/1/{seed}").shuffle(pairs)  # noqa: S311 - reproducible, not secret
        needed, most = -(-items // len(STATES)), len(pairs) * len(STATES)
        if items > most:
            raise UsageError(
                f"The task 'unsaid:{self.variant}' has {most} questions, and {items} were asked for.",
                f"Set `items` to {most} or fewer.",
            )
        return tuple(source for pair in pairs[:needed] for source in _sources(pair, seed))


def _sources(pair: Twins, seed: int) -> tuple[Source, ...]:
    """Return a pair's sources.

    Which state is the first is drawn for each pair: another pair's columns in the state of the same name, the control,
    would otherwise have something in common with the right ones. (Animals came first among the meanings.)
    """
    told = list(zip(pair.answers, pair.cards, strict=True))
    random.Random(f"unsaid/1/{seed}/{pair.words}").shuffle(told)  # noqa: S311 - reproducible, not secret
    made = []
    for state, (gold, card) in zip(STATES, told, strict=True):
        name = twin_id(pair.words, state)
        item = Item(f"{name}-0", pair.question, gold, pair.answers, pair.stem)
        made.append(Source(name, pair.text, (item,), cast=Cast(Character(f"{NAME}-{name}", card), RECEIVER)))
    return tuple(made)


def _senses(seed: int) -> Sequence[Twins]:
    found = material()
    return [
        Twins(
            f"{word}.{at}",
            sentence.format(word=word),
            f"In the sentence above, what is the {word}: {first.meaning} or {second.meaning}?",
            f"The {word} is",
            (first.meaning, second.meaning),
            (_minded(first), _minded(second)),
        )
        for word, (first, second) in found.words.items()
        for at, sentence in enumerate(found.sentences)
    ]


def _minded(sense: Sense) -> str:
    return f"You are {NAME.capitalize()}. You spend your days with {sense.mind}."


def _personas(seed: int) -> Sequence[Twins]:
    found = material()
    return [
        Twins(
            f"{at}.{first.split()[-1]}-{second.split()[-1]}",
            remark,
            f"Who told you the text above: {first} or {second}?",
            "It was told by",
            (first, second),
            (_played(first), _played(second)),
        )
        for at, remark in enumerate(found.remarks)
        for first, second in combinations(found.people, 2)
    ]


def _played(person: str) -> str:
    return f"You are {NAME.capitalize()}, {person}. You think and speak like {person} in everything."


def _known(seed: int) -> Sequence[Twins]:
    """Return questions with notes that have the answer, and notes about other places that have not."""
    notes = PrivateFacts().sources(NOTES * FACTS, seed)
    return [
        Twins(
            mine.id,
            mine.items[0].question,
            "Somebody who keeps notes was asked the question above. Is the answer in the notes: yes or no?",
            "The answer is",
            (KNOWN, UNKNOWN),
            (_noted(mine), _noted(other)),
        )
        for mine, other in zip(notes, (*notes[1:], notes[0]), strict=True)
        if _place(mine.items[0]) not in other.text
    ]


def _place(item: Item) -> str:
    """Return the place a question is about: the answer begins "The old mill ..."."""
    return " ".join(item.stem.split()[1:3])


def _noted(notes: Source) -> str:
    return f"You are {NAME.capitalize()}. These are your notes: {notes.text}"


MADE = {"sense": _senses, "persona": _personas, "knowing": _known}
