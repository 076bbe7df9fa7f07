"""Agents that talk: who they are, what they read, and a session that asks one about what another read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from unspoken.cache import KVCache
from unspoken.channels.kv import received
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Channel, Delivery, Reading, Request
from unspoken.channels.text import content
from unspoken.engines.protocol import Engine, Frame, Generation, Limits, Piece, Prompt, Turn
from unspoken.errors import StorageError, UsageError

QUESTION = "\n\n{question}"
# Small models ramble or drift off the text without it.
BRIEFLY = "{question} Answer briefly."


def read_card(path: str | Path) -> tuple[str, str]:
    """Return name and card of a YAML card.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If it is no such card.
    """
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(
            f"The card {path} cannot be read: {error.strerror}.", "Give an existing YAML file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"The card {path} is not YAML.", "It holds two fields: name and card.") from error
    if not isinstance(data, dict) or not {"name", "card"} <= data.keys():
        raise UsageError(f"The card {path} lacks a name or a card.", "It holds two fields: name and card.")
    return str(data["name"]), str(data["card"])


@dataclass(frozen=True)
class Agent:
    """A name, a card and a model.

    Args:
        name: What the agent is called.
        engine: The model it runs on, from `load_model`; agents may share one.
        card: Its system prompt; by default a plain one with its name.
    """

    name: str
    engine: Engine = field(repr=False)
    card: str = ""

    @staticmethod
    def from_card(path: str | Path, engine: Engine) -> Agent:
        """Return an agent from a YAML card with `name` and `card`.

        Raises:
            StorageError: If the file cannot be read.
            UsageError: If it is no such card.
        """
        name, card = read_card(path)
        return Agent(name, engine, card)

    @cached_property
    def frame(self) -> Frame:
        """The model's chat template with this agent's card in place."""
        return self.engine.frame(self.card or f"You are {self.name.capitalize()}, a helpful assistant.")

    @cached_property
    def prefix(self) -> KVCache:
        """The cache of everything that stands before a user's words; made once."""
        return self.engine.prefill(self.frame.before).labelled(sender=self.name)

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


@dataclass(frozen=True)
class Event:
    """One thing that happened in a session, as plain data."""

    kind: str
    agent: str
    detail: dict[str, object]


class Session:
    """Agents and the channel between them.

    Args:
        agents: Two or more, with different names.
        channel: A channel's name with its options: "kv", "text", "text@32", "kv+float32"...

    Raises:
        UsageError: If names repeat or the channel is unknown.
    """

    def __init__(self, *agents: Agent, channel: str = "kv") -> None:
        names = [agent.name for agent in agents]
        if len(agents) < 2 or len(set(names)) != len(names):
            raise UsageError(f"A session has two or more agents of different names, found {names}.", "Name them apart.")
        self._agents = {agent.name: agent for agent in agents}
        self._channel: Channel = build_channel(channel)
        self._readings: dict[tuple[str, str], Reading] = {}
        self.channel = channel
        self.log: list[Event] = []

    def ask(
        self,
        receiver: str,
        question: str,
        *,
        about: str | Mapping[str, str],
        sender: str | None = None,
        new_tokens: int = 64,
    ) -> Reply:
        """Ask one agent about a text that another has read, or about several texts that several have.

        Args:
            receiver: Name of the agent that answers; it never sees the text itself.
            question: What is asked.
            about: The text the sender reads; read once, however many questions follow. Or the text of each sender by
                its name, in the order in which the receiver gets them.
            sender: Name of the agent that reads; by default the first other one.
            new_tokens: Most tokens of the answer.

        Raises:
            UsageError: If an agent is unknown or to be asked about what it reads itself, or text or question is empty.
        """
        if not question.strip():
            raise UsageError("The question is empty.", "Ask something.")
        asked, texts = self._agent(receiver), self._texts(receiver, about, sender)
        readings = tuple(self._read(self._agent(name), text) for name, text in texts.items())
        delivery = self._channel.send([Request(readings, question)], asked)[0]
        (reply,) = asked.answer([BRIEFLY.format(question=question.strip())], [delivery], Limits(new_tokens))
        senders = ", ".join(texts)
        self.log.append(Event("ask", receiver, {"question": question, "sender": senders, "answer": reply.text}))
        return reply

    def _texts(self, receiver: str, about: str | Mapping[str, str], sender: str | None) -> Mapping[str, str]:
        """Return the text of each sender by its name; nobody reads before all are known."""
        if isinstance(about, str):
            about = {sender or next(name for name in self._agents if name != receiver): about}
        elif sender is not None or not about:
            raise UsageError(
                f"The texts of {list(about)} and the sender '{sender}' were given.",
                "Name one sender or more with a text each, and no other sender.",
            )
        for name in about:
            self._agent(name)
        if receiver in about:
            raise UsageError(
                f"The agent '{receiver}' would be asked about a text that it reads itself.", "Name another sender."
            )
        return about

    def _read(self, sender: Agent, source: str) -> Reading:
        if (sender.name, source) not in self._readings:
            self._readings[sender.name, source] = sender.read(source)
            self.log.append(Event("read", sender.name, {"source": source}))
        return self._readings[sender.name, source]

    def _agent(self, name: str) -> Agent:
        if name not in self._agents:
            raise UsageError(f"There is no agent '{name}' in this session.", f"There are {', '.join(self._agents)}.")
        return self._agents[name]


def _completed(delivery: Delivery, made: Generation) -> Delivery:
    seconds = replace(
        delivery.seconds,
        first_token=made.seconds_first_token,
        answer=made.seconds_total - made.seconds_first_token,
    )
    return replace(delivery, seconds=seconds, tokens_prefilled=delivery.tokens_prefilled + made.tokens_prefilled)
