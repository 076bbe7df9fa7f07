"""What a session is made of, as plain data."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from unspoken.engines.protocol import Engine
from unspoken.errors import IncompatibleCache
from unspoken.session.agent import Agent
from unspoken.session.budget import Budget
from unspoken.session.handover import Recognise
from unspoken.session.session import Session
from unspoken.session.shelf import Shelf

VERSION = 1


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One agent of a session.

    Attributes:
        name: What it is called.
        card: Its system prompt; empty for the plain one.
        model, engine: What it runs on, as `load_model` takes them.
        weights: Fingerprint of the model it ran on; None if it has not run.
        key: Name of the key it seals its columns with; None seals nothing.
    """

    name: str
    card: str
    model: str
    engine: str
    weights: str | None = None
    key: str | None = None


class SessionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a session is made of.

    Attributes:
        agents: Who takes part.
        channel: The usual channel.
        topology: Who hears whom.
        links: Channels of single links: sender, receiver, channel.
        branch: What the names of its passages begin with.
        version: Of this description.
    """

    agents: tuple[AgentConfig, ...]
    channel: str = "kv"
    topology: str = "table"
    links: tuple[tuple[str, str, str], ...] = ()
    branch: str = ""
    version: int = VERSION

    def on(self, engines: Sequence[Engine]) -> SessionConfig:
        """Return the same with the fingerprint of the model of each agent.

        Raises:
            IncompatibleCache: If one has run on another model.
        """
        for agent, engine in zip(self.agents, engines, strict=True):
            if agent.weights not in (None, engine.spec.weights):
                raise IncompatibleCache(
                    f"'{agent.name}' has run on a model with weights {agent.weights[:12]}, and '{engine.spec.name}' "
                    f"has {engine.spec.weights[:12]}.",
                    "Give the model that the session was held with, or begin another session.",
                )
        agents = tuple(
            msgspec.structs.replace(agent, weights=engine.spec.weights)
            for agent, engine in zip(self.agents, engines, strict=True)
        )
        return msgspec.structs.replace(self, agents=agents)

    def session(
        self,
        engines: Sequence[Engine],
        budget: Budget = Budget(),  # noqa: B008 - frozen
        recognise: Recognise | None = None,
        shelf: Shelf | None = None,
    ) -> Session:
        """Return a session in which nothing has happened.

        Args:
            engines: The model of each agent.
            budget: What it may use.
            recognise: Names the agent whose columns arrive.
            shelf: Where the caches of long cards are kept.

        Raises:
            UsageError: As `Session` does.
        """
        agents = (Agent(each.name, engine, each.card, shelf) for each, engine in zip(self.agents, engines, strict=True))
        return Session(
            *agents,
            channel=self.channel,
            topology=self.topology,
            links={(sender, receiver): channel for sender, receiver, channel in self.links},
            budget=budget,
            recognise=recognise,
            branch=self.branch,
        )
