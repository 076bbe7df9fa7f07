"""Of each service's export the words are taken, who said them, and when; what is left out is counted."""

from __future__ import annotations

from typing import Any

import pytest

from unspoken.memory.formats import Conversation, Message, conversation, shape

from .exports import chatgpt, claude

SAID = [Message("user", "Hello."), Message("assistant", "Hi.")]


def read(value: Any) -> Conversation:
    """Read what can be read."""
    found = conversation(value)
    assert isinstance(found, Conversation), found
    return found


@pytest.mark.parametrize(
    ("value", "name", "title", "when"),
    [
        (chatgpt("A talk", "Hello.", "Hi."), "chatgpt", "A talk", "1700000000.0"),
        (claude("A talk", "Hello.", "Hi."), "claude", "A talk", "2025-01-02"),
        (
            {"conversations": [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hi."}]},
            "sharegpt",
            "",
            "",
        ),
        (
            {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": [
                {"type": "text", "text": "Hi."}
            ]}], "title": "A talk"},
            "messages",
            "A talk",
            "",
        ),
    ],
)  # fmt: skip
def test_a_conversation_of_each_shape_is_read(value: Any, name: str, title: str, when: str) -> None:
    found = read(value)
    assert (found.format, found.title, found.when, found.messages) == (name, title, when, SAID)
    assert not any(found.skipped.values())


def test_a_record_with_a_text_is_a_text() -> None:
    for key in ("text", "content"):
        found = read({key: " Words. ", "date": "2025"})
        assert (found.format, found.text, found.when, found.messages) == ("text", "Words.", "2025", [])
    assert read({"text": " "}).skipped == {"empty text": 1}


def test_what_is_left_out_of_chatgpt_is_counted() -> None:
    value = chatgpt("t", "Hello.", "Hi.", "See this.", "I see.")
    nodes = value["mapping"]
    nodes["n2"]["message"]["content"]["parts"] = ["See this.", {"content_type": "image"}, ""]
    nodes["n3"]["message"]["content"]["content_type"] = "code"
    nodes["other"] = {"parent": "n1", "message": nodes["n0"]["message"]}
    nodes["tool"] = {"parent": "n3", "message": {"author": {"role": "tool"}, "content": {}}}
    found = read(value | {"current_node": "tool"})
    assert [message.text for message in found.messages] == ["Hello.", "Hi.", "See this."]
    assert {why: times for why, times in found.skipped.items() if times} == {
        "attachment": 1,
        "content of type code": 1,
        "message of tool": 1,
        "message of a branch that is not shown": 1,
    }


def test_without_a_branch_that_is_shown_messages_come_by_time() -> None:
    value = chatgpt("t", "one", "two", "three")
    value["mapping"]["n0"]["message"]["create_time"] = 1.8e9
    found = read(value | {"current_node": None})
    assert [message.text for message in found.messages] == ["two", "three", "one"]


def test_a_tree_that_runs_in_circles_ends() -> None:
    value = chatgpt("t", "one", "two")
    value["mapping"]["n0"]["parent"] = "n1"
    assert [message.text for message in read(value).messages] == ["one", "two"]


def test_what_is_left_out_of_claude_is_counted() -> None:
    value = claude("t", "Hello.", "Hi.", "")
    first, second, third = value["chat_messages"]
    first |= {"attachments": [{}], "files": [{}, {}]}
    second |= {"content": [{"type": "text", "text": "Hi there."}, {"type": "tool_use"}]}
    value["chat_messages"].append({"sender": "system", "text": "x"})
    found = read(value)
    assert [message.text for message in found.messages] == ["Hello.", "Hi there."]
    assert {why: times for why, times in found.skipped.items() if times} == {
        "attachment": 3, "content of type tool_use": 1, "empty message": 1, "message of system": 1,
    }  # fmt: skip
    assert third["text"] == ""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "is list, expected an object"),
        (7, "is int"),
        ({}, "has none of mapping, chat_messages"),
        ({"text": 7}, "has none of"),
        ({"mapping": {"a": {"message": {"author": None}}}, "current_node": "a"}, "has 'mapping', and is not"),
        ({"mapping": {"a": 5}}, "has 'mapping', and is not"),
        ({"chat_messages": [7]}, "has 'chat_messages', and is not"),
        ({"messages": [{"role": "user", "content": 7}]}, "has 'messages', and is not"),
        ({"messages": [{}]}, "has 'messages', and is not"),
        ({"conversations": [{"from": "human"}]}, "has 'conversations', and is not"),
    ],
)
def test_what_is_none_is_told(value: Any, problem: str) -> None:
    found = conversation(value)
    assert isinstance(found, str)
    assert problem in found


def test_a_shape_is_known_by_its_key() -> None:
    assert [shape(value) for value in (chatgpt("t"), claude("t"), {"text": "x"}, {"text": 1}, [])] == [
        "mapping", "chat_messages", "text", None, None,
    ]  # fmt: skip
