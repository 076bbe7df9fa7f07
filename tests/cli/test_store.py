"""`unspoken store`, and `unspoken ask --from`: a cache left by one process and taken up by another."""

from __future__ import annotations

from pathlib import Path

import pytest

from .program import ASKED, FAKE, Program, clear


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, str]:
    """The options that name a store of the test's own."""
    return ("--in", f"file:{tmp_path / 'store'}")


def test_what_is_left_is_asked_about(unspoken: Program, made: Path, store: tuple[str, str], tmp_path: Path) -> None:
    told = unspoken("store", "put", made / "good.kv.safetensors", "mill", *store)
    assert told.code == 0
    assert told.out.startswith("mill: ")
    asked = unspoken("ask", ASKED, "--cache", "mill", "--from", store[1], *FAKE)
    assert asked.out == "Anna\n"
    assert asked.err.startswith("[kv: ")
    back = tmp_path / "back.kv.safetensors"
    assert unspoken("store", "get", "mill", *store, "--out", back).code == 0
    assert back.read_bytes() == (made / "good.kv.safetensors").read_bytes()
    assert unspoken("store", "delete", "mill", *store).code == 0
    clear(unspoken("store", "delete", "mill", *store), "There is nothing under 'mill'")


def test_where_it_is_lost_the_document_is_read(unspoken: Program, made: Path, store: tuple[str, str]) -> None:
    lost = ("ask", ASKED, "--cache", "mill", "--from", store[1], *FAKE)
    clear(unspoken(*lost), "There is nothing under 'mill'")
    told = unspoken(*lost, "--or", made / "doc.txt")
    assert (told.code, told.out) == (0, "Anna\n")
    first, last = told.err.splitlines()
    assert first.startswith("The document is read instead. There is nothing under 'mill'")
    assert last.startswith("[full-text: ")


def test_seals_are_checked_on_arrival(unspoken: Program, made: Path, store: tuple[str, str], tmp_path: Path) -> None:
    asked = ("ask", ASKED, "--cache", "mill", "--from", store[1], "--trusted", *FAKE)
    unspoken("store", "put", made / "good.kv.safetensors", "mill", *store)
    clear(unspoken(*asked, "--or", made / "doc.txt"), "is not sealed")
    key = unspoken("keys", "create", "lyra", "--json").data
    told = unspoken("store", "put", made / "good.kv.safetensors", "mill", *store, "--as", "lyra", "--session", "tea")
    assert told.code == 0
    clear(unspoken(*asked), "which nobody known has")
    assert unspoken("keys", "trust", key["public_file"]).code == 0
    assert unspoken(*asked).out == "Anna\n"
    out = tmp_path / "out.kv.safetensors"
    other = unspoken("store", "get", "mill", *store, "--out", out, "--trusted", "--session", "coffee")
    clear(other, "it is for the session 'tea'")
    assert not out.exists()
    assert unspoken("store", "get", "mill", *store, "--out", out, "--trusted", "--session", "tea").code == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("store", "put", "{good}", "../mill"), "'../mill' is no key"),
        (("store", "put", "{none}", "mill"), "cannot be read"),
        (("store", "put", "{good}", "mill", "--session", "tea"), "Nobody seals it"),
        (("store", "put", "{good}", "mill", "--in", "telepathy"), "no transport named 'telepathy'"),
        (("store", "get", "mill", "--out", "x", "--session", "tea"), "A session is told by a seal"),
        (("ask", "Who?", "--about", "{doc}", "--from", "shm"), "Nothing of the store is asked for"),
        (("ask", "Who?", "--cache", "{good}", "--or", "{doc}"), "a document stands in for a store"),
        (("ask", "Who?", "--cache", "mill", "--from", "shm", "--or", "{none}"), "cannot be read"),
    ],
)
def test_what_cannot_work_is_told(unspoken: Program, made: Path, arguments: tuple[str, ...], problem: str) -> None:
    known = {"good": made / "good.kv.safetensors", "doc": made / "doc.txt", "none": made / "none"}
    given = [each.format(**known) for each in arguments]
    clear(unspoken(*given), problem)
