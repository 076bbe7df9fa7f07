"""`unspoken leak` as a user meets it: the text of a file, with and without token ids in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from unspoken.cachefile import read_cache, write_cache
from unspoken.cli.leak import WARNING

from .program import DOCUMENT, FAKE, Program, clear


def test_the_text_of_a_file_is_shown_and_how_much_of_it_is_right(unspoken: Program, made: Path) -> None:
    told = unspoken("leak", made / "good.kv.safetensors", *FAKE)
    assert (told.code, told.out) == (0, f"{DOCUMENT}\n")
    assert f"[{len(DOCUMENT)} tokens from the values of layer 0 in " in told.err
    assert "100.0% are the ids the file names]" in told.err
    assert WARNING in told.err


def test_a_file_without_token_ids_tells_the_same(unspoken: Program, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.kv.safetensors"
    assert unspoken("capture", made / "doc.txt", "--no-tokens", "--out", file, *FAKE).code == 0
    told = unspoken("leak", file, *FAKE)
    assert (told.code, told.out) == (0, f"{DOCUMENT}\n")
    assert "the file names no token ids]" in told.err
    data = unspoken("leak", file, *FAKE, "--json").data
    assert (data["file"], data["columns"], data["recovered"]) == (str(file), len(DOCUMENT), None)
    assert (data["text"], data["by"], len(data["token_ids"])) == (DOCUMENT, "values", len(DOCUMENT))


def test_a_text_cannot_steer_the_terminal(unspoken: Program, tmp_path: Path) -> None:
    (tmp_path / "evil.txt").write_text("red \x1b[31mtext\nand more")
    file = tmp_path / "a.kv.safetensors"
    assert unspoken("capture", tmp_path / "evil.txt", "--out", file, *FAKE).code == 0
    told = unspoken("leak", file, *FAKE)
    assert told.out == "red  [31mtext\nand more\n"


def test_what_cannot_be_read_is_refused(unspoken: Program, made: Path, tmp_path: Path) -> None:
    from unspoken.cache import KVCache

    cache = read_cache(made / "good.kv.safetensors")
    write_cache(KVCache.build(cache.layers[1:], cache.spec, rope="removed"), tmp_path / "upper")
    told = unspoken("leak", tmp_path / "upper", *FAKE)
    clear(told, "holds no column of layer 0")
    assert "does not make it safe" in told.err
    clear(unspoken("leak", made / "doc.txt", *FAKE), "claims a header of")
    clear(unspoken("leak", tmp_path / "none", *FAKE), "cannot be read")


def test_another_models_file_is_refused(unspoken: Program, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unspoken.engines.fake import FakeEngine

    other = FakeEngine(seed=1, name="another")
    monkeypatch.setattr("unspoken.api.open_model", lambda *_, **__: other)
    clear(unspoken("leak", made / "good.kv.safetensors", *FAKE), "does not fit 'another'")
