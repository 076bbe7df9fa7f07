"""An agent: a name, a card and a model; what it reads, and how it answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from unspoken.cache import KVCache
from unspoken.channels.kv import received
from unspoken.channels.protocol import Delivery, Reading
from unspoken.channels.text import content
from unspoken.engines.protocol import Engine, Frame, Generation, Limits, Piece, Prompt, Turn
from unspoken.errors import UsageError
from unspoken.session.card import read_card
from unspoken.session.shelf import Shelf

QUESTION = "\n\n{question}"
# Small models ramble or drift off the text without it.
BRIEFLY = "{question} Answer briefly."


@dataclass(frozen=True)
class Agent:
    """A name, a card and a model.

    Args:
        name: What the agent is called.
        engine: The model it runs on, from `load_model`; agents may share one.
        card: Its system prompt; by default a plain one with its name.
        shelf: Where the cache of its beginning is kept between runs; by default it is made in each.
    """

    name: str
    engine: Engine = field(repr=False)
    card: str = ""
    shelf: Shelf | None = None

    @staticmethod
    def from_card(path: str | Path, engine: Engine, shelf: Shelf | None = None) -> Agent:
        """Return an agent from a YAML card, with what it remembers.

        Args:
            path: The card.
            engine: The model it runs on; what the card says of this is not looked at.
            shelf: Where the cache of its beginning is kept.

        Raises:
            StorageError: If the file cannot be read.
            UsageError: If it is no such card.
        """
        card = read_card(path)
        return Agent(card.name, engine, card.system(Path(path).parent), shelf)

    @cached_property
    def frame(self) -> Frame:
        """The model's chat template with this agent's card in place."""
        return self.engine.frame(self.card or f"You are {self.name.capitalize()}, a helpful assistant.")

    @cached_property
    def prefix(self) -> KVCache:
        """The cache of everything that stands before a user's words; made once, or taken from the shelf."""
        before = self.frame.before
        found = None if self.shelf is None else self.shelf.get(self.engine, before)
        if found is None:
            found = self.engine.prefill(before)
            if self.shelf is not None:
                self.shelf.put(self.engine, before, found)
        return found.labelled(sender=self.name)

    def read(self, source: str) -> Reading:
        """Read a text and keep its columns.

        Raises:
            UsageError: If the text is empty.
            ContextOverflow: If it does not fit the model.
        """
        if not source.strip():
            raise UsageError(
                "The document is empty: there is nothing to understand.", "Give a text with at least one word."
            )
        prefix = self.prefix
        began = time.perf_counter()
        cache = self.engine.prefill(content(self, source), prefix)
        return Reading(self, source, cache, time.perf_counter() - began)

    def answer(
        self,
        questions: Sequence[str],
        deliveries: Sequence[Delivery],
        limits: Limits,
        options: Sequence[Sequence[str]] = (),
        stems: Sequence[str] = (),
    ) -> tuple[Reply, ...]:
        """Answer questions, each on top of its delivery, in one batch.

        Args:
            questions: What is asked.
            deliveries: One for each question.
            limits: When an answer ends.
            options: For each question, texts whose log-probability is wanted.
            stems: For each question, the words the answer begins with.
        """
        turns = [
            Turn(
                delivery.prompt + self.asked(question, stems[i] if stems else ""),
                delivery.past,
                tuple(options[i]) if options else (),
                delivery.onset,
            )
            for i, (question, delivery) in enumerate(zip(questions, deliveries, strict=True))
        ]
        made = self.engine.generate(turns, limits)
        return tuple(
            Reply(each.text.strip(), _completed(delivery, each), each)
            for each, delivery in zip(made, deliveries, strict=True)
        )

    def ask_cache(
        self, question: str, cache: KVCache, *, new_tokens: int = 64, bytes_moved: int | None = None
    ) -> Reply:
        """Answer a question on top of a cache that came from elsewhere.

        A position-free cache is inserted into this agent's own turn; one with RoPE applied is continued from.

        Args:
            question: What is asked.
            cache: The columns.
            new_tokens: Most tokens of the answer.
            bytes_moved: Payload the cache came in, if it was packed; by default that of its columns as they are.

        Raises:
            UsageError: If the question is empty.
            IncompatibleCache: If another model made the cache.
        """
        if not question.strip():
            raise UsageError("The question is empty.", "Ask something.")
        delivery = received(cache, self, bytes_moved)
        (reply,) = self.answer([BRIEFLY.format(question=question.strip())], [delivery], Limits(new_tokens))
        return reply

    def asked(self, question: str, stem: str = "") -> Prompt:
        """Return a question as the end of the user's turn, and the head of the answer with its first words."""
        begun = Prompt((Piece("template", self.engine.encode(stem)),) if stem else ())
        return content(self, QUESTION.format(question=question.strip())) + self.frame.after + begun


@dataclass(frozen=True)
class Reply:
    """An answer and what it cost to give it."""

    text: str
    delivery: Delivery
    generation: Generation = field(repr=False)


def _completed(delivery: Delivery, made: Generation) -> Delivery:
    seconds = replace(
        delivery.seconds,
        first_token=made.seconds_first_token,
        answer=made.seconds_total - made.seconds_first_token,
    )
    return replace(delivery, seconds=seconds, tokens_prefilled=delivery.tokens_prefilled + made.tokens_prefilled)
