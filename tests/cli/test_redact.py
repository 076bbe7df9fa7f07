"""`unspoken redact` as a user meets it: what it writes, and what it refuses without writing anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from unspoken.cachefile import peek, read_cache

from .program import ASKED, DOCUMENT, FAKE, Program, clear, folder_of


@pytest.fixture
def whole(made: Path, tmp_path: Path) -> Path:
    """A cache file with the agent's own prompt in it."""
    return Path(shutil.copy(made / "whole.kv.safetensors", tmp_path / "w.kv.safetensors"))


def test_a_default_capture_holds_no_prompt_and_a_whole_one_can_lose_it(
    unspoken: Program, made: Path, whole: Path, tmp_path: Path
) -> None:
    assert {span.kind for span in peek(made / "good.kv.safetensors").manifest.cache.spans} == {"content"}
    assert "Lyra" in unspoken("leak", whole, *FAKE).out
    out = tmp_path / "r.kv.safetensors"
    told = unspoken("redact", whole, "--span", "system", "--out", out)
    assert told.code == 0
    spans = {span.kind: span for span in peek(whole).manifest.cache.spans}
    gone = spans["system"].stop - spans["system"].start
    columns = peek(whole).manifest.cache.layers[0].columns - gone
    assert f"{out}: {columns} columns as float32" in told.out
    assert f"; {gone} removed." in told.out
    assert "can still be guessed" in told.out
    assert "system" not in {span.kind for span in peek(out).manifest.cache.spans}
    read = unspoken("leak", out, *FAKE)
    assert "Lyra" not in read.out
    assert DOCUMENT in read.out
    assert unspoken("verify", out, "--for", "smollm2-135m", *FAKE).code == 0
    assert unspoken("ask", ASKED, "--cache", out, *FAKE).out == "Anna\n"


def test_kinds_and_ranges_can_be_several_and_the_file_its_own_successor(unspoken: Program, whole: Path) -> None:
    before = read_cache(whole)
    ids, spans = before.manifest.token_ids or (), {span.kind: span for span in before.manifest.spans}
    content = spans["content"].start
    first, second = f"{content}-{content + 3}", f"{content + 10}-{content + 12}"
    more = ("--span", "system", "--span", "sink", "--columns", first, "--columns", second)
    told = unspoken("redact", whole, *more, "--out", whole, "--json").data
    kept = read_cache(whole)
    gone = {*range(content, content + 3), content + 10, content + 11}
    gone |= {at for kind in ("system", "sink") if kind in spans for at in range(spans[kind].start, spans[kind].stop)}
    assert kept.manifest.token_ids == tuple(token for at, token in enumerate(ids) if at not in gone)
    assert (told["columns"], told["removed"]) == (kept.columns, len(gone))
    assert told["digest"] == peek(whole).manifest.digest
    assert told["was_sealed"] is False
    assert folder_of(whole.parent) == [whole.name]


@pytest.mark.parametrize("wire", ["int8", "int4"])
def test_a_packed_file_stays_packed(unspoken: Program, made: Path, tmp_path: Path, wire: str) -> None:
    file, out = tmp_path / "p.kv.safetensors", tmp_path / "r.kv.safetensors"
    more = ("--wire", wire, *FAKE)
    assert unspoken("capture", made / "doc.txt", "--whole", "--out", file, *more).code == 0
    assert unspoken("redact", file, "--span", "system", "--out", out, "--json").data["dtype"] == wire
    assert peek(out).manifest.cache.dtype == wire


def test_a_seal_does_not_outlive_it(
    unspoken: Program, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "home"))
    assert unspoken("keys", "create", "lyra").code == 0
    assert unspoken("seal", whole, "--as", "lyra").code == 0
    out = tmp_path / "r.kv.safetensors"
    told = unspoken("redact", whole, "--span", "system", "--out", out)
    assert f"{out} is another file and is not. Next: unspoken seal {out}" in told.out
    assert peek(out).seal is None
    assert peek(whole).seal is not None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "Nothing was named"),
        (("--span", "thought"), "no column of kind thought"),
        (("--columns", "3"), "'3' is no range"),
        (("--columns", "3-x"), "'3-x' is no range"),
        (("--columns", "-3-5"), "'-3-5' is no range"),
        (("--columns", "5-3"), "5-3 is no range"),
        (("--columns", f"0-{10**30}"), "is no range"),
        (("--columns", "0-99999"), "not all there"),
        (("--columns", "0-60", "--span", "content"), "Nothing would be left"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_written(
    unspoken: Program, made: Path, tmp_path: Path, options: tuple[str, ...], problem: str
) -> None:
    out = tmp_path / "r.kv.safetensors"
    clear(unspoken("redact", made / "good.kv.safetensors", "--out", out, *options), problem)
    assert folder_of(tmp_path) == []


def test_files_that_are_none_and_kinds_that_do_not_exist(unspoken: Program, made: Path, tmp_path: Path) -> None:
    out, good = tmp_path / "r.kv.safetensors", made / "good.kv.safetensors"
    clear(unspoken("redact", made / "doc.txt", "--span", "system", "--out", out), "claims a header of")
    clear(unspoken("redact", made / "none", "--span", "system", "--out", out), "cannot be read")
    clear(unspoken("redact", good, "--columns", "0-3", "--out", tmp_path / "none" / "r"), "does not exist")
    told = unspoken("redact", good, "--span", "secret", "--out", out)
    assert told.code == 2
    assert "'secret' is not one of 'sink', 'system'" in told.err
    assert folder_of(tmp_path) == []
