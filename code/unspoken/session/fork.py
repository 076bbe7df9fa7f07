"""Take in what has happened in a fork of a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from unspoken.errors import UsageError
from unspoken.session.events import Event, HandedOver, Rejoined
from unspoken.session.handover import Link, Recognise, hand_over
from unspoken.session.mind import Mind


@runtime_checkable
class Forked(Protocol):
    """A session, as far as joining two of them needs to know it."""

    branch: str
    log: list[Event]

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents' names."""
        ...

    def mind(self, name: str) -> Mind:
        """Return what an agent has in mind."""
        ...


def rejoined_from(
    session: Forked, fork: Forked, link: Link, recognise: Recognise | None
) -> tuple[Rejoined, dict[str, Mind]]:
    """Return what is to be noted, and the minds of a session's agents with what their other selves have learnt.

    Raises:
        UsageError: If the two sessions call different things by one name.
    """
    _require_apart(session, fork)
    common, handed, minds = _common(session.log, fork.log), list[HandedOver](), dict[str, Mind]()
    for name in session.agents:
        if name in fork.agents:
            mind, told = hand_over(fork.mind(name), session.mind(name), link, "", recognise)
            handed += [] if told is None else [told]
            minds |= {} if told is None else {name: mind}
    return Rejoined(fork.branch, link.name, common, tuple(fork.log[common:]), tuple(handed)), minds


def _common(ours: Sequence[Event], theirs: Sequence[Event]) -> int:
    """Return how many events at the beginning of two logs are the same."""
    at = next((at for at, (our, their) in enumerate(zip(ours, theirs, strict=False)) if our != their), None)
    return min(len(ours), len(theirs)) if at is None else at


def _require_apart(session: Forked, fork: Forked) -> None:
    """Refuse two sessions that call different things by one name."""
    known = {held.passage.name: held.passage for name in session.agents for held in session.mind(name).held}
    for name in fork.agents:
        for held in fork.mind(name).held:
            if known.get(held.passage.name, held.passage) != held.passage:
                raise UsageError(
                    f"Both sessions have something they call '{held.passage.name}', and it is not the same.",
                    "Give forks names of their own, and rejoin each once.",
                )
