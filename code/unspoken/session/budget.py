"""How much a session may use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from unspoken.errors import BudgetSpent
from unspoken.session.events import Event, HandedOver, Rejoined, Replied


@dataclass(frozen=True)
class Used:
    """What a session has used.

    Attributes:
        exchanges: Answers of agents.
        tokens: Tokens read and written by models.
        bytes_moved: Payload between agents.
        seconds: Of hand-overs and answers.
    """

    exchanges: int = 0
    tokens: int = 0
    bytes_moved: int = 0
    seconds: float = 0.0

    def __add__(self, other: Used) -> Used:
        return Used(
            self.exchanges + other.exchanges,
            self.tokens + other.tokens,
            self.bytes_moved + other.bytes_moved,
            self.seconds + other.seconds,
        )


def used(events: Iterable[Event]) -> Used:
    """Return what events have used."""
    return sum((_used(event) for event in events), Used())


def _used(event: Event) -> Used:
    match event:
        case HandedOver():
            return Used(0, event.tokens_prefilled, event.bytes_moved, event.seconds)
        case Replied():
            return Used(1, event.tokens_prefilled + len(event.token_ids), 0, event.seconds)
        case Rejoined():
            return used((*event.events, *event.handed))
        case _:
            return Used()


@dataclass(frozen=True)
class Budget:
    """Limits of what a session may use; None is no limit. It is looked at before each exchange.

    Attributes:
        exchanges, tokens, bytes_moved, seconds: As in `Used`.
    """

    exchanges: int | None = None
    tokens: int | None = None
    bytes_moved: int | None = None
    seconds: float | None = None

    def require(self, events: Iterable[Event]) -> None:
        """Refuse to go on once a limit is reached.

        Raises:
            BudgetSpent: If one is.
        """
        spent = asdict(used(events))
        for name, limit in asdict(self).items():
            if limit is not None and spent[name] >= limit:
                raise BudgetSpent(
                    f"The session has used {spent[name]:,.6g} {name.replace('_', ' ')} of {limit:,.6g}.",
                    "Begin another session, fork an earlier point of this one, or give it a larger budget.",
                )
