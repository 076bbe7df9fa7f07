"""A session: agents that are told things, hand on what they know, and answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unspoken.channels.protocol import Reading, Request
from unspoken.engines.protocol import Hearer, Limits
from unspoken.errors import UsageError
from unspoken.session.agent import BRIEFLY, Agent, Reply
from unspoken.session.budget import Budget
from unspoken.session.events import Asked, Event, HandedOver, Passage, Read, Rejoined, Replied, Said
from unspoken.session.fork import rejoined_from
from unspoken.session.handover import Link, Recognise, hand_over, linked
from unspoken.session.mind import Mind, spoken
from unspoken.session.topology import Pair, routes, topology_named

USER = "user"
ANSWER_TOKENS = 64

Keep = Callable[[Sequence[Event], Mapping[str, Mind]], None]
"""Is told of events and of the minds they have made, before they count: what it refuses has not happened."""

Watch = Callable[[Event], None]
"""Is told of each event as soon as it is there, before it is known whether the exchange comes to its end."""


@dataclass(frozen=True)
class Exchange:
    """What the user said, what was handed over for the answer, and the answer."""

    said: Said
    handed: tuple[HandedOver, ...]
    replied: Replied

    @property
    def text(self) -> str:
        """The answer."""
        return self.replied.passage.text

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened, in order."""
        return (self.said, *self.handed, self.replied)


class Session:
    """Agents, and the channels between them.

    `ask` is one question about documents, and leaves nobody with anything in mind. `say` and `round` are turns of a
    conversation: what an agent was told, was handed and has said stays with it.

    Args:
        agents: Two or more, with different names.
        channel: A channel's name with its options: "kv", "text", "text@32", "kv+float32"...
        topology: Who hears whom: "table", "relay", "fan-out" or "critic".
        links: Channels of single links, (sender, receiver), where they are not the usual one.
        budget: What the conversation may use.
        recognise: Names the agent whose columns arrive, if somebody shall look.
        branch: What the names of its passages begin with; forks have one.

    Attributes:
        log: What happened.
        keep: Writes down what happens.
        watch: Sees it happen.

    Raises:
        UsageError: If names repeat, a channel or topology is unknown, or a link is none of the topology's.
    """

    def __init__(
        self,
        *agents: Agent,
        channel: str = "kv",
        topology: str = "table",
        links: Mapping[Pair, str] | None = None,
        budget: Budget = Budget(),  # noqa: B008 - frozen
        recognise: Recognise | None = None,
        branch: str = "",
    ) -> None:
        names = [agent.name for agent in agents]
        if len(agents) < 2 or len(set(names)) != len(names) or USER in names:
            raise UsageError(
                f"A session has two or more agents of different names, none of them '{USER}', found {names}.",
                "Name them apart.",
            )
        self._agents = {agent.name: agent for agent in agents}
        self._topology = topology_named(topology, names)
        self._links = linked(self._topology.links(names), channel, links or {})
        self._readings: dict[tuple[str, str], Reading] = {}
        self._recognise = recognise
        self._minds: dict[str, Mind] = {}
        self._usual = Link(channel)
        self.channel, self.topology, self.branch, self.budget = channel, topology, branch, budget
        self.log: list[Event] = []
        self.keep: Keep | None = None
        self.watch: Watch | None = None

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents' names."""
        return tuple(self._agents)

    @property
    def links(self) -> Mapping[Pair, str]:
        """The channel of each link, by (sender, receiver)."""
        return {pair: link.name for pair, link in self._links.items()}

    def link(self, pair: Pair) -> Link:
        """Return the link from one agent to another, (sender, receiver).

        Raises:
            UsageError: If there is none.
        """
        if pair not in self._links:
            raise UsageError(f"There is no link from {' to '.join(pair)} in this session.", "Choose another topology.")
        return self._links[pair]

    def restore(self, events: Sequence[Event], minds: Mapping[str, Mind]) -> None:
        """Take over what has happened, and what it has left in minds, from a record of it."""
        self.log.extend(events)
        self._minds.update(minds)

    def mind(self, name: str) -> Mind:
        """Return what an agent has in mind.

        Raises:
            UsageError: If there is no such agent.
        """
        if name not in self._minds:
            self._minds[name] = Mind.of(self.agent(name))
        return self._minds[name]

    def say(
        self,
        to: str,
        words: str,
        *,
        limits: Limits = Limits(ANSWER_TOKENS),  # noqa: B008
        hear: Hearer | None = None,
    ) -> Exchange:
        """Say something to one agent, which first gets to know what the others know and it does not.

        Args:
            to: Its name.
            words: What is said.
            limits: When the answer ends, and how its tokens are chosen.
            hear: Is told the answer piece by piece.

        Raises:
            UsageError: If there is no such agent, nothing is said, or a link's channel leaves nothing to go on from.
            BudgetSpent: If the session may not go on.
            ContextOverflow: If an agent has more in mind than its model can hold.
        """
        self.agent(to)
        if not words.strip():
            raise UsageError("Nothing is said.", f"Say something to {to}.")
        self.budget.require(self.log)
        said = Passage(self._passage_name(USER), USER, to, words.strip())
        self._seen(Said(said))
        minds, handed = self._told(to, said.text)
        mind = minds.get(to) or self.mind(to)
        began = time.perf_counter()
        listening = mind.hears(said)
        heard = time.perf_counter() - began
        made = listening.speaks(limits, hear)
        answer = Passage(self._passage_name(to), to, None, made.text.strip())
        tokens = spoken(mind.engine, made)
        minds[to] = listening.having_said(answer, tokens)
        replied = Replied(
            passage=answer,
            token_ids=tokens,
            tokens_prefilled=listening.columns - mind.columns,
            seconds_first_token=heard + made.seconds_first_token,
            seconds=heard + made.seconds_total,
        )
        self._seen(replied)
        exchange = Exchange(Said(said), handed, replied)
        self._happened(exchange.events, minds)
        return exchange

    def round(
        self,
        words: str,
        *,
        limits: Limits = Limits(ANSWER_TOKENS),  # noqa: B008
        hear: Hearer | None = None,
    ) -> Iterator[Exchange]:
        """Say something to all: agents speak one after the other, as the topology has it.

        Args:
            words: What is said.
            limits: When each answer ends.
            hear: Is told the answers piece by piece.

        Raises:
            UnspokenError: As `say` does; exchanges that were made before stay.
        """
        for to, then in self._topology.turns(self.agents, words):
            yield self.say(to, then, limits=limits, hear=hear)

    def fork(self, branch: str) -> Session:
        """Return a session that goes its own way from here; what is common is not computed again.

        Args:
            branch: A name for it, unlike those of other forks that shall be joined to this one again.

        Raises:
            UsageError: If the name is empty or this session's own.
        """
        name = f"{branch.strip()}/"
        if not branch.strip() or name == self.branch:
            raise UsageError(f"'{branch}' cannot be the name of a fork of this session.", "Give another name.")
        twin = self.anew(branch=name)
        twin.log, twin._minds = list(self.log), dict(self._minds)
        return twin

    def anew(self, *, channel: str | None = None, branch: str | None = None) -> Session:
        """Return a session of the same agents and settings in which nothing has happened.

        Args:
            channel: Another channel, for all links.
            branch: What the names of its passages begin with.
        """
        return Session(
            *self._agents.values(),
            channel=channel or self.channel,
            topology=self.topology,
            links=self.links if channel is None else None,
            budget=self.budget,
            recognise=self._recognise,
            branch=self.branch if branch is None else branch,
        )

    def rejoin(self, fork: Session, channel: str = "kv") -> Rejoined:
        """Let each agent take in what its other self has learnt in a fork of this session.

        Args:
            fork: The fork, or a session that has the same beginning.
            channel: How it is handed over.

        Raises:
            UsageError: If the two call different things by one name.
            BudgetSpent: If the session may not go on.
        """
        self.budget.require(self.log)
        rejoined, minds = rejoined_from(self, fork, Link(channel), self._recognise)
        self._happened((rejoined,), minds)
        return rejoined

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
        asked, texts = self.agent(receiver), self._texts(receiver, about, sender)
        readings = tuple(self._read(self.agent(name), text) for name, text in texts.items())
        delivery = self._usual.channel.send([Request(readings, question)], asked)[0]
        (reply,) = asked.answer([BRIEFLY.format(question=question.strip())], [delivery], Limits(new_tokens))
        self._happened((Asked(receiver, question, tuple(texts), reply.text),), {})
        return reply

    def _told(self, to: str, words: str) -> tuple[dict[str, Mind], tuple[HandedOver, ...]]:
        """Return the minds that have changed once everything that can get to an agent is there, and what moved."""
        minds, handed = dict[str, Mind](), list[HandedOver]()
        for pair in routes(self._links, to):
            sender, receiver = (minds.get(name) or self.mind(name) for name in pair)
            mind, told = hand_over(sender, receiver, self._links[pair], words, self._recognise)
            if told is not None:
                minds[receiver.name] = mind
                handed.append(told)
                self._seen(told)
        return minds, tuple(handed)

    def _seen(self, event: Event) -> None:
        if self.watch is not None:
            self.watch(event)

    def _happened(self, events: Sequence[Event], minds: Mapping[str, Mind]) -> None:
        if self.keep is not None:
            self.keep(events, minds)
        self.restore(events, minds)

    def _passage_name(self, speaker: str) -> str:
        exchanges = sum(isinstance(event, Replied) for event in self.log)
        return f"{self.branch}{exchanges + 1}:{speaker}"

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
            self.agent(name)
        if receiver in about:
            raise UsageError(
                f"The agent '{receiver}' would be asked about a text that it reads itself.", "Name another sender."
            )
        return about

    def _read(self, sender: Agent, source: str) -> Reading:
        if (sender.name, source) not in self._readings:
            self._readings[sender.name, source] = sender.read(source)
            self._happened((Read(sender.name, source),), {})
        return self._readings[sender.name, source]

    def agent(self, name: str) -> Agent:
        """Return an agent by its name.

        Raises:
            UsageError: If there is none of that name.
        """
        if name not in self._agents:
            raise UsageError(f"There is no agent '{name}' in this session.", f"There are {', '.join(self._agents)}.")
        return self._agents[name]
