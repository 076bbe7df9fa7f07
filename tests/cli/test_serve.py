"""`unspoken serve` and `unspoken token`: a server that one can reach, and who gets in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .program import FAKE, Program, clear

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")


def test_a_server_starts_answers_and_ends(tmp_path: Path) -> None:
    environment = os.environ | {"UNSPOKEN_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "unspoken", "serve", *FAKE, "--model", "any", "--port", "18765"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) as running:
        url = "http://127.0.0.1:18765"
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        body = {
            "model": "any",
            "messages": [{"role": "user", "content": "The mill is run by Al.\n\nWho runs the mill?"}],
        }
        made = httpx.post(f"{url}/v1/chat/completions", json=body).json()
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert made["choices"][0]["message"]["content"] == "Al"
    first, *lines = err.splitlines()
    assert first == f"any is served at {url}/v1. Ctrl+C ends it."
    routes = [json.loads(line)["route"] for line in lines if line.startswith("{")]
    assert routes[-2:] == ["/health", "/v1/chat/completions"]
    assert "Al" not in err.replace("Already", "")
    assert "Traceback" not in err


def test_a_token_is_shown_once_and_kept_as_a_digest(unspoken: Program, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    shown = [unspoken("token", name, "--tokens", path).out.strip() for name in ("lyra", "vera")]
    assert all(re.fullmatch(r"unspoken-[\w-]{43}", each) for each in shown)
    text = path.read_text()
    assert not any(each in text for each in shown)
    assert [each["agent"] for each in json.loads(text)["tokens"]] == ["lyra", "vera"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_served_is_refused(unspoken: Program, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    clear(unspoken("serve", *FAKE, "--host", "192.0.2.1"), "would let everybody on the network at 192.0.2.1")
    clear(unspoken("serve", *FAKE, "--tokens", path), "cannot be read")
    path.write_text("{}")
    path.chmod(0o644)
    clear(unspoken("serve", *FAKE, "--tokens", path), "can be used by others")
    path.chmod(0o600)
    path.write_text('{"tokens": [{"agent": "x"}]}')
    clear(unspoken("serve", *FAKE, "--tokens", path), "is no file of tokens")
    clear(unspoken("token", "lyra", "--tokens", tmp_path / "t", "--rights", "everything"), "with the rights everything")
    clear(unspoken("token", " ", "--tokens", tmp_path / "t"), "No token can be made for ' '")
    clear(unspoken("token", "anybody", "--tokens", tmp_path / "t"), "No token can be made for 'anybody'")
