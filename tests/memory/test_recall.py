"""An agent has the latest of its memory in mind, as much as fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unspoken.errors import StorageError, UsageError
from unspoken.memory.recall import recall


def written(path: Path, texts: list[str]) -> Path:
    """Write a memory."""
    path.write_text("".join(json.dumps({"text": text, "agent": "lyra"}) + "\n" for text in texts))
    return path


@given(st.lists(st.text(min_size=1, max_size=30).map(str.strip).filter(len), min_size=1), st.integers(1, 200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_pieces_that_fit_are_recalled(tmp_path: Path, texts: list[str], letters: int) -> None:
    path = written(tmp_path / "m.jsonl", texts)
    fitting = next((texts[at:] for at in range(len(texts)) if len("\n\n".join(texts[at:])) <= letters), [])
    if not fitting:
        with pytest.raises(UsageError, match=f"at most {letters} letters"):
            recall(path, letters)
        return
    assert recall(path, letters) == "\n\n".join(fitting)


def test_only_the_end_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xff no memory at all\n" * 1000 + b'{"text": "The last."}\n' * 10_000)
    assert recall(path, 12) == "The last."
    assert recall(path, 20) == "The last.\n\nThe last."


def test_what_is_no_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        recall(tmp_path / "missing.jsonl", 100)
    (tmp_path / "m.jsonl").write_text("words\n")
    with pytest.raises(UsageError, match="is no memory"):
        recall(tmp_path / "m.jsonl", 100)
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(UsageError, match="No piece of"):
        recall(tmp_path / "m.jsonl", 100)
