"""Who hears whom, and who speaks after whom, when the user says something to all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

from unspoken.errors import UsageError

Pair = tuple[str, str]
ADD = "What do you add?"
GO_ON = "Go on from this."
REVIEW = "What is wrong or missing in this?"
MEND = "Answer again, and mend that."


@dataclass(frozen=True)
class Topology:
    """How agents are joined.

    Attributes:
        links: From the agents' names, which of them hand on to which: (sender, receiver).
        turns: From names and the user's words, who is told what, in order.
        least: How many agents it takes.
        most: How many it can have; None for any number.
    """

    links: Callable[[Sequence[str]], tuple[Pair, ...]]
    turns: Callable[[Sequence[str], str], tuple[Pair, ...]]
    least: int = 2
    most: int | None = None


def _all(names: Sequence[str]) -> tuple[Pair, ...]:
    return tuple(permutations(names, 2))


def _one_after_the_other(names: Sequence[str], words: str, then: str) -> tuple[Pair, ...]:
    first, *others = names
    return ((first, words), *((name, then) for name in others))


TOPOLOGIES: Mapping[str, Topology] = {
    "table": Topology(_all, lambda names, words: _one_after_the_other(names, words, ADD)),
    "relay": Topology(
        lambda names: tuple(pairwise(names)), lambda names, words: _one_after_the_other(names, words, GO_ON)
    ),
    "fan-out": Topology(
        lambda names: tuple((names[0], name) for name in names[1:]),
        lambda names, words: _one_after_the_other(names, words, ADD),
    ),
    "critic": Topology(
        _all, lambda names, words: ((names[0], words), (names[1], REVIEW), (names[0], MEND)), least=2, most=2
    ),
}
"""`table`: each hears all others. `relay`: each hears the one before. `fan-out`: all hear the first, and nobody else.
`critic`: the first answers, the second finds fault, the first answers again."""


def topology_named(name: str, agents: Sequence[str]) -> Topology:
    """Return a topology that these agents can form.

    Raises:
        UsageError: If there is none of this name, or it takes another number of agents.
    """
    if name not in TOPOLOGIES:
        raise UsageError(f"There is no topology '{name}'.", f"There are {', '.join(TOPOLOGIES)}.")
    found = TOPOLOGIES[name]
    if len(agents) < found.least or (found.most is not None and len(agents) > found.most):
        wanted = f"{found.least}" if found.least == found.most else f"{found.least} or more"
        raise UsageError(f"The topology '{name}' is for {wanted} agents, found {len(agents)}.", "Name as many.")
    return found


def routes(links: Mapping[Pair, object], receiver: str) -> tuple[Pair, ...]:
    """Return the links on the shortest ways from every agent to one, the farthest first.

    Handing over along them in this order brings everything to the receiver that can get there.
    """
    levels: list[list[Pair]] = []
    reached, edge = {receiver}, [receiver]
    while edge:
        nearest: dict[str, Pair] = {}
        for sender, to in links:
            if to in edge and sender not in reached:
                nearest.setdefault(sender, (sender, to))
        levels.append(list(nearest.values()))
        reached.update(nearest)
        edge = list(nearest)
    return tuple(pair for level in reversed(levels) for pair in level)
