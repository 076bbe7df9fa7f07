"""A memory has every piece once, whatever was imported, how often, and however it ended."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from unspoken.errors import StorageError, UsageError
from unspoken.memory import importer
from unspoken.memory.importer import Memory, Report
from unspoken.memory.sources import sources

from .exports import chatgpt, claude


def load(folder: Path, path: Path, agent: str = "lyra") -> Report:
    """Import a path."""
    with Memory(folder, agent) as memory:
        for source in sources(path)[0]:
            memory.add(source)
        return memory.report()


def lines(path: Path) -> list[Any]:
    """Return the objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def talks(number: int) -> list[Any]:
    """Conversations that differ."""
    return [chatgpt(f"talk {at}", f"Question {at}?", f"Answer {at}.") for at in range(number)]


def test_pieces_tell_where_they_come_from(tmp_path: Path) -> None:
    export = tmp_path / "conversations.json"
    export.write_text("[" + ",\n".join(map(json.dumps, [talks(1)[0], claude("other", "One?", "Two.")])) + "]")
    report = load(tmp_path / "m", export)
    assert (report.files, report.records, report.pieces, report.duplicates, report.broken) == (1, 2, 2, 0, 0)
    first, second = lines(tmp_path / "m" / "lyra.jsonl")
    assert first["text"] == "user: Question 0?\nlyra: Answer 0."
    assert first["source"] == {
        "file": "conversations.json", "line": 1, "format": "chatgpt", "title": "talk 0", "when": "1700000000.0",
    }  # fmt: skip
    assert (second["source"]["line"], second["source"]["format"], second["agent"]) == (2, "claude", "lyra")
    assert "me@a.org" not in (tmp_path / "m" / "lyra.jsonl").read_text()
    assert report.letters == len(first["text"]) + len(second["text"])


def test_everything_of_a_folder_is_read_once(tmp_path: Path) -> None:
    export = tmp_path / "export"
    (export / "sub").mkdir(parents=True)
    (export / "a.json").write_text(json.dumps(talks(3)))
    (export / "b.jsonl").write_text("\n".join(map(json.dumps, [*talks(4), {"text": "A note."}])))
    (export / "sub" / "c.md").write_text("# Notes\n\nA  NOTE.\n")
    (export / "d.txt").write_text("Something else.")
    (export / "e.pdf").write_bytes(b"%PDF")
    with zipfile.ZipFile(export / "f.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", json.dumps([claude("c", "Zipped?", "Yes.")]))
        archive.writestr("picture.png", b"")
    found, others = sources(export)
    assert [source.name for source in found] == [
        "a.json", "b.jsonl", "d.txt", "f.zip/conversations.json", "c.md",
    ]  # fmt: skip
    assert others == ["e.pdf", "f.zip/picture.png"]
    report = load(tmp_path / "m", export)
    texts = [piece["text"] for piece in lines(tmp_path / "m" / "lyra.jsonl")]
    assert len(texts) == len(set(texts)) == report.pieces == 8
    assert report.duplicates == 3
    assert load(tmp_path / "m", export) == report
    assert load(tmp_path / "m", export, "vera").pieces == report.pieces


def test_a_conversation_is_in_one_split_the_same_in_every_import(tmp_path: Path) -> None:
    export = tmp_path / "a.json"
    export.write_text(json.dumps([chatgpt(f"t{at}", *[f"Words {at} " * 90] * 6) for at in range(300)]))
    splits = []
    for name in ("m", "n"):
        load(tmp_path / name, export)
        found: dict[str, set[str]] = {}
        for piece in lines(tmp_path / name / "lyra.jsonl"):
            found.setdefault(piece["source"]["title"], set()).add(piece["split"])
        assert all(len(each) == 1 for each in found.values())
        splits.append(found)
    assert splits[0] == splits[1]
    held_out = sum(each == {"held-out"} for each in splits[0].values())
    assert 15 <= held_out <= 45


def test_what_is_left_out_is_listed_with_its_line(tmp_path: Path) -> None:
    export = tmp_path / "a.json"
    good = talks(2)
    good[1]["mapping"]["n1"]["message"]["author"]["role"] = "tool"
    export.write_text(f'[{json.dumps(good[0])},\n[7],\n{{"mapping": nothing}},\n[8],\n{json.dumps(good[1])}\n]')
    report = load(tmp_path / "m", export)
    assert (report.records, report.broken, report.skipped) == (2, 2, {"message of tool": 1})
    told = lines(tmp_path / "m" / "lyra.skipped.jsonl")
    assert [(each["line"], each["times"]) for each in told] == [(2, 1), (3, 1), (5, 1)]
    assert told[0]["why"] == "is list, expected an object"
    assert told[1]["why"] == "is no JSON: Expecting value; left out up to line 5"


def test_an_import_that_fails_half_way_goes_on(tmp_path: Path) -> None:
    export = tmp_path / "a.json"
    export.write_text(json.dumps(talks(50)))
    expected = load(tmp_path / "whole", export)
    full, written = OSError(errno.ENOSPC, "No space left on device"), os.fsync
    calls = iter([None, None, None, full])

    def fsync(descriptor: int) -> None:
        if (error := next(calls, None)) is not None:
            raise error
        written(descriptor)

    with mock.patch.object(importer, "RECORDS", 7):
        with mock.patch("os.fsync", fsync), pytest.raises(StorageError, match="No space left"):
            load(tmp_path / "m", export)
        assert len(lines(tmp_path / "m" / "lyra.jsonl")) == 7
        assert load(tmp_path / "m", export) == expected
    for name in ("lyra.jsonl", "lyra.skipped.jsonl"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_import_that_is_killed_goes_on(tmp_path: Path) -> None:
    export = tmp_path / "a.jsonl"
    export.write_text("".join(json.dumps(talk) + "\n" for talk in talks(3000)))
    expected = load(tmp_path / "whole", export)
    code = f"""
import sys
from pathlib import Path
from unspoken.memory import importer
from unspoken.memory.sources import sources
importer.RECORDS = 20
with importer.Memory(Path({str(tmp_path / "m")!r}), "lyra") as memory:
    memory.add(sources(Path({str(export)!r}))[0][0], lambda done, of: print(done, flush=True))
"""
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            running.stdout.readline()
            running.stdout.readline()
            running.send_signal(signal.SIGKILL)
    # What was written and is not known of is cut off.
    with open(tmp_path / "m" / "lyra.jsonl", "ab") as file:
        file.write(b'{"text": "half a li')
    assert load(tmp_path / "m", export) == expected
    assert (tmp_path / "m" / "lyra.jsonl").read_bytes() == (tmp_path / "whole" / "lyra.jsonl").read_bytes()


def test_one_process_has_a_memory_open_at_a_time(tmp_path: Path) -> None:
    with Memory(tmp_path, "lyra"), pytest.raises(StorageError, match="open in another process"):
        Memory(tmp_path, "lyra")
    Memory(tmp_path, "lyra").close()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    export = tmp_path / "a.json"
    export.write_text(json.dumps(talks(2)))
    load(tmp_path / "m", export)
    (tmp_path / "m" / "lyra.jsonl").write_text("{}\n")
    with pytest.raises(StorageError, match=r"has 3 bytes, and its index knows"):
        Memory(tmp_path / "m", "lyra")
    (tmp_path / "m" / "lyra.index.sqlite").write_bytes(b"no database, " * 100)
    with pytest.raises(StorageError, match="cannot be used: file is not a database"):
        Memory(tmp_path / "m", "lyra")


@pytest.mark.parametrize("name", ["", "../lyra", "a b", "lyra.jsonl"])
def test_a_name_that_is_none_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a memory"):
        Memory(tmp_path, name)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        sources(tmp_path / "missing.json")
    (tmp_path / "a.pdf").write_bytes(b"")
    for path in (tmp_path, tmp_path / "a.pdf"):
        with pytest.raises(UsageError, match="nothing to import"):
            sources(path)
    (tmp_path / "b.zip").write_bytes(b"PK no zip")
    with pytest.raises(StorageError, match=r"zip file .* cannot be read"):
        sources(tmp_path / "b.zip")


@pytest.mark.parametrize("damage", ["password", "packing", "bytes"])
def test_a_zip_file_that_cannot_be_unpacked_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", json.dumps(talks(50)))
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    if damage == "password":
        data[6] |= 1
        data[central + 8] |= 1
    elif damage == "packing":
        data[8], data[central + 10] = 97, 97
    else:
        data[80:120] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"zip file .* cannot be read: "):
        load(tmp_path / "m", path)
    Memory(tmp_path / "m", "lyra").close()


def test_only_its_owner_can_read_a_memory(tmp_path: Path) -> None:
    export = tmp_path / "a.json"
    export.write_text(json.dumps(talks(1)))
    load(tmp_path / "m", export)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "m" / "lyra.jsonl").stat().st_mode & 0o777 == 0o600
    assert sqlite3.connect(tmp_path / "m" / "lyra.index.sqlite").execute("select count(*) from pieces").fetchone() == (
        1,
    )
