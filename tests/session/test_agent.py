"""Agents that talk: one reads, another is asked, and the log says what happened."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from unspoken.engines.fake import UNKNOWN, FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.errors import ContextOverflow, IncompatibleCache, StorageError, UsageError
from unspoken.session import Agent, Asked, Read, Session, read_card

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
        Read("lyra", REPORT),
        Asked("vera", "Who runs the old mill?", ("lyra",), "Anna"),
        Asked("vera", "Who runs the new mill?", ("lyra",), "Bob"),
    ]


def test_any_agent_may_send(fake: FakeEngine) -> None:
    talk = Session(Agent("lyra", fake), Agent("vera", fake), Agent("cc", fake))
    talk.ask("lyra", "Who runs the old mill?", about=REPORT)
    talk.ask("lyra", "Who runs the old mill?", about=REPORT, sender="cc")
    assert [event.agent for event in talk.log if isinstance(event, Read)] == ["vera", "cc"]


@pytest.mark.parametrize("channel", ["kv", "kv+int8", "compose:align", "compose:legolink@4", "full-text", "text"])
@pytest.mark.parametrize("order", [("lyra", "cc"), ("cc", "lyra")])
def test_an_agent_is_asked_about_what_several_have_read(fake: FakeEngine, channel: str, order: tuple[str, str]) -> None:
    talk = Session(*(Agent(name, fake) for name in ("lyra", "vera", "cc")), channel=channel)
    parts = {"lyra": "The old mill is run by Anna. ", "cc": "The new mill is run by Bob. "}
    about = {name: parts[name] for name in order}
    reply = talk.ask("vera", "Who runs the new mill?", about=about)
    assert reply.text == "Bob"
    assert talk.ask("vera", "Who runs the old mill?", about=about).text == "Anna"
    delivery, whole = reply.delivery, "".join(about.values())
    assert delivery.past is not None
    ids = delivery.past.manifest.token_ids or ()
    heard = delivery.message if channel == "text" else fake.decode(ids)
    assert heard is not None
    # The receiver gets them in the order in which they were named; messages stand apart.
    assert heard.replace("\n\n", " ").strip().endswith(whole.strip())
    if delivery.message is None:
        assert delivery.tokens_skipped == len(whole)
        alone = [talk.ask("vera", "Who?", about={name: text}).delivery.bytes_moved for name, text in about.items()]
        assert delivery.bytes_moved == sum(alone)
    assert talk.log[:4] == [
        *(Read(name, parts[name]) for name in order),
        Asked("vera", "Who runs the new mill?", order, "Bob"),
        Asked("vera", "Who runs the old mill?", order, "Anna"),
    ]


def test_two_senders_of_one_text_read_it_each_for_itself(fake: FakeEngine) -> None:
    talk = Session(*(Agent(name, fake) for name in ("lyra", "vera", "cc")))
    reply = talk.ask("vera", "Who runs the old mill?", about={"lyra": REPORT, "cc": REPORT})
    assert reply.text == "Anna"
    assert reply.delivery.tokens_skipped == 2 * len(REPORT)
    assert talk.log == [
        Read("lyra", REPORT),
        Read("cc", REPORT),
        Asked("vera", "Who runs the old mill?", ("lyra", "cc"), "Anna"),
    ]


def test_several_senders_that_cannot_be_are_refused_before_anybody_reads(fake: FakeEngine) -> None:
    talk = Session(*(Agent(name, fake) for name in ("lyra", "vera", "cc")))
    for about, sender, message in (
        ({}, None, r"texts of \[\] and the sender 'None'"),
        ({"lyra": REPORT}, "lyra", r"texts of \['lyra'\] and the sender 'lyra' were given"),
        ({"lyra": REPORT, "bob": REPORT}, None, "no agent 'bob'"),
        ({"lyra": REPORT, "vera": REPORT}, None, "'vera' would be asked about a text that it reads itself"),
        (REPORT, "vera", "'vera' would be asked about a text that it reads itself"),
    ):
        with pytest.raises(UsageError, match=message):
            talk.ask("vera", "Who?", about=about, sender=sender)
    assert talk.log == []


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
        assert vera.ask_cache("Who?", given, bytes_moved=7).delivery.bytes_moved == 7
        # As it is, the columns themselves move: four bytes of float32 for each number, and a position for each column.
        numbers = given.columns * fake.spec.elements_per_column()
        assert vera.ask_cache("Who?", given).delivery.bytes_moved == 4 * (numbers + given.columns)
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
    for data, message in (
        (b"name: vera", "missing required field `card`"),
        (b"- a\n- b", "Expected `object`"),
        (b"{", "is none"),
        (b"\xff\xfe\x00\xd8", "is none"),
        (b"name: ' '\ncard: You are.", "empty name"),
        (b"name: vera\ncard: You are.\nmodle: llama", "unknown field `modle`"),
        (b"name: vera\ncard: " + b"a" * 1_000_001, "larger than 1000000 bytes"),
    ):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=message):
            Agent.from_card(path, fake)


def test_a_card_tells_what_the_agent_runs_on(tmp_path: Path) -> None:
    path = tmp_path / "vera.yaml"
    path.write_text(f"{CARD}role: counts birds\nmodel: llama.gguf\nengine: llamacpp\n")
    card = read_card(path)
    assert (card.role, card.model, card.engine) == ("counts birds", "llama.gguf", "llamacpp")
