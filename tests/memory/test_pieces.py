"""Texts are cut into pieces of a size: nothing is lost, and paragraphs and messages stay whole where they fit."""

from __future__ import annotations

import io
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.memory import pieces
from unspoken.memory.formats import Conversation, Message
from unspoken.memory.pieces import PIECE_LETTERS, packed, read_pieces, spoken

WORDS = st.lists(st.text("abc.! ", min_size=1, max_size=60).filter(str.strip).map(str.strip), max_size=30)


@given(WORDS, st.integers(10, 80))
def test_no_word_is_lost_and_no_piece_is_too_long(parts: list[str], letters: int) -> None:
    with mock.patch.object(pieces, "PIECE_LETTERS", letters):
        made = list(packed(parts))
    assert "".join("".join(made).split()) == "".join("".join(parts).split())
    assert all(0 < len(piece) <= letters for piece in made)


def test_a_conversation_is_lines_with_the_agents_name() -> None:
    talk = Conversation("chatgpt", messages=[Message("user", "Hello."), Message("assistant", "Hi.")])
    assert list(spoken(talk, "lyra")) == ["user: Hello.\nlyra: Hi."]
    assert list(spoken(Conversation("text", text="One.\n\nTwo."), "lyra")) == ["One.\n\nTwo."]


def test_messages_stay_whole_where_they_fit() -> None:
    talk = Conversation("chatgpt", messages=[Message("user", letter * 1500) for letter in "abc"])
    assert [piece[6] for piece in spoken(talk, "lyra")] == ["a", "b", "c"]


@given(st.lists(st.text("ab é\n.", min_size=1, max_size=80), max_size=20), st.integers(8, 60), st.integers(4, 40))
def test_a_file_is_read_whole_with_places_to_go_on_from(parts: list[str], letters: int, line: int) -> None:
    data = "\n\n".join(parts).encode()
    with mock.patch.object(pieces, "PIECE_LETTERS", letters), mock.patch.object(pieces, "_LONG_LINE", line):
        found = list(read_pieces(io.BytesIO(data)))
        for at, each in enumerate(found):
            file = io.BytesIO(data)
            file.seek(each.stop)
            assert list(read_pieces(file, each.stop, each.stop_line)) == found[at + 1 :]
    assert "".join(" ".join(each.value["text"] for each in found).split()) == "".join(data.decode().split())
    for each in found:
        assert each.stop_line == data[: each.stop].count(b"\n") + 1
        first = each.value["text"].split("\n")[0]
        assert first[: line // 2].strip() in data.decode().split("\n")[each.line - 1]


def test_a_piece_ends_with_a_paragraph() -> None:
    paragraph = "word " * (PIECE_LETTERS // 8)
    data = f"{paragraph}\n\n{paragraph}\n\n{paragraph}\n".encode()
    assert [each.line for each in read_pieces(io.BytesIO(data))] == [1, 3, 5]


@pytest.mark.parametrize("data", [b"", b"\n \n\n"])
def test_an_empty_file_has_no_piece(data: bytes) -> None:
    assert list(read_pieces(io.BytesIO(data))) == []


def test_what_is_no_text_is_told() -> None:
    (found,) = read_pieces(io.BytesIO(b"\n\nW\xfcrde\n"))
    assert (found.line, found.problem, found.value) == (3, "is no UTF-8", None)
