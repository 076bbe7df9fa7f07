"""Do again what happened in a session, without letting the models speak: what they said is on record."""

from __future__ import annotations

from collections.abc import Sequence

from unspoken.errors import UsageError
from unspoken.session.events import Event, HandedOver, Rejoined, Replied, Said
from unspoken.session.handover import Link, handed_again
from unspoken.session.mind import Mind
from unspoken.session.session import Session


def replay(session: Session, events: Sequence[Event]) -> Session:
    """Bring a session in which nothing has happened to where these events leave it, and return it.

    Everything is read again and handed over again by the same channels; nothing is written again.

    Raises:
        UsageError: If an agent or link of an event is none of the session's, or events are missing.
        UnspokenError: As reading and handing over may.
    """
    minds, said = dict[str, Mind](), None

    def mind(name: str) -> Mind:
        return minds.get(name) or session.mind(name)

    for event in events:
        match event:
            case Said():
                said = event.passage
            case HandedOver() if said is not None:
                link = session.link((event.sender, event.receiver))
                minds[event.receiver] = handed_again(mind(event.sender), mind(event.receiver), link, said.text, event)
            case Replied(passage=passage) if said is not None:
                listening = mind(passage.speaker).hears(said)
                minds[passage.speaker] = listening.having_said(passage, event.token_ids)
            case Rejoined():
                fork = replay(session.anew(branch=event.branch), (*events[: event.common], *event.events))
                for told in event.handed:
                    other = fork.mind(told.sender)
                    minds[told.receiver] = handed_again(other, mind(told.receiver), Link(event.channel), "", told)
            case HandedOver() | Replied():
                raise UsageError("The log begins in the middle of an exchange.", "Give it from its beginning.")
            case _:
                continue
    session.restore(events, minds)
    return session
