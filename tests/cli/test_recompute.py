"""`unspoken verify --recompute` as a user meets it: honest files pass, lies do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch

from unspoken.cache import KVCache, KVLayer
from unspoken.cachefile import read_cache, write_cache
from unspoken.cli import recompute
from unspoken.trust import spotcheck

from .program import DOCUMENT, FAKE, Program, clear

FOR = ("--for", "smollm2-135m", *FAKE)
# Of another letter than the column before.
ALTERED = [at for at in range(5, 60, 6) if DOCUMENT[at] != DOCUMENT[at - 1]]


def _lying(file: Path, out: Path, columns: Sequence[int], layers: Sequence[int] = (0, 1)) -> Path:
    """Write a file some of whose columns are those before them."""
    cache = read_cache(file)
    source = torch.arange(cache.columns)
    source[list(columns)] -= 1
    held = [
        KVLayer(each.index, each.keys[:, source], each.values[:, source], each.positions)
        if each.index in layers
        else each
        for each in cache.layers
    ]
    write_cache(KVCache(tuple(held), cache.manifest), out)
    return out


def test_the_default_that_is_shown_is_the_one_of_the_check() -> None:
    assert recompute.COLUMNS == spotcheck.COLUMNS


@pytest.mark.parametrize(("more", "columns"), [((), 48), (("7",), 7), (("9999",), len(DOCUMENT))])
def test_an_honest_file_passes(unspoken: Program, made: Path, more: tuple[str, ...], columns: int) -> None:
    file = made / "good.kv.safetensors"
    told = unspoken("verify", file, *FOR, "--recompute", *more)
    assert told.code == 0
    assert (
        f"Computed again: {columns} of {len(DOCUMENT)} columns in layer 0: they are what their tokens make" in told.out
    )
    assert "deeper layers: what stood before its columns" in told.out
    assert "probability that columns altered beyond that were missed" in told.out
    data = unspoken("verify", file, *FOR, "--recompute", *more, "--json").data
    assert (data["sound"], data["mismatches"]) == (True, [])
    assert (data["recomputed"]["passed"], data["recomputed"]["columns"]) == (True, columns)
    assert list(data["recomputed"]["errors"]) == ["0"]


def test_without_a_model_the_usual_one_is_taken(unspoken: Program, made: Path) -> None:
    assert unspoken("verify", made / "good.kv.safetensors", *FAKE, "--recompute").code == 0


def test_a_whole_file_is_computed_again_with_all_columns_and_layers(unspoken: Program, made: Path) -> None:
    told = unspoken("verify", made / "whole.kv.safetensors", *FOR, "--recompute", "--deep")
    assert told.code == 0
    assert "columns in layers 0 to 1: they are what their tokens make" in told.out
    assert "not computed again" not in told.out


def test_a_sealed_lie_is_found(unspoken: Program, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "home"))
    file = _lying(made / "good.kv.safetensors", tmp_path / "lie", ALTERED)
    assert unspoken("keys", "create", "lyra").code == 0
    assert unspoken("keys", "trust", tmp_path / "home" / "keys" / "lyra.pub").code == 0
    assert unspoken("seal", file, "--as", "lyra").code == 0
    assert unspoken("verify", file, "--trusted", *FOR).code == 0
    told = unspoken("verify", file, "--trusted", *FOR, "--recompute", "60")
    clear(told, f"{len(ALTERED)} of 60 columns are not what the model makes of the tokens beside them")
    assert f"{len(ALTERED)} are NOT what their tokens make" in told.out
    data = unspoken("verify", file, *FOR, "--recompute", "60", "--json")
    assert data.code == 2
    assert (data.data["sound"], data.data["recomputed"]["passed"]) == (True, False)
    assert data.data["recomputed"]["deviating"] == ALTERED


def test_who_read_the_text_opens_the_deeper_layers(unspoken: Program, made: Path, tmp_path: Path) -> None:
    good = made / "good.kv.safetensors"
    file = _lying(good, tmp_path / "lie", [20], [1])
    assert unspoken("verify", file, *FOR, "--recompute", "60").code == 0  # Layer 0 is honest.
    clear(unspoken("verify", file, *FOR, "--recompute", "--agent", "lyra"), "in layer 1 the largest error")
    told = unspoken("verify", good, *FOR, "--recompute", "--deep", "--agent", "lyra")
    assert (told.code, "60 of 60 columns in layers 0 to 1" in told.out) == (0, True)
    (tmp_path / "card.yaml").write_text("name: lyra\ncard: You are Lyra, a helpful assistant.\n")
    assert unspoken("verify", good, *FOR, "--recompute", "--deep", "--card", tmp_path / "card.yaml").code == 0
    # With another prompt, deeper layers were asked for and cannot be compared.
    clear(unspoken("verify", good, *FOR, "--recompute", "--deep", "--agent", "bo"), "do not follow the prefix given")


def test_what_was_asked_for_and_cannot_be_looked_at_is_refused(unspoken: Program, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.kv.safetensors"
    assert unspoken("capture", made / "doc.txt", "--no-tokens", "--out", file, *FAKE).code == 0
    told = unspoken("verify", file, *FOR, "--recompute")
    clear(told, "could not be computed again: its token ids are not disclosed")
    assert "not computed again: its token ids are not disclosed" in told.out
    deep = unspoken("verify", made / "good.kv.safetensors", *FOR, "--recompute", "--deep")
    clear(deep, "from layer 1 on, could not be computed again")
    assert "layer 0: they are what their tokens make" in deep.out


def test_ids_that_no_model_has_and_other_models_are_refused(
    unspoken: Program, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unspoken.engines.fake import FakeEngine

    cache = read_cache(made / "good.kv.safetensors")
    named = msgspec.structs.replace(cache.manifest, token_ids=(10**6, *(cache.manifest.token_ids or ())[1:]))
    write_cache(KVCache(cache.layers, named), tmp_path / "unknown")
    clear(unspoken("verify", tmp_path / "unknown", *FOR, "--recompute"), "names the token 1000000")
    monkeypatch.setattr("unspoken.api.open_model", lambda *_, **__: FakeEngine(seed=1, name="another"))
    told = unspoken("verify", made / "good.kv.safetensors", *FOR, "--recompute")
    clear(told, "does not fit 'another'")
    assert "fatal" in told.out
    assert "omputed again" not in told.out


@pytest.mark.parametrize("more", [("--deep",), ("--agent", "lyra"), ("--card", "x.yaml")])
def test_options_without_recompute_are_refused(unspoken: Program, made: Path, more: tuple[str, ...]) -> None:
    clear(unspoken("verify", made / "good.kv.safetensors", *FOR, *more), "about columns that are computed again")


def test_a_name_that_is_no_text_is_refused(unspoken: Program, made: Path) -> None:
    told = unspoken("verify", made / "good.kv.safetensors", *FOR, "--recompute", "--agent", "\udcff")
    clear(told, "agent's name")


def test_a_number_of_columns_that_is_none_is_refused(unspoken: Program, made: Path) -> None:
    for bad in ("0", "-3", "many"):
        told = unspoken("verify", made / "good.kv.safetensors", *FOR, "--recompute", bad)
        assert told.code == 2
        assert "Invalid value for '--recompute'" in told.err or "No such option" in told.err
    clear(
        unspoken("verify", made / "good.kv.safetensors", *FOR, "--recompute", "--card", "none.yaml"), "cannot be read"
    )
