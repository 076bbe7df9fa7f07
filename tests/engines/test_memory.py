"""What is kept between runs is read back or made again, written whole or not at all, and never a reason to fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from unspoken.engines.memory import recalled, remember


class Kept(msgspec.Struct, frozen=True):
    """Something that is kept."""

    name: str
    numbers: tuple[float, ...]


KEPT = Kept("naïve", (1.0, 0.1, 1e-300))


def test_what_is_remembered_is_recalled(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "yet" / "kept.json"
    assert recalled(path, Kept) is None
    remember(path, KEPT)
    assert recalled(path, Kept) == KEPT
    remember(path, Kept("other", ()))
    assert recalled(path, Kept) == Kept("other", ())
    assert [each.name for each in path.parent.iterdir()] == ["kept.json"]


def test_without_a_path_nothing_is_kept() -> None:
    remember(None, KEPT)
    assert recalled(None, Kept) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"name": 1}', b'{"name": "a"}', b"\xff\xfe\x00", b"null"])
def test_what_cannot_be_read_is_not_there(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(damage)
    assert recalled(path, Kept) is None
    remember(path, KEPT)
    assert recalled(path, Kept) == KEPT


def test_a_folder_in_the_way_is_not_there_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "kept.json").mkdir()
    assert recalled(tmp_path / "kept.json", Kept) is None
    remember(tmp_path / "kept.json", KEPT)
    assert recalled(tmp_path / "kept.json", Kept) is None


def test_a_file_in_the_folders_place_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "kept.json", tmp_path / "file" / "below" / "kept.json"):
        remember(path, KEPT)
        assert recalled(path, Kept) is None
    assert (tmp_path / "file").read_text() == "in the way"


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.json"
    remember(path, KEPT)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        remember(path, Kept("other", ()))
    assert recalled(path, Kept) == KEPT
    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_bytes", full)
        remember(path, Kept("other", ()))
    assert recalled(path, Kept) == KEPT


def test_a_reader_sees_the_old_or_the_new_and_nothing_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, whole, seen = tmp_path / "kept.json", Path.write_bytes, []
    remember(path, KEPT)

    def watched(self: Path, data: bytes) -> int:
        whole(self, data[: len(data) // 2])
        seen.append(recalled(path, Kept))
        return whole(self, data)

    monkeypatch.setattr(Path, "write_bytes", watched)
    remember(path, Kept("other", ()))
    assert seen == [KEPT]
    assert recalled(path, Kept) == Kept("other", ())
