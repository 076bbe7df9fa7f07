"""The shapes in which chat services and tools write conversations down, and what is taken from each.

Only who spoke, when, the words and the title are taken: no accounts, no identifiers, no attachments.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# Who speaks, whatever the service calls it.
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "ai": "assistant",
}


@dataclass(frozen=True)
class Message:
    """One thing said: `role` is "user" or "assistant"."""

    role: str
    text: str


@dataclass
class Conversation:
    """A conversation, or a text of nobody in particular.

    Attributes:
        format: Which shape it had.
        title: What the service calls it.
        when: When it began, as the service writes it.
        messages: What was said, in order.
        text: The words of a record that is no conversation.
        skipped: What was left out and how often, by reason.
    """

    format: str
    title: str = ""
    when: str = ""
    messages: list[Message] = field(default_factory=list)
    text: str = ""
    skipped: Counter[str] = field(default_factory=Counter)


def shape(value: Any) -> str | None:
    """Return the key that makes an object a record of one of the known shapes; None if it is none."""
    if not isinstance(value, dict):
        return None
    return next((key for key, kind in _READERS if isinstance(value.get(key), kind)), None)


def conversation(value: Any) -> Conversation | str:
    """Return the conversation or text of an object, or why there is none."""
    if not isinstance(value, dict):
        return f"is {type(value).__name__}, expected an object"
    for (key, kind), read in _READERS.items():
        if isinstance(value.get(key), kind):
            try:
                return read(value)
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
                return f"has '{key}', and is not what that stands for: {type(error).__name__} {error}"
    return f"has none of {', '.join(key for key, _ in _READERS)}"


def _openai_export(value: dict[str, Any]) -> Conversation:
    """Read a conversation of ChatGPT's conversations.json: a tree, of which the shown branch counts."""
    made = Conversation("chatgpt", _words(value.get("title")), _words(value.get("create_time")))
    nodes = value["mapping"]
    for node in _branch(nodes, value.get("current_node")):
        message = node.get("message")
        if message is None:
            continue
        role = ROLES.get(message["author"]["role"])
        body = message.get("content") or {}
        if role is None:
            made.skipped[f"message of {message['author']['role']}"] += 1
        elif body.get("content_type") not in ("text", "multimodal_text"):
            made.skipped[f"content of type {body.get('content_type')}"] += 1
        else:
            parts = body.get("parts") or []
            made.skipped["attachment"] += sum(not isinstance(part, str) for part in parts)
            _add(made, role, "\n".join(part for part in parts if isinstance(part, str)))
    off = sum(node.get("message") is not None for node in nodes.values()) - sum(
        node.get("message") is not None for node in _branch(nodes, value.get("current_node"))
    )
    made.skipped["message of a branch that is not shown"] += off
    return made


def _branch(nodes: dict[str, Any], last: str | None) -> list[dict[str, Any]]:
    """Return the nodes from the root to the last one; without a last one, all by time."""
    if last not in nodes:
        return sorted(nodes.values(), key=lambda node: (node.get("message") or {}).get("create_time") or 0.0)
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    while last in nodes and last not in seen:
        seen.add(last)
        found.append(nodes[last])
        last = nodes[last].get("parent")
    return found[::-1]


def _anthropic_export(value: dict[str, Any]) -> Conversation:
    """Read a conversation of Claude's conversations.json."""
    made = Conversation("claude", _words(value.get("name")), _words(value.get("created_at")))
    for message in value["chat_messages"]:
        role = ROLES.get(str(message["sender"]))
        if role is None:
            made.skipped[f"message of {message['sender']}"] += 1
            continue
        blocks = message.get("content") or []
        texts = [block["text"] for block in blocks if block.get("type") == "text"]
        for block in blocks:
            if block.get("type") != "text":
                made.skipped[f"content of type {block.get('type')}"] += 1
        made.skipped["attachment"] += len(message.get("attachments") or ()) + len(message.get("files") or ())
        _add(made, role, "\n".join(texts) or _words(message.get("text")))
    return made


def _sharegpt(value: dict[str, Any]) -> Conversation:
    """Read a conversation in ShareGPT's form: {"conversations": [{"from", "value"}]}."""
    made = Conversation("sharegpt", _words(value.get("title")))
    for message in value["conversations"]:
        _add_as(made, str(message["from"]), message["value"])
    return made


def _messages(value: dict[str, Any]) -> Conversation:
    """Read a conversation in the form of chat APIs: {"messages": [{"role", "content"}]}; content may be in parts."""
    made = Conversation("messages", _words(value.get("title")), _words(value.get("created_at")))
    for message in value["messages"]:
        content = message.get("content")
        if isinstance(content, list):
            made.skipped["attachment"] += sum(part.get("type") != "text" for part in content)
            content = "\n".join(part["text"] for part in content if part.get("type") == "text")
        _add_as(made, str(message["role"]), "" if content is None else content)
    return made


def _plain(value: dict[str, Any]) -> Conversation:
    """Read a record with a text."""
    text = value["text"] if isinstance(value.get("text"), str) else value["content"]
    made = Conversation("text", _words(value.get("title")), _words(value.get("created_at") or value.get("date")))
    made.text = text.strip()
    made.skipped["empty text"] += not made.text
    return made


_READERS = {
    ("mapping", dict): _openai_export,
    ("chat_messages", list): _anthropic_export,
    ("conversations", list): _sharegpt,
    ("messages", list): _messages,
    ("text", str): _plain,
    ("content", str): _plain,
}
# Texts are not among them: parts of a conversation have texts, too.
CONVERSATIONS = ("mapping", "chat_messages", "conversations", "messages")


def _add_as(made: Conversation, name: str, text: Any) -> None:
    role = ROLES.get(name.lower())
    if role is None:
        made.skipped[f"message of {name}"] += 1
    elif not isinstance(text, str):
        raise TypeError(f"words of type {type(text).__name__}")
    else:
        _add(made, role, text)


def _add(made: Conversation, role: str, text: str) -> None:
    if text.strip():
        made.messages.append(Message(role, text.strip()))
    else:
        made.skipped["empty message"] += 1


def _words(value: Any) -> str:
    return str(value).strip() if isinstance(value, str | int | float) else ""
