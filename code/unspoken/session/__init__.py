"""Agents that talk: who they are, what each has in mind, and sessions in which they hand it on."""

from __future__ import annotations

from unspoken.session.agent import BRIEFLY, QUESTION, Agent, Reply
from unspoken.session.budget import Budget
from unspoken.session.card import Card, read_card
from unspoken.session.events import Asked, Event, HandedOver, Passage, Read, Rejoined, Replied, Said
from unspoken.session.mind import Mind
from unspoken.session.session import Exchange, Session
from unspoken.session.topology import TOPOLOGIES, Topology, topology_named

__all__ = [
    "BRIEFLY",
    "QUESTION",
    "TOPOLOGIES",
    "Agent",
    "Asked",
    "Budget",
    "Card",
    "Event",
    "Exchange",
    "HandedOver",
    "Mind",
    "Passage",
    "Read",
    "Rejoined",
    "Replied",
    "Reply",
    "Said",
    "Session",
    "Topology",
    "read_card",
    "topology_named",
]
