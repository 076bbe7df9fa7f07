"""Agents that talk: one reads, another is asked, and the log says what happened."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from unspoken.engines.fake import UNKNOWN, FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.errors import ContextOverflow, IncompatibleCache, StorageError, UsageError
from unspoken.session import Agent, Event, Session

REPORT = "The old mill is run by Anna. The new mill is run by Bob."
CARD = "name: vera\ncard: You are Vera and count birds.\n"


@pytest.fixture
def talk(fake: FakeEngine) -> Session:
    """Two agents and the kv channel."""
    return Session(Agent("lyra", fake), Agent("vera", fake), channel="kv")


def test_one_agent_answers_about_what_another_has_read(talk: Session) -> None:
    reply = talk.ask("vera", "Who runs the new mill?", about=REPORT)
    assert reply.text == "Bob"
    assert reply.delivery.channel == "kv"
    assert reply.delivery.tokens_skipped == len(REPORT)
    assert talk.ask("vera", "Where is the lighthouse?", about=REPORT).text == UNKNOWN


def test_a_text_is_read_once_however_many_questions_follow(talk: Session, fake: FakeEngine) -> None:
    with mock.patch.object(Agent, "read", autospec=True, side_effect=Agent.read) as read:
        answers = [
            talk.ask("vera", f"Who runs the {which} mill?", about=REPORT).text for which in ("old", "new", "old")
        ]
        talk.ask("vera", "Who?", about="Another text.")
    assert answers == ["Anna", "Bob", "Anna"]
    assert [call.args[1] for call in read.call_args_list] == [REPORT, "Another text."]


def test_the_log_tells_what_happened_in_order(talk: Session) -> None:
    talk.ask("vera", "Who runs the old mill?", about=REPORT)
    talk.ask("vera", "Who runs the new mill?", about=REPORT)
    assert talk.log == [
        Event("read", "lyra", {"source": REPORT}),
        Event("ask", "vera", {"question": "Who runs the old mill?", "sender": "lyra", "answer": "Anna"}),
        Event("ask", "vera", {"question": "Who runs the new mill?", "sender": "lyra", "answer": "Bob"}),
    ]


def test_any_agent_may_send(fake: FakeEngine) -> None:
    talk = Session(Agent("lyra", fake), Agent("vera", fake), Agent("cc", fake))
    talk.ask("lyra", "Who runs the old mill?", about=REPORT)
    talk.ask("lyra", "Who runs the old mill?", about=REPORT, sender="cc")
    assert [event.agent for event in talk.log if event.kind == "read"] == ["vera", "cc"]


def test_an_answer_ends_at_its_token_limit(talk: Session) -> None:
    assert talk.ask("vera", "Who runs the old mill?", about=REPORT, new_tokens=2).text == "An"


def test_sessions_that_cannot_work_are_refused(fake: FakeEngine, talk: Session) -> None:
    lyra, vera = Agent("lyra", fake), Agent("vera", fake)
    for agents in ((), (lyra,), (lyra, Agent("lyra", fake))):
        with pytest.raises(UsageError, match="two or more agents of different names"):
            Session(*agents)
    with pytest.raises(UsageError, match="no channel named"):
        Session(lyra, vera, channel="telepathy")
    with pytest.raises(UsageError, match="no agent 'bob'"):
        talk.ask("bob", "Who?", about=REPORT)
    with pytest.raises(UsageError, match="no agent 'bob'"):
        talk.ask("vera", "Who?", about=REPORT, sender="bob")
    with pytest.raises(UsageError, match="question is empty"):
        talk.ask("vera", "  ", about=REPORT)
    with pytest.raises(UsageError, match="document is empty"):
        talk.ask("vera", "Who?", about=" \n")
    assert talk.log == []


def test_a_document_longer_than_the_context_is_refused() -> None:
    small = FakeEngine(context=120)
    with pytest.raises(ContextOverflow, match="was made for 120"):
        Session(Agent("lyra", small), Agent("vera", small)).ask("vera", "Who?", about="x" * 200)


def test_agents_on_different_models_cannot_share_a_cache(fake: FakeEngine) -> None:
    talk = Session(Agent("lyra", fake), Agent("vera", FakeEngine(seed=1)), channel="kv")
    with pytest.raises(IncompatibleCache, match="weights"):
        talk.ask("vera", "Who runs the old mill?", about=REPORT)


def test_an_agent_reads_after_its_own_prefix(fake: FakeEngine) -> None:
    agent = Agent("lyra", fake, "A card.")
    reading = agent.read(REPORT)
    assert reading.cache.columns == agent.prefix.columns + len(REPORT)
    assert reading.cache.manifest.sender == "lyra"
    assert [span.kind for span in reading.cache.manifest.spans] == ["sink", "template", "system", "template", "content"]
    assert "A card." in fake.decode(reading.cache.manifest.token_ids or ())
    assert "Lyra" in fake.decode(Agent("lyra", fake).prefix.manifest.token_ids or ())
    assert agent.prefix is agent.prefix


def test_an_agent_goes_on_from_a_stem_and_scores_options(fake: FakeEngine) -> None:
    from unspoken.channels.names import build_channel
    from unspoken.channels.protocol import Request

    lyra, vera = Agent("lyra", fake), Agent("vera", fake)
    questions, stems = ["Who runs it?", "Who runs it?"], ["The new mill is run by", "The old mill is run by"]
    reading = lyra.read(REPORT)
    deliveries = build_channel("kv").send([Request((reading,), question) for question in questions], vera)
    options = [[" Anna", " Bob"]] * 2
    replies = vera.answer(questions, deliveries, Limits(8, (".",)), options, stems)
    assert [reply.text for reply in replies] == ["Bob", "Anna"]
    for reply, best in zip(replies, (1, 0), strict=True):
        scores = reply.generation.option_logprobs
        assert scores[best] > scores[1 - best]


def test_an_agent_answers_on_a_cache_from_elsewhere(fake: FakeEngine) -> None:
    from unspoken.channels.kv import content_columns

    lyra, vera = Agent("lyra", fake), Agent("vera", fake)
    cache = lyra.read(REPORT).cache
    for given in (cache, content_columns(cache)):
        assert vera.ask_cache("Who runs the new mill?", given).text == "Bob"
    with pytest.raises(UsageError, match="question is empty"):
        vera.ask_cache(" ", cache)


def test_an_agent_comes_from_a_card(fake: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "vera.yaml"
    path.write_text(CARD)
    agent = Agent.from_card(path, fake)
    assert (agent.name, agent.card) == ("vera", "You are Vera and count birds.")


def test_a_card_that_is_none_is_refused(fake: FakeEngine, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        Agent.from_card(tmp_path / "missing.yaml", fake)
    path = tmp_path / "card.yaml"
    for text, message in (("name: vera", "lacks a name or a card"), ("- a\n- b", "lacks"), ("{", "not YAML")):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            Agent.from_card(path, fake)
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UsageError, match="not YAML"):
        Agent.from_card(path, fake)
