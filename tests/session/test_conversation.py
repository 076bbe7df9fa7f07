"""What one agent was told, another knows when it is asked; and who knows what does not depend on luck."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch

from unspoken.engines.fake import UNKNOWN, FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.errors import BudgetSpent, ContextOverflow, UsageError
from unspoken.session import Agent, Budget, HandedOver, Mind, Passage, Replied, Said, Session
from unspoken.session.budget import Used, used

from .talks import ASKED, TOLD, Made


@pytest.mark.parametrize("channel", ["kv", "kv+int8", "compose:align", "full-text", "text"])
def test_a_fact_told_to_one_agent_is_answered_by_another(made: Made, channel: str) -> None:
    talk = made(channel=channel)
    assert talk.say("lyra", TOLD).text == UNKNOWN
    exchange = talk.say("cc", ASKED)
    assert exchange.text == "Anna"
    (told,) = exchange.handed
    assert (told.sender, told.receiver, told.channel) == ("lyra", "cc", channel)
    assert told.passages == ("1:user", "1:lyra")
    words = len(TOLD) + len(UNKNOWN)
    if channel in ("full-text", "text"):
        assert told.tokens_skipped == 0
        assert all(told.messages)
    else:
        assert told.messages == (None, None)
        assert told.tokens_skipped == words
        assert told.tokens_prefilled == len("lyra was told: \nlyra said: ")


def test_nothing_is_known_where_nothing_is_handed_over(made: Made, fake: FakeEngine) -> None:
    talk = made(channel="none")
    talk.say("lyra", TOLD)
    alone = Session(*(Agent(name, fake) for name in ("cc", "bob")))
    exchange, expected = talk.say("cc", ASKED), alone.say("cc", ASKED)
    assert exchange.text == expected.text == UNKNOWN
    assert exchange.handed[0].bytes_moved == 0
    # Not even the heading over it is read.
    mine, theirs = talk.mind("cc").prefix, alone.mind("cc").prefix
    assert mine.manifest.token_ids == theirs.manifest.token_ids
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(mine.layers, theirs.layers, strict=True))


def test_only_what_is_new_is_handed_over(made: Made) -> None:
    talk = made()
    talk.say("lyra", TOLD)
    talk.say("cc", ASKED)
    assert talk.say("cc", "Who is it?").handed == ()
    talk.say("lyra", "The harbour is quiet.")
    (told,) = talk.say("cc", "What is quiet?").handed
    assert told.passages == ("4:user", "4:lyra")
    # Everybody gets everything once, from whomever it comes.
    handed = talk.say("vera", ASKED).handed
    names = [name for told in handed for name in told.passages]
    assert [told.sender for told in handed] == ["lyra", "cc"]
    assert sorted(names) == sorted(
        f"{at}:{name}" for at, other in enumerate(("lyra", "cc", "cc", "lyra", "cc"), 1) for name in ("user", other)
    )


def test_an_agent_remembers_what_it_was_told_itself(made: Made) -> None:
    talk = made(channel="none")
    talk.say("cc", TOLD)
    talk.say("cc", "The harbour is quiet.")
    assert talk.say("cc", ASKED).text == "Anna"


def test_a_mind_holds_what_a_reader_of_the_whole_conversation_would(fake: FakeEngine, made: Made) -> None:
    talk = made(channel="kv+float32")
    talk.say("lyra", TOLD)
    talk.say("cc", ASKED)
    frame = Agent("cc", fake).frame
    body = f"lyra was told: {TOLD}\nlyra said: {UNKNOWN}\n{ASKED}"
    ids = (*frame.before.token_ids, *fake.encode(body), *frame.after.token_ids, *fake.encode("Anna"))
    assert talk.mind("cc").prefix.manifest.token_ids == (*ids, *frame.between.token_ids)
    assert talk.mind("cc").prefix.positions.tolist() == list(range(talk.mind("cc").columns))


def test_passages_stand_where_a_mind_says_they_do(fake: FakeEngine, made: Made) -> None:
    talk = made()
    talk.say("lyra", TOLD)
    talk.say("cc", ASKED)
    for name in talk.agents:
        ids = talk.mind(name).prefix.manifest.token_ids or ()
        for held in talk.mind(name).held:
            assert fake.decode(ids[held.start : held.stop]) == held.passage.text


def test_what_fails_has_not_happened(made: Made, fake: FakeEngine) -> None:
    talk = made()
    talk.say("lyra", TOLD)
    log, minds = list(talk.log), {name: talk.mind(name) for name in talk.agents}
    for failing in ("generate", "prefill"):
        with mock.patch.object(FakeEngine, failing, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            talk.say("cc", ASKED)
        assert talk.log == log
        assert all(talk.mind(name) is mind for name, mind in minds.items())
    assert talk.say("cc", ASKED).text == "Anna"


def test_an_answer_is_heard_while_it_is_made(made: Made) -> None:
    talk, heard = made(), list[str]()
    talk.say("lyra", TOLD)
    exchange = talk.say("cc", ASKED, limits=Limits(2), hear=lambda _, piece: heard.append(piece))
    assert "".join(heard) == exchange.text == "An"


def test_an_empty_answer_is_no_passage_to_hand_on(made: Made) -> None:
    talk = made()
    talk.say("lyra", TOLD, limits=Limits(stop=("u",)))
    assert talk.log[-1].passage.text == ""
    assert talk.log[-1].token_ids == ()
    assert talk.say("cc", ASKED).handed[0].passages == ("1:user",)


def test_an_answer_ends_where_its_text_does(made: Made, fake: FakeEngine) -> None:
    talk = made()
    talk.say("lyra", TOLD)
    replied = talk.say("cc", ASKED, limits=Limits(stop=("na",))).replied
    assert (replied.passage.text, fake.decode(replied.token_ids)) == ("An", "An")


@pytest.mark.parametrize("channel", ["kv-continue", "compose:published"])
def test_a_channel_that_leaves_nothing_to_go_on_from_is_refused(made: Made, channel: str) -> None:
    talk = made(channel=channel)
    talk.say("lyra", TOLD)
    with pytest.raises(UsageError, match=f"'{channel}' hands over for one question"):
        talk.say("cc", ASKED)
    assert talk.mind("cc").held == ()


def test_sessions_and_words_that_cannot_be_are_refused(made: Made, fake: FakeEngine) -> None:
    talk = made()
    for to, words, message in (
        ("bob", "Hi", "no agent 'bob'"),
        ("cc", " \n", "Nothing is said"),
        ("", "Hi", "no agent"),
    ):
        with pytest.raises(UsageError, match=message):
            talk.say(to, words)
    with pytest.raises(UsageError, match="none of them 'user'"):
        Session(Agent("user", fake), Agent("cc", fake))
    assert talk.log == []


def test_a_conversation_longer_than_the_context_is_refused_and_stays_as_it_was() -> None:
    small = FakeEngine(context=160)
    talk = Session(Agent("lyra", small), Agent("cc", small))
    talk.say("lyra", TOLD)
    with pytest.raises(ContextOverflow):
        talk.say("lyra", "x" * 100)
    assert len(talk.mind("lyra").held) == 2


def test_each_link_has_a_channel_of_its_own(made: Made) -> None:
    talk = made(links={("lyra", "cc"): "full-text"})
    talk.say("lyra", TOLD)
    assert [talk.say(name, ASKED).handed[0].channel for name in ("vera", "cc")] == ["kv", "full-text"]
    with pytest.raises(UsageError, match="no link from lyra to bob"):
        made(links={("lyra", "bob"): "kv"})
    with pytest.raises(UsageError, match="no link from cc to lyra"):
        made(topology="relay", links={("cc", "lyra"): "kv"})


def test_what_has_been_used_is_counted_and_ends_where_it_may_not_go_on(made: Made) -> None:
    talk = made(budget=Budget(exchanges=2))
    first = talk.say("lyra", TOLD)
    second = talk.say("cc", ASKED)
    spent = used(talk.log)
    read = first.replied.tokens_prefilled + second.replied.tokens_prefilled + second.handed[0].tokens_prefilled
    assert spent.tokens == read + len(UNKNOWN) + len("Anna")
    assert (spent.exchanges, spent.bytes_moved) == (2, second.handed[0].bytes_moved)
    with pytest.raises(BudgetSpent, match=r"has used 2 exchanges of 2\."):
        talk.say("cc", "Again?")
    for budget in (Budget(tokens=spent.tokens), Budget(bytes_moved=spent.bytes_moved), Budget(seconds=1e-9)):
        with pytest.raises(BudgetSpent):
            budget.require(talk.log)
    Budget(tokens=spent.tokens + 1, bytes_moved=spent.bytes_moved + 1).require(talk.log)
    assert used([]) == Used()


def test_the_log_tells_a_conversation_in_order(made: Made) -> None:
    talk = made()
    talk.say("lyra", TOLD)
    talk.say("cc", ASKED)
    assert [type(event) for event in talk.log] == [Said, Replied, Said, HandedOver, Replied]
    assert talk.log[0] == Said(Passage("1:user", "user", "lyra", TOLD))


def test_columns_that_arrive_are_shown_to_who_recognises_them(made: Made) -> None:
    seen = []

    def recognise(columns: object) -> str:
        seen.append(columns)
        return "somebody"

    talk = made(recognise=recognise)
    talk.say("lyra", TOLD)
    (told,) = talk.say("cc", ASKED).handed
    assert told.recognised == "somebody"
    assert [cache.columns for cache in seen] == [len(TOLD)]
    assert seen[0].manifest.rope == "removed"


def test_minds_do_not_grow_into_each_other(made: Made) -> None:
    talk = made()
    talk.say("lyra", TOLD)
    before: Mind = talk.mind("lyra")
    columns = before.columns
    twins = [talk.fork(name) for name in ("one", "two")]
    for twin, other in itertools.permutations(twins):
        twin.say("lyra", "The harbour is quiet.")
        assert other.mind("lyra").columns in (columns, twin.mind("lyra").columns)
    assert talk.mind("lyra") is before
    assert before.columns == columns
