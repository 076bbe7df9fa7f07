"""Exports as services write them, in small."""

from __future__ import annotations

from typing import Any


def chatgpt(title: str, *words: str, **others: Any) -> dict[str, Any]:
    """A conversation of ChatGPT's export: words of user and assistant in turn."""
    nodes: dict[str, Any] = {"root": {"id": "root", "message": None, "parent": None}}
    last = "root"
    for at, said in enumerate(words):
        nodes[f"n{at}"] = {
            "id": f"n{at}",
            "parent": last,
            "message": {
                "author": {"role": ("user", "assistant")[at % 2]},
                "create_time": 1.7e9 + at,
                "content": {"content_type": "text", "parts": [said]},
            },
        }
        last = f"n{at}"
    return {
        "title": title,
        "create_time": 1.7e9,
        "mapping": nodes,
        "current_node": last,
        "account": "me@a.org",
    } | others


def claude(title: str, *words: str) -> dict[str, Any]:
    """A conversation of Claude's export."""
    messages = [
        {"uuid": f"m{at}", "sender": ("human", "assistant")[at % 2], "text": said, "content": [], "attachments": []}
        for at, said in enumerate(words)
    ]
    return {
        "uuid": "c1",
        "name": title,
        "created_at": "2025-01-02",
        "account": {"uuid": "x"},
        "chat_messages": messages,
    }
