"""Sessions on a server: agents that talk, and those who watch them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn.functional import adaptive_avg_pool1d

from unspoken.engines.protocol import Limits
from unspoken.serve.refusals import NoSuchTalk, TooManyTalks
from unspoken.serve.schema import MOST_TOKENS, AgentName
from unspoken.serve.service import Service
from unspoken.serve.worker import Call
from unspoken.session import Agent, Event, Exchange, Mind, Session

MOST_TALKS, MOST_CELLS = 32, 256
EVERYBODY = "all"
Side = Literal["main", "beside"]


class WantedAgent(BaseModel):
    """An agent that shall take part."""

    model_config = ConfigDict(extra="forbid")
    name: AgentName
    card: Annotated[str, Field(max_length=20_000)] = ""


class WantedTalk(BaseModel):
    """A session that shall be held."""

    model_config = ConfigDict(extra="forbid")
    agents: Annotated[list[WantedAgent], Field(min_length=2, max_length=8)]
    channel: Annotated[str, Field(max_length=100)] = "kv"
    topology: Annotated[str, Field(max_length=20)] = "table"
    beside: Annotated[str, Field(max_length=100)] | None = None


class WantedWords(BaseModel):
    """Something that shall be said: to one agent, or to `all`."""

    model_config = ConfigDict(extra="forbid")
    to: AgentName
    words: Annotated[str, Field(min_length=1, max_length=100_000)]
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 64


@dataclass
class Talk:
    """One session, the same by another channel beside it, and what has been seen of both.

    Attributes:
        name: Its name; as good as random.
        owner: Whose it is.
        session: The session.
        twin: The same by another channel.
        seen: What those who watch are told, in order.
        news: Set, and replaced, whenever there is more.
        is_over: Whether it was ended; those who watch it are then let go.
    """

    name: str
    owner: str
    session: Session
    twin: Session | None
    loop: asyncio.AbstractEventLoop
    seen: list[dict[str, Any]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False

    def tell(self, side: Side, told: dict[str, Any]) -> None:
        """Let those who watch know of something; called from any thread."""
        self.loop.call_soon_threadsafe(self._tell, {"side": side, "at": time.time()} | told)

    def _tell(self, told: dict[str, Any]) -> None:
        self.seen.append({"number": len(self.seen)} | told)
        self.news.set()
        self.news = asyncio.Event()

    async def watch(self, since: int) -> AsyncIterator[dict[str, Any] | None]:
        """Give what has been seen from a number on, and what is seen from now on; None when nothing is for a while."""
        while True:
            news = self.news
            while since < len(self.seen):
                yield self.seen[since]
                since += 1
            if self.is_over:
                return
            try:
                await asyncio.wait_for(news.wait(), timeout=10)
            except TimeoutError:
                yield None


class Talks:
    """The sessions of a server.

    Args:
        service: Whose model they use.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._talks: dict[str, Talk] = {}

    def begin(self, wanted: WantedTalk, owner: str) -> Future[Talk]:
        """Begin a session, and return it when its agents have read their cards.

        Raises:
            UsageError: As `Session` does.
            TooManyTalks: If there are too many.
            Busy: If too many wait for the model.
        """
        if len(self._talks) >= MOST_TALKS:
            raise TooManyTalks
        agents = (Agent(each.name, self._service.engine, each.card) for each in wanted.agents)
        session = Session(*agents, channel=wanted.channel, topology=wanted.topology, recognise=self._service.recognise)
        twin = None if wanted.beside is None else session.anew(channel=wanted.beside)
        made = Talk(secrets.token_urlsafe(12), owner, session, twin, asyncio.get_running_loop())
        session.watch = lambda event: made.tell("main", seen(event))
        if twin is not None:
            twin.watch = lambda event: made.tell("beside", seen(event))

        def read() -> Talk:
            for each in (session, twin):
                for name in () if each is None else each.agents:
                    each.mind(name)  # type: ignore[union-attr]  # There is no name where there is none.
            self._talks[made.name] = made
            return made

        return self._service.worker.submit(Call(read, self._deadline()))

    def _deadline(self) -> float:
        return time.monotonic() + self._service.settings.request_seconds

    def get(self, name: str, agent: str) -> Talk:
        """Return an agent's session.

        Raises:
            NoSuchTalk: If it has none of this name.
        """
        found = self._talks.get(name)
        if found is None or found.owner != agent:
            raise NoSuchTalk
        return found

    def of(self, agent: str) -> list[Talk]:
        """Return an agent's sessions."""
        return [talk for talk in self._talks.values() if talk.owner == agent]

    def end(self, name: str, agent: str) -> None:
        """Forget a session."""
        talk = self.get(name, agent)
        del self._talks[name]
        talk.is_over = True
        talk.news.set()

    def say(self, talk: Talk, wanted: WantedWords) -> Future[list[dict[str, Any]]]:
        """Say something in a session, in its turn, and return what will come of it.

        Raises:
            Busy: If too many wait for the model.
            UsageError: If there is no such agent.
        """
        if wanted.to != EVERYBODY:
            talk.session.agent(wanted.to)
        return self._service.worker.submit(Call(lambda: self._said(talk, wanted), self._deadline()))

    def _said(self, talk: Talk, wanted: WantedWords) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        sides: tuple[tuple[Side, Session | None], ...] = (("main", talk.session), ("beside", talk.twin))
        for side, session in sides:
            if session is None:
                continue
            try:
                made += [seen(event) for each in self._exchanges(talk, side, session, wanted) for event in each.events]
            except Exception as error:
                talk.tell(side, {"event": "failed", "problem": str(error)})
                raise
            talk.tell(side, {"event": "settled", "minds": [summary(session.mind(name)) for name in session.agents]})
        return made

    def _exchanges(self, talk: Talk, side: Side, session: Session, wanted: WantedWords) -> list[Exchange]:
        def hear(_: int, piece: str) -> None:
            talk.tell(side, {"event": "piece", "text": piece})

        limits = Limits(wanted.max_tokens)
        if wanted.to == EVERYBODY:
            return list(session.round(wanted.words, limits=limits, hear=hear))
        return [session.say(wanted.to, wanted.words, limits=limits, hear=hear)]


def seen(event: Event) -> dict[str, Any]:
    """Return an event as plain data."""
    told: dict[str, Any] = msgspec.to_builtins(event)
    return told


def state(talk: Talk) -> dict[str, Any]:
    """Return a session as plain data."""
    session, twin = talk.session, talk.twin
    return {
        "id": talk.name,
        "agents": list(session.agents),
        "links": [{"sender": sender, "receiver": to, "channel": name} for (sender, to), name in session.links.items()],
        "channel": session.channel,
        "topology": session.topology,
        "beside": None if twin is None else twin.channel,
        "minds": [summary(session.mind(name)) for name in session.agents],
        "seen": len(talk.seen),
    }


def summary(mind: Mind) -> dict[str, Any]:
    """Return what can be told of a mind in a line."""
    return {
        "agent": mind.name,
        "columns": mind.columns,
        "bytes": mind.prefix.bytes_held(),
        "passages": sum(held.start < held.stop for held in mind.held),
    }


def picture(mind: Mind) -> dict[str, Any]:
    """Return how large a mind's values are, by layer and column, and where its passages stand.

    Columns are averaged so that there are at most `MOST_CELLS` in a row; rows are scaled to their largest cell.
    """
    norms = torch.stack([layer.values.float().norm(dim=-1).mean(dim=0) for layer in mind.prefix.layers])
    cells = min(MOST_CELLS, norms.shape[1])
    rows = adaptive_avg_pool1d(norms[:, 1:] if norms.shape[1] > 1 else norms, cells)  # The sink outshines all others.
    rows = rows / rows.amax(dim=1, keepdim=True).clamp(min=1e-9)
    return summary(mind) | {
        "rows": [[round(float(cell), 3) for cell in row] for row in rows],
        "spans": [
            {"speaker": held.passage.speaker, "hearer": held.passage.hearer, "start": held.start, "stop": held.stop}
            for held in mind.held
            if held.start < held.stop
        ],
    }
