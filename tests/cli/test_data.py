"""`unspoken data`: exports become memories, and memories become beginnings of agents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .program import FAKE, Program, clear


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Two records, one of them broken, and a file of no known kind."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "The old mill is run by Anna. ' + "It is old. " * 40 + '"}\n{"text": \n')
    (folder / "b.pdf").write_bytes(b"")
    return folder


def test_an_export_becomes_a_memory(unspoken: Program, export: Path, tmp_path: Path) -> None:
    where = ("--memories", tmp_path / "m")
    told = unspoken("data", "import", export, "--agent", "lyra", *where)
    assert told.code == 0
    assert told.out.startswith("lyra has 1 pieces, ")
    assert "0 pieces were there already; 1 records could not be read" in told.out
    assert "Not imported, no such file is known: b.pdf" in told.err
    assert "a.jsonl: " in told.err
    data = unspoken("data", "import", export, "--agent", "lyra", *where, "--json").data
    assert (data["pieces"], data["broken"], data["not_imported"]) == (1, 1, ["b.pdf"])
    assert unspoken("data", "show", "lyra", *where, "--json").data == {
        key: value for key, value in data.items() if key != "not_imported"
    }
    assert unspoken("data", "show", "lyra", *where).out == told.out
    assert json.loads(Path(data["memory"]).read_text())["agent"] == "lyra"


def test_a_memory_becomes_a_beginning(unspoken: Program, export: Path, tmp_path: Path) -> None:
    unspoken("data", "import", export, "--agent", "lyra", "--memories", tmp_path)
    card = tmp_path / "lyra.yaml"
    card.write_text("name: lyra\ncard: You are Lyra.\nmemory: lyra.jsonl\n")
    first = unspoken("data", "cartridge", card, *FAKE, "--json").data
    assert first["agent"] == "lyra"
    assert first["tokens"] > 400
    assert first["seconds_read"] > 0
    assert Path(first["file"]).stat().st_size == first["bytes"]
    again = unspoken("data", "cartridge", card, *FAKE, "--json").data
    assert again["seconds_read"] is None
    assert (again["file"], again["tokens"]) == (first["file"], first["tokens"])
    assert ": " + first["file"] in unspoken("data", "cartridge", card, *FAKE).out
    # Every command with cards knows what is remembered.
    talk = unspoken("chat", "--agents", f"{card},cc", *FAKE, "--json", stdin=b"Hello.\n")
    assert talk.code == 0


def test_a_short_card_is_not_kept(unspoken: Program, tmp_path: Path) -> None:
    card = tmp_path / "vera.yaml"
    card.write_text("name: vera\ncard: You are Vera.\n")
    told = unspoken("data", "cartridge", card, *FAKE)
    assert told.out.endswith(": too short to be kept\n")


def test_what_cannot_be_imported_is_refused(unspoken: Program, export: Path, tmp_path: Path) -> None:
    where = ("--memories", tmp_path / "m")
    clear(unspoken("data", "import", tmp_path / "missing", "--agent", "lyra", *where), "cannot be read")
    clear(unspoken("data", "import", export / "b.pdf", "--agent", "lyra", *where), "nothing to import")
    clear(unspoken("data", "import", export, "--agent", "../x", *where), "cannot be the name of a memory")
    clear(unspoken("data", "show", "bob", *where), "There is no memory of 'bob'")
    clear(unspoken("data", "show", "../../bob", *where), "There is no memory of")
    clear(unspoken("data", "cartridge", tmp_path / "none.yaml", *FAKE), "cannot be read")
