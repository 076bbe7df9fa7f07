"""Generated agents: who they are, told in a card and in every other way in which a signature has to recognise them.

An agent is a name, a role, a trait, an interest and a home. Its card says so in four sentences. The same agent is told
in other sentences, without a single content word of the card, as notes of its own and as a conversation, so that what
is recognised can be told from how it was worded. Agents depend on the seed alone, and more of them leave the first ones
as they are.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from unspoken.errors import UsageError
from unspoken.identity.lexicon import NAME, Entry, Feature, Lexicon, lexicon

Thing = TypeVar("Thing")
# Changes when a seed's agents do: in this file or in the lexicon.
VERSION = "1"


class Spoken(NamedTuple):
    """One turn of a conversation: who speaks, and the words."""

    speaker: Literal["user", "assistant"]
    words: str


@dataclass(frozen=True)
class Persona:
    """One generated agent, and the texts that tell it.

    Attributes:
        name: What it is called.
        role: Key of the lexicon: what it does for a living.
        trait: Key of the lexicon: what it is like.
        interest: Key of the lexicon: what it does besides.
        home: Key of the lexicon: where it lives.
        card: Its system prompt: four sentences of 45 to 70 words in all.
        reworded: The same name, role and trait, in other sentences and another order.
        unshared: The same agent with no content word in common with the card, by `shared_words` of
            `unspoken.identity.lexicon`; no name, role or trait word.
        memory: Notes of its own, 60 to 90 words, without its name and without sentences of the card.
        dialogue: Three exchanges of an earlier conversation, 70 to 110 words in all, without its name.
    """

    name: str
    role: str
    trait: str
    interest: str
    home: str
    card: str
    reworded: str
    unshared: str
    memory: str
    dialogue: tuple[Spoken, ...]

    @property
    def brief(self) -> str:
        """A system prompt of one line, as people write them: name, trait and role."""
        article = "an" if self.trait[0] in "aeiou" else "a"
        return f"You are {self.name}, {article} {self.trait} {self.role}."

    def mimicry(self, other: Persona) -> str:
        """Return this agent's card with an instruction to imitate another agent as well as it can."""
        article = "an" if other.role[0] in "aeiou" else "a"
        return (
            f"{self.card} From now on, imitate {other.name}, {article} {other.role} who is {other.trait}. Read, think "
            f"and write exactly as {other.name} would, as well as you can, and let nobody notice who you are."
        )


def make_agents(count: int, seed: int, exclude: Collection[str] = ()) -> tuple[Persona, ...]:
    """Return generated agents, distinct in name and in the pair of role and trait.

    Roles, interests and homes repeat only once every one of them has been given out; agents of the same role are hard
    to tell apart. The same seed gives the same agents, and the first of many are those of few.

    Args:
        count: How many.
        seed: What is drawn depends on it.
        exclude: Names not to be given out, in any case: of agents made before, or of the user's own.

    Raises:
        UsageError: If there are not enough names for so many, or `count` is negative.
    """
    found = lexicon()
    taken = {name.casefold() for name in exclude}
    names = [name for name in _shuffled(found.names, f"{seed}/names") if name.casefold() not in taken]
    if not 0 <= count <= len(names):
        raise UsageError(
            f"{count} agents were asked for; there are names for 0 to {len(names)}.",
            "Ask for fewer, exclude fewer names, or add names to unspoken/identity/lexicon.yaml.",
        )
    # The endless parts are drawn last, so that each agent takes exactly one of each.
    return tuple(
        _persona(found, name, role, trait, interest, home)
        for name, (role, trait), interest, home in zip(
            names[:count],
            _pairs(found, seed),
            _rounds(found.interests, f"{seed}/interests"),
            _rounds(found.homes, f"{seed}/homes"),
            strict=False,
        )
    )


def _pairs(found: Lexicon, seed: int) -> Iterator[tuple[str, str]]:
    """Yield every pair of a role and a trait once; every role once in each round, and traits almost as evenly.

    In round after round a role takes the trait that stands further along a circle, by a shift that never comes twice.
    """
    roles, traits = _shuffled(found.roles, f"{seed}/roles"), _shuffled(found.traits, f"{seed}/traits")
    places = tuple(enumerate(roles))
    for shift in _shuffled(range(len(traits)), f"{seed}/shifts"):
        for place, role in _shuffled(places, f"{seed}/round/{shift}"):
            yield role, traits[(place + shift) % len(traits)]


def _rounds(things: Iterable[Thing], what: str) -> Iterator[Thing]:
    """Yield things without end: each of them once, in an order of its own in every round."""
    every, number = tuple(things), 0
    while every:
        yield from _shuffled(every, f"{what}/{number}")
        number += 1


def _shuffled(things: Iterable[Thing], what: str) -> list[Thing]:
    every = list(things)
    draw = random.Random(f"unspoken.identity.cards/{VERSION}/{what}")  # noqa: S311 - reproducible, not secret
    draw.shuffle(every)
    return every


def _persona(found: Lexicon, name: str, role: str, trait: str, interest: str, home: str) -> Persona:
    work, nature, leisure = found.roles[role], found.traits[trait], found.interests[interest]
    place = found.homes[home]
    # Each text has an order of its own, so that no two of them agree in what stands where.
    return Persona(
        name=name,
        role=role,
        trait=trait,
        interest=interest,
        home=home,
        card=_told("card", name, (work, nature, leisure, place)),
        reworded=_told("reworded", name, (place, leisure, work, nature)),
        unshared=_told("unshared", name, (leisure, work, place, nature)),
        memory=_told("memory", name, (work, place, nature, leisure)),
        dialogue=_conversation((work, nature, leisure)),
    )


def _told(text: Literal["card", "reworded", "unshared", "memory"], name: str, entries: tuple[Entry, ...]) -> str:
    return " ".join(getattr(entry, text) for entry in entries).replace(NAME, name)


def _conversation(features: tuple[Feature, ...]) -> tuple[Spoken, ...]:
    return tuple(
        turn
        for feature in features
        for turn in (Spoken("user", feature.dialogue.user), Spoken("assistant", feature.dialogue.assistant))
    )
