"""Ten turns on a real model: what only Lyra was told, CC answers by caches alone, over a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.model
TURNS = (
    "@lyra The code of the vault is 4471.",
    "@vera I like quiet mornings.",
    "@cc What is the code of the vault?",
    "@vera Tell me a word for the sea.",
    "@lyra Thank you.",
    "@cc What did I ask you?",
    "@lyra Good night.",
    "@vera What is the code of the vault?",
    "@cc Thank you.",
    "@lyra What is the code of the vault?",
)
CC_IS_ASKED = 2


def held(tmp_path: Path, turns: tuple[str, ...], *, kill: bool) -> list[list[dict[str, Any]]]:
    """Say some turns in a kept session and return their events; kill the process, or let it end."""
    command = [sys.executable, "-m", "unspoken", "chat", "--agents", "lyra,vera,cc", "--channel", "kv", "--json"]
    command += ["--tokens", "12", "--session", "ten", "--sessions", str(tmp_path)]
    told = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for turn in turns:
            running.stdin.write(f"{turn}\n")
            running.stdin.flush()
            told.append(json.loads(running.stdout.readline())["events"])
        if kill:
            running.send_signal(signal.SIGKILL)
        else:
            running.stdin.close()
    assert running.returncode == (-signal.SIGKILL if kill else 0)
    return told


def test_ten_turns_over_a_kill(tmp_path: Path) -> None:
    exchanges = held(tmp_path, TURNS[:5], kill=True) + held(tmp_path, TURNS[5:], kill=False)
    answers = [exchange[-1]["passage"]["text"] for exchange in exchanges]
    assert "4471" in answers[CC_IS_ASKED], answers
    handed = [event for exchange in exchanges for event in exchange if event["event"] == "handed over"]
    # By caches alone: not one word was sent.
    assert all(event["messages"] == [None] * len(event["passages"]) for event in handed)
    assert all(event["bytes_moved"] > 0 for event in handed)
    first = next(event for event in exchanges[CC_IS_ASKED] if event["event"] == "handed over")
    assert (first["sender"], first["receiver"], first["passages"][0]) == ("lyra", "cc", "1:user")
    # After the kill only what is new is handed over.
    later = [name for event in handed if event["receiver"] == "cc" for name in event["passages"]]
    assert len(later) == len(set(later))
