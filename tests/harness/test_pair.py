"""A harness' text is cut where its marks stand, and a pair answers as the lab's agents do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.errors import UsageError
from unspoken.harness.pair import Ask, Cut, Pair, load_pair

MILL = "The old mill is run by Anna. The mill is red."
PIER = "The long pier is run by Boris. The pier is green."
ASKS = [Ask(MILL, "Who runs the old mill?"), Ask(PIER, "Who runs the long pier?"), Ask(MILL, "Is the mill red?")]


def test_a_text_is_cut_at_the_last_mark() -> None:
    assert Cut()("A.\nQuestion: x?\nAnswer: y\n\nB.\nQuestion: Who?\nAnswer: It is") == Ask(
        "A.\nQuestion: x?\nAnswer: y\n\nB.", "Who?", "It is"
    )
    assert Cut()("A.\nQuestion: Who?\nAnswer:") == Ask("A.", "Who?", "Answer:")
    assert Cut()("A.\nQuestion: Who?") == Ask("A.", "Who?", "")
    assert Cut("\\n\\nQ:", "\\nA:")("A.\n\nQ: Who?\nA:") == Ask("A.", "Who?", "A:")


def test_without_a_split_both_see_the_whole() -> None:
    cut = Cut("none")
    assert cut.need_free
    assert cut("Who runs it?\nAnswer:") == Ask("Who runs it?\nAnswer:", "Who runs it?", "Answer:")


@pytest.mark.parametrize("text", ["", "Who runs it?", "\nQuestion: Who?", "A.\nQuestion: ", "A.\nQuestion: \nAnswer:"])
def test_a_text_that_cannot_be_cut_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"The mark '\\nQuestion:' (is not in|has nothing on one side in)") as refused:
        Cut()(text)
    assert "split=none" in refused.value.hint
    with pytest.raises(UsageError, match="`split` is blank"):
        Cut(" ")


@given(*[st.text(st.characters(exclude_characters=":"), min_size=1).filter(str.strip)] * 3)
def test_any_three_parts_come_apart_again(source: str, question: str, stem: str) -> None:
    assert Cut()(f"{source}\nQuestion:{question}\nAnswer:{stem}") == Ask(source.strip(), question.strip(), stem.strip())


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("kv", ["Anna", "Boris", "red"]),
        ("full-text", ["Anna", "Boris", "red"]),
        ("none", ["unknown"] * 3),
    ],
)
def test_each_is_answered_from_its_own_source(arm: str, said: list[str]) -> None:
    for together in (1, 8):
        replies = Pair(FakeEngine(), arm, sources=together).replies(ASKS, Limits(20))
        assert [reply.text for reply in replies] == said


def test_the_wrong_columns_come_from_another_source_or_the_one_named() -> None:
    run = [Ask(MILL, "By whom is it run?"), Ask(PIER, "By whom is it run?")]
    assert [reply.text for reply in Pair(FakeEngine(), "kv-deranged").replies(run, Limits(20))] == ["Boris", "Anna"]
    with pytest.raises(UsageError, match="There is one source only"):
        Pair(FakeEngine(), "kv-deranged").replies(run[:1], Limits(20))
    (reply,) = Pair(FakeEngine(), "kv-deranged", stand_in=PIER).replies(run[:1], Limits(20))
    assert reply.text == "Boris"


def test_a_text_may_end_as_an_id_would() -> None:
    texts = ("The pier is run by Anna. Cost: n/a", "The mill is run by Boris. Cost: n/b")
    asks = [Ask(text, "Who runs it?") for text in texts]
    assert len(Pair(FakeEngine(), "kv-deranged").replies(asks, Limits(20))) == 2


def test_a_source_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, read = FakeEngine(), []
    prefill = engine.prefill
    monkeypatch.setattr(engine, "prefill", lambda prompt, *a, **k: read.append(prompt) or prefill(prompt, *a, **k))
    pair = Pair(engine, "kv")
    pair.replies(ASKS, Limits(4))
    pair.replies(ASKS[:1], Limits(4))
    texts = [engine.decode(prompt.token_ids) for prompt in read]
    assert sum(MILL in text for text in texts) == sum(PIER in text for text in texts) == 1


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"colour": "red"}, "no model argument 'colour'"),
        ({"channel": "telepathy"}, "no channel named 'telepathy'"),
        ({"engine": "steam"}, "no engine named 'steam'"),
        ({"sources": 0}, "0 sources cannot be handled"),
    ],
)
def test_what_cannot_be_loaded_is_refused(given: dict[str, Any], problem: str) -> None:
    told = {"channel": "kv", "engine": "fake"} | given
    with pytest.raises(UsageError, match=problem):
        load_pair("any", told.pop("channel"), told.pop("engine"), told)
