"""What a number of agents need that hand caches over through a store: bandwidth, memory, waiting; and what it saves.

Arithmetic for averages, and a simulation that shows what averages hide. Hand-overs come at random moments (a Poisson
process), each to one of several equal links where they wait their turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# A link, or a processor, that is busier than this makes its users wait out of proportion.
BUSY = 0.7


@dataclass(frozen=True)
class Demand:
    """What agents do.

    Attributes:
        agents: How many there are.
        per_hour: Hand-overs of each agent in an hour.
        tokens: Of each hand-over.
        bytes_per_token: Of keys and values, as they are coded on the wire.
        known: Share of the tokens that the receiver's store has already and that do not move.
        kept_seconds: How long a cache is kept.
    """

    agents: int
    per_hour: float
    tokens: int
    bytes_per_token: int
    known: float = 0.0
    kept_seconds: float = 3600.0

    @property
    def per_second(self) -> float:
        """Hand-overs of all agents in a second."""
        return self.agents * self.per_hour / 3600

    @property
    def bytes_moved(self) -> float:
        """Bytes of one hand-over."""
        return self.tokens * self.bytes_per_token * (1 - self.known)


@dataclass(frozen=True)
class Needs:
    """What that takes.

    Attributes:
        bytes_per_second: What moves on average.
        links: Links of the given speed, none busier than `BUSY`.
        bytes_kept: What lies in the store on average.
        seconds_to_move: Of one hand-over, alone on its link.
        seconds_waiting: Until its link is free, on average.
        readers: Processors that would read the texts instead, none busier than `BUSY`.
        seconds_to_read: Of one text, alone on its processor.
    """

    bytes_per_second: float
    links: int
    bytes_kept: float
    seconds_to_move: float
    seconds_waiting: float
    readers: int
    seconds_to_read: float


def needs(demand: Demand, link_bytes_per_second: float, tokens_per_second: float) -> Needs:
    """Return what agents need.

    Bytes kept are arrivals times the time each is kept (Little's law). The mean wait for a server that takes the same
    time s for each and is busy a share u of the time is u s / (2 (1 - u)) (Pollaczek and Khinchine, for M/D/1).

    Args:
        demand: What they do.
        link_bytes_per_second: How fast a link is.
        tokens_per_second: How fast a processor reads.
    """
    moved = demand.per_second * demand.bytes_moved
    links = max(1, math.ceil(moved / link_bytes_per_second / BUSY))
    service = demand.bytes_moved / link_bytes_per_second
    busy = moved / link_bytes_per_second / links
    reading = demand.tokens / tokens_per_second
    return Needs(
        bytes_per_second=moved,
        links=links,
        bytes_kept=moved * demand.kept_seconds,
        seconds_to_move=service,
        seconds_waiting=busy * service / (2 * (1 - busy)),
        readers=max(1, math.ceil(demand.per_second * reading / BUSY)),
        seconds_to_read=reading,
    )


@dataclass(frozen=True)
class Simulated:
    """What came of a simulation.

    Attributes:
        seconds_waiting: On average.
        seconds_waiting_p99: What one in a hundred waits longer than.
        bytes_kept: On average, once as many are forgotten as come.
        busy: Share of the time that links are in use.
    """

    seconds_waiting: float
    seconds_waiting_p99: float
    bytes_kept: float
    busy: float


def simulate(
    demand: Demand, link_bytes_per_second: float, links: int, hand_overs: int = 200_000, seed: int = 0
) -> Simulated:
    """Let hand-overs come at random to links chosen at random, and see how they wait.

    Args:
        demand: What agents do.
        link_bytes_per_second: How fast a link is.
        links: How many there are.
        hand_overs: How many are simulated.
        seed: Of the draws.
    """
    draw = np.random.default_rng(seed)
    came = np.cumsum(draw.exponential(1 / demand.per_second, hand_overs))
    chosen = draw.integers(links, size=hand_overs)
    service = demand.bytes_moved / link_bytes_per_second
    waits = np.empty(hand_overs)
    for link in range(links):
        here = np.flatnonzero(chosen == link)
        # Each starts when it has come and the one before has ended. With a fixed service time that is a running maximum
        # of (arrival - service times so far), plus those.
        turns = service * np.arange(len(here))
        waits[here] = np.maximum.accumulate(came[here] - turns) + turns - came[here]
    lasted = came[-1]
    kept = np.searchsorted(came, came) - np.searchsorted(came, came - demand.kept_seconds) + 1
    steady = came > min(demand.kept_seconds, lasted / 2)
    return Simulated(
        seconds_waiting=float(waits.mean()),
        seconds_waiting_p99=float(np.quantile(waits, 0.99)),
        bytes_kept=float(kept[steady].mean() * demand.bytes_moved),
        busy=float(hand_overs * service / lasted / links),
    )


def break_even(bytes_moved: float, seconds_saved: float) -> float:
    """Return the bytes a second a link needs for a cache to arrive before its text would have been read.

    Args:
        bytes_moved: Of the cache.
        seconds_saved: What reading the text takes longer than taking the cache in, the link aside.
    """
    return bytes_moved / seconds_saved if seconds_saved > 0 else math.inf
