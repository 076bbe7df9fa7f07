"""Who a receiver takes itself for, when what it is handed was read by an agent of another card.

Sender and receiver are two generated agents that differ in name, profession, home and nature, and each has its own
card. The text is about neither of them. The receiver is asked about itself, with six options: its own, the sender's,
and four of agents that are not there. Chance is one in six; a receiver that has become its sender gives the sender's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from unspoken.errors import UsageError
from unspoken.identity.cards import Persona, make_agents
from unspoken.lab.tasks.private_facts import PrivateFacts
from unspoken.lab.tasks.protocol import Cast, Character, Item, Measure, Source


class About(NamedTuple):
    """One thing an agent can say of itself."""

    trait: str
    question: str
    stem: str


ABOUT = (
    About("name", "What is your name?", "My name is"),
    About("role", "What is your profession?", "My profession:"),
    About("home", "Where is your home?", "My home: the"),
    About("trait", "Which word describes you best?", "I am"),
)
AGENTS, OPTIONS = 48, 6
WHOSE = ("receiver", "sender")


@dataclass(frozen=True)
class CharacterTask:
    """Four questions a source about the receiver itself; chance one in six.

    Args:
        whose: Whose card the answer that counts as right stands in: the receiver's, or the sender's.

    Raises:
        UsageError: If it is neither.
    """

    about: ClassVar[str] = "receiver"
    whose: str = "receiver"
    name: str = "character"
    version: str = "1"
    measure: Measure = "options"

    def __post_init__(self) -> None:
        if self.whose not in WHOSE:
            raise UsageError(f"There is no card of '{self.whose}'.", f"Write character:whose={' or '.join(WHOSE)}.")

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return enough sources for so many items; the questions and options do not depend on `whose`."""
        agents, needed = make_agents(AGENTS, seed), -(-items // len(ABOUT))
        texts = PrivateFacts().sources(needed * 6, seed)[:needed]
        return tuple(self._source(text, agents, seed) for text in texts)

    def _source(self, text: Source, agents: Sequence[Persona], seed: int) -> Source:
        draw = random.Random(f"character/1/{seed}/{text.id}")  # noqa: S311 - reproducible, not secret
        people = _unlike(draw.sample(agents, len(agents)))
        receiver, sender = people[:2]
        items = []
        for at, about in enumerate(ABOUT):
            options = [str(getattr(each, about.trait)) for each in people]
            gold = options[WHOSE.index(self.whose)]
            items.append(Item(f"{text.id}-{at}", about.question, gold, tuple(sorted(options)), about.stem))
        cast = Cast(Character(sender.name, sender.card), Character(receiver.name, receiver.card))
        return Source(text.id, text.text, tuple(items), cast=cast)


def _unlike(agents: Sequence[Persona]) -> list[Persona]:
    """Return the first agents of which no two have anything asked about in common."""
    found: list[Persona] = []
    for each in agents:
        mine = {getattr(each, about.trait) for about in ABOUT}
        if not any(mine & {getattr(other, about.trait) for about in ABOUT} for other in found):
            found.append(each)
        if len(found) == OPTIONS:
            break
    return found
