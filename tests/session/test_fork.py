"""A session forks for nothing, and takes in again what was learnt in the fork."""

from __future__ import annotations

import pytest

from unspoken.errors import UsageError
from unspoken.session import Rejoined

from .talks import ASKED, TOLD, Made


def test_a_fork_has_all_that_was_and_goes_its_own_way(made: Made) -> None:
    talk = made()
    talk.say("lyra", TOLD)
    fork = talk.fork("idea")
    assert fork.mind("lyra") is talk.mind("lyra")
    assert fork.say("cc", ASKED).text == "Anna"
    assert [event.passage.name for event in fork.log if hasattr(event, "passage")][-2:] == ["idea/2:user", "idea/2:cc"]
    assert len(talk.log) == 2
    assert talk.mind("cc").held == ()


def test_what_was_learnt_in_a_fork_is_taken_in_once(made: Made) -> None:
    talk = made(channel="none")
    fork = talk.fork("idea")
    fork.say("cc", TOLD)
    talk.say("cc", "The harbour is quiet.")
    rejoined = talk.rejoin(fork)
    assert isinstance(rejoined, Rejoined)
    (told,) = rejoined.handed
    assert (told.sender, told.receiver, told.channel) == ("cc", "cc", "kv")
    assert told.passages == ("idea/1:user", "idea/1:cc")
    assert talk.say("cc", ASKED).text == "Anna"
    assert talk.rejoin(fork).handed == ()


def test_forks_that_cannot_be_joined_are_refused(made: Made) -> None:
    talk = made()
    talk.say("lyra", TOLD)
    forks = [talk.fork("idea"), talk.fork("idea")]
    for at, fork in enumerate(forks):
        fork.say("cc", f"The harbour is quiet {at}.")
    talk.rejoin(forks[0])
    with pytest.raises(UsageError, match="Both sessions have something they call 'idea/2:user'"):
        talk.rejoin(forks[1])
    other = made()
    other.say("lyra", "Something else.")
    with pytest.raises(UsageError, match="they call '1:user'"):
        talk.rejoin(other)
    for name in ("", "  "):
        with pytest.raises(UsageError, match="cannot be the name of a fork"):
            talk.fork(name)
    with pytest.raises(UsageError, match="cannot be the name of a fork"):
        talk.fork("a").fork("a")
