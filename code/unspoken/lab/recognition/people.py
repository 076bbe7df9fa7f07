"""Who takes part in a study and what they read; development, cohort and test are disjoint."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from unspoken.cache import KVCache
from unspoken.engines.protocol import Engine, Frame, Piece, Prompt
from unspoken.errors import UsageError
from unspoken.identity.cards import Persona, make_agents
from unspoken.identity.passages import passages
from unspoken.lab.recognition.plan import RecognitionPlan
from unspoken.lab.tasks.lines import Words, read_lines

OWN_NOTES = "These are your own notes:\n{memory}"
PLAIN = "You are a helpful assistant."
EARLIER = "What was said before:\n{turns}\n\n"
SAID = {"user": "Visitor", "assistant": "You"}
# Shorter texts say little about anybody.
LEAST_TOKENS = 40
SENTENCES = re.compile(r"(?<=[.!?])\s+")


class Passage(msgspec.Struct, frozen=True):
    """One line of the file of texts; other fields are passed over."""

    context: Words


@dataclass(frozen=True)
class Mind:
    """An agent about to read: a party to a hand-over.

    Attributes:
        name: Its name.
        engine: Its model.
        system: Its system prompt.
        lead: What stands in the user's turn before the text.
    """

    name: str
    engine: Engine = field(repr=False)
    system: str = PLAIN
    lead: str = ""

    @cached_property
    def frame(self) -> Frame:
        """The model's chat template with the system prompt in place."""
        return self.engine.frame(self.system)

    @cached_property
    def prefix(self) -> KVCache:
        """The cache of everything that stands before the text; made once."""
        before = self.frame.before
        if self.lead:
            before = before + Prompt((Piece("template", self.engine.encode(self.lead)),))
        return self.engine.prefill(before)


def told(persona: Persona, way: str, engine: Engine) -> Mind:
    """Return an agent as its card, other words, notes or an earlier conversation make it.

    Raises:
        UsageError: If there is no such way.
    """
    if way == "dialogue":
        turns = "\n".join(f"{SAID[turn.speaker]}: {turn.words}" for turn in persona.dialogue)
        return Mind(persona.name, engine, PLAIN, EARLIER.format(turns=turns))
    systems = {"card": persona.card, "reworded": persona.reworded, "unshared": persona.unshared, "brief": persona.brief}
    systems["memory"] = OWN_NOTES.format(memory=persona.memory)
    if way not in systems:
        raise UsageError(f"An agent cannot be told by '{way}'.", f"Ways are {', '.join((*systems, 'dialogue'))}.")
    return Mind(persona.name, engine, systems[way])


WAYS = ("card", "reworded", "unshared", "memory", "dialogue", "brief")


@dataclass(frozen=True)
class People:
    """The agents of a study, no name twice.

    Attributes:
        cohort: Read the same words, to be taken away.
        development: What is learned is learned from them.
        test: Are enrolled and tested.
    """

    cohort: tuple[Persona, ...]
    development: tuple[Persona, ...]
    test: tuple[Persona, ...]

    @staticmethod
    def of(plan: RecognitionPlan) -> People:
        """Return a study's agents."""
        everyone = make_agents(plan.cohort + plan.development + plan.agents, plan.seed)
        first, second = plan.cohort, plan.cohort + plan.development
        return People(everyone[:first], everyone[first:second], everyone[second:])


@dataclass(frozen=True)
class Texts:
    """The texts of a study as tokens, none twice."""

    development: tuple[tuple[int, ...], ...]
    enrolment: tuple[tuple[int, ...], ...]
    test: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(plan: RecognitionPlan, engine: Engine) -> Texts:
        """Return a study's texts: the package's own passages, and those of its file, in an order that the seed gives.

        Raises:
            StorageError: If the file cannot be read.
            UsageError: If it holds too few texts.
        """
        own = [engine.encode(text) for text in passages()]
        lines = () if plan.data is None else read_lines(plan.data, Passage, "one JSON object with a context per line")
        found = list(dict.fromkeys(cut(engine, line.context, plan.text_tokens) for line in lines))
        found = [ids for ids in found if len(ids) >= LEAST_TOKENS]
        order = random.Random(f"recognition/{plan.seed}")  # noqa: S311 - reproducible, not secret
        order.shuffle(own)
        order.shuffle(found)
        apart = plan.enrolment_texts + plan.test_texts
        # Tested with texts of another kind than learned from, if there are enough of them.
        pool = [*found, *own]
        if len(pool) < apart + plan.development_texts:
            raise UsageError(
                f"There are {len(pool)} texts of {LEAST_TOKENS} tokens and more, and {apart + plan.development_texts} "
                "are asked for.",
                "Give a larger file as `data`, or ask for fewer texts.",
            )
        first = plan.enrolment_texts
        return Texts(tuple(pool[-plan.development_texts :]), tuple(pool[:first]), tuple(pool[first:apart]))


def cut(engine: Engine, text: str, tokens: int) -> tuple[int, ...]:
    """Return a text's first sentences, as many as fit into so many tokens; none may."""
    kept: tuple[int, ...] = ()
    for end in _ends(text):
        ids = engine.encode(text[:end].strip())
        if len(ids) > tokens:
            break
        kept = ids
    return kept


def _ends(text: str) -> Iterator[int]:
    for match in SENTENCES.finditer(text):
        yield match.start()
    yield len(text)


def dealt(items: Sequence[tuple[int, ...]], count: int, what: str) -> tuple[tuple[int, ...], ...]:
    """Return some texts, drawn without putting back, in an order that `what` gives."""
    draw = random.Random(what)  # noqa: S311 - reproducible, not secret
    return tuple(draw.sample(list(items), min(count, len(items))))
