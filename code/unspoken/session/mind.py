"""What an agent has in mind during a session: the columns of everything it was told, was handed and has said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from unspoken.cache import KVCache
from unspoken.channels.protocol import Delivery, Reading
from unspoken.channels.text import content
from unspoken.engines.protocol import PLAIN, Engine, Frame, Generation, Hearer, Limits, Piece, Prompt, Turn
from unspoken.errors import UsageError
from unspoken.manifest import Span
from unspoken.session.agent import Agent
from unspoken.session.events import Passage

APART = "\n"


@dataclass(frozen=True)
class Held:
    """A passage and where its columns stand in a mind: `start` is in, `stop` is out."""

    passage: Passage
    start: int
    stop: int


@dataclass(frozen=True)
class Mind:
    """An agent in the middle of a session; one end of a hand-over, as an agent is.

    It never changes: what is heard makes another mind that shares the columns, so a fork costs nothing.

    Attributes:
        agent: Whose it is.
        prefix: Everything so far, up to where the user's next words go.
        held: The passages in it, in order of columns.
        begun: Whether something already stands in the user's turn that is open.
    """

    agent: Agent
    prefix: KVCache = field(repr=False)
    held: tuple[Held, ...] = ()
    begun: bool = False

    @staticmethod
    def of(agent: Agent) -> Mind:
        """Return the mind of an agent that has not been told anything."""
        return Mind(agent, agent.prefix)

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.agent.name

    @property
    def engine(self) -> Engine:
        """The model it runs on."""
        return self.agent.engine

    @property
    def frame(self) -> Frame:
        """Its chat template with its card in place."""
        return self.agent.frame

    def lacking(self, other: Mind) -> tuple[Held, ...]:
        """Return what this mind holds and the other does not."""
        known = {each.passage.name for each in other.held}
        return tuple(each for each in self.held if each.passage.name not in known and each.start < each.stop)

    def reading(self, held: Held) -> Reading:
        """Return one passage as a reading that can be handed over: its columns are the only content."""
        others = (span for span in self.prefix.manifest.spans if span.kind != "content")
        spans = sorted((*others, Span("content", held.start, held.stop)), key=lambda span: span.start)
        cache = self.prefix.labelled(sender=self.name, spans=spans)
        return Reading(self, held.passage.text, cache, 0.0)

    def reads(self, text: str) -> Mind:
        """Return the mind after it has read words that are nobody's: headings, and what keeps things apart."""
        prompt = Prompt((Piece("template", self.engine.encode(text)),))
        return replace(self, prefix=self.engine.prefill(prompt, self.prefix), begun=True)

    def takes(self, passage: Passage, delivery: Delivery) -> Mind:
        """Return the mind after a passage was delivered to it.

        Raises:
            UsageError: If the channel leaves the receiver with something that no conversation can go on from.
        """
        past = delivery.past
        if past is None or delivery.onset != PLAIN or not self._goes_on_in(past):
            raise UsageError(
                f"The channel '{delivery.channel}' hands over for one question and leaves nothing to go on from.",
                "Use kv, need, compose, text or full-text between the agents of a session.",
            )
        if delivery.prompt.token_ids:
            past = self.engine.prefill(delivery.prompt, past)
        return replace(self, prefix=past, held=(*self.held, Held(passage, self.columns, past.columns)), begun=True)

    def knows(self, *passages: Passage) -> Mind:
        """Return the mind with passages that it need not be handed any more, and cannot hand on: no columns came."""
        empty = (Held(passage, self.columns, self.columns) for passage in passages)
        return replace(self, held=(*self.held, *empty))

    def hears(self, said: Passage) -> Listening:
        """Return the mind with the user's words in it, at the point where the agent is to speak."""
        words = Prompt((Piece("template", self.engine.encode(APART)),)) if self.begun else Prompt(())
        start = self.columns + len(words.token_ids)
        words += content(self, said.text)
        stop = self.columns + len(words.token_ids)
        *pieces, end = (words + self.frame.after).pieces
        rest = Prompt((*pieces, Piece(end.kind, end.token_ids[:-1])))
        heard = replace(self, prefix=self.engine.prefill(rest, self.prefix), held=(*self.held, Held(said, start, stop)))
        return Listening(heard, Prompt((Piece(end.kind, end.token_ids[-1:]),)))

    @property
    def columns(self) -> int:
        """How many columns it has in mind."""
        return self.prefix.columns

    def _goes_on_in(self, past: KVCache) -> bool:
        """Whether a cache is this mind's with more behind it, and every layer has every column."""
        mine, theirs = self.prefix.layers[0].keys, past.layers[0].keys
        whole = {layer.columns for layer in past.layers} == {past.columns}
        return whole and past.columns >= self.columns and torch.equal(theirs[:, : self.columns], mine)


@dataclass(frozen=True)
class Listening:
    """A mind that has heard the user's words and has not answered yet.

    Attributes:
        mind: With all but the last token of the user's turn.
        last: That token: the answer is made on top of it.
    """

    mind: Mind
    last: Prompt

    @property
    def columns(self) -> int:
        """How many columns it has in mind when it speaks."""
        return self.mind.columns + len(self.last.token_ids)

    def speaks(self, limits: Limits, hear: Hearer | None = None) -> Generation:
        """Return the answer."""
        (made,) = self.mind.engine.generate([Turn(self.last, self.mind.prefix)], limits, hear)
        return made

    def having_said(self, passage: Passage, token_ids: Sequence[int]) -> Mind:
        """Return the mind after the answer, with the user's next turn begun."""
        mind = self.mind
        start = self.columns
        prompt = self.last + Prompt((Piece("content", tuple(token_ids)),)) + mind.frame.between
        held = (*mind.held, Held(passage, start, start + len(token_ids)))
        return Mind(mind.agent, mind.engine.prefill(prompt, mind.prefix), held)


def spoken(engine: Engine, made: Generation) -> tuple[int, ...]:
    """Return the tokens of an answer's text: the last ones may spell the text at which it was cut."""
    text = made.text.strip()
    lengths = range(len(made.token_ids) + 1) if text else range(1)
    return next((made.token_ids[:n] for n in lengths if text in engine.decode(made.token_ids[:n])), made.token_ids)
