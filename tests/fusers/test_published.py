"""Published folders: what is written comes back the same, and whatever is wrong with one is one clear refusal."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.errors import StorageError, UsageError
from unspoken.fusers.c2c import KV, C2CFuser
from unspoken.fusers.c2c_complex import C2CComplexFuser
from unspoken.fusers.c2c_pair import C2CPair, Fuser
from unspoken.fusers.published import read_published, write_published

ARGS: dict[str, Any] = {
    "source_dim": 3,
    "target_dim": 4,
    "source_num_heads": 2,
    "target_num_heads": 2,
    "intermediate_dim": 8,
    "hidden_dim": 8,
    "dtype": {"__type__": "torch.dtype", "value": "float32"},
}


def opened(fuser: Fuser) -> Fuser:
    with torch.no_grad():
        for name, parameter in fuser.named_parameters():
            if name.endswith("gate_logit"):
                parameter.fill_(0.5)
    return fuser


def cache(layers: int, dim: int) -> list[KV]:
    made = torch.randn(layers, 2, 1, 2, 5, dim, generator=torch.Generator().manual_seed(dim))
    return [(layer[0], layer[1]) for layer in made]


SOURCE, TARGET = cache(3, 3), cache(4, 4)


def same(one: C2CPair, other: C2CPair) -> bool:
    """Whether two pairs make the same numbers, and something of their sources."""
    results = zip(one.eval()(SOURCE, TARGET), other.eval()(SOURCE, TARGET), TARGET, strict=True)
    assert any(not torch.equal(a[0], clean[0]) for a, _, clean in results)
    results = zip(one(SOURCE, TARGET), other(SOURCE, TARGET), strict=True)
    return all(torch.equal(a, b) for x, y in results for a, b in zip(x, y, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the published code writes it, from its description alone: two fusers over four layers."""
    final = tmp_path / "fuser" / "final"
    final.mkdir(parents=True)
    torch.manual_seed(0)
    for index in range(2):
        described = {"class": "C2CProjector", "init_args": ARGS | {"num_layers": 3 + index}}
        (final / f"projector_{index}.json").write_text(json.dumps(described))
        fuser = opened(C2CFuser(3, 4, 2, 2, 8, 8, 3 + index))
        torch.save(fuser.state_dict(), final / f"projector_{index}.pt")
    layers = {"0": {"1": {"0": [[0, 0]], "1": [[0, 1], [1, 0]], "3": [[2, 0]]}, "2": {"2": [[1, 1]]}}}
    (final / "projector_config.json").write_text(json.dumps(layers))
    (tmp_path / "fuser" / "config.json").write_text("{}")
    return final


def test_a_published_folder_is_read_by_its_own_name_or_its_parents(folder: Path) -> None:
    pair = read_published(folder.parent)
    assert pair.layers == {0: (0, 0), 1: (0, 1), 3: (2, 0)}
    assert same(pair, read_published(str(folder)))
    first, second = (opened(C2CFuser(3, 4, 2, 2, 8, 8, count)) for count in (3, 4))
    for index, fuser in enumerate((first, second)):
        fuser.load_state_dict(torch.load(folder / f"projector_{index}.pt", weights_only=True))
    assert same(pair, C2CPair([first, second], pair.layers))
    assert not pair.training
    assert all(parameter.requires_grad for parameter in pair.parameters())
    assert pair.fusers[0].init_args["dropout"] == 0.1  # Not stored, so it is the default.


def test_another_sender_has_its_own_layers_and_only_its_fusers(folder: Path) -> None:
    pair = read_published(folder, sender=2)
    assert pair.layers == {2: (1, 0)}
    assert len(pair.fusers) == 1
    assert pair.fusers[0].init_args["num_layers"] == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_was_written_comes_back_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made: list[Fuser] = [
        C2CFuser(3, 4, 2, 2, 8, 8, 4, dropout=0.25, anneal_steps=7),
        C2CComplexFuser(3, 4, 2, 2, 8, 6, dropout=0.0, dtype=torch.float32),
        C2CFuser(3, 4, 2, 2, 5, 7, zero_init=True),
    ]
    pair = C2CPair([opened(fuser) for fuser in made], {0: (2, 1), 2: (0, 0), 3: (1, 2)}).to(dtype)
    pair.update_temperature(5)
    write_published(pair, tmp_path / "deep" / "written")
    again = read_published(tmp_path / "deep" / "written")
    assert same(pair, again)
    assert again.layers == pair.layers
    assert [fuser.init_args for fuser in again.fusers] == [fuser.init_args | {"dtype": dtype} for fuser in made]
    for (name, mine), (other_name, theirs) in zip(pair.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other_name
        assert mine.dtype == theirs.dtype == dtype
        assert torch.equal(mine, theirs)
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["written"]


def test_the_written_files_have_the_published_form(tmp_path: Path) -> None:
    pair = C2CPair([C2CFuser(3, 4, 2, 2, 8, 8, dtype=torch.bfloat16)], {0: (0, 0), 3: (2, 0)})
    write_published(pair, tmp_path / "written")
    described = json.loads((tmp_path / "written" / "projector_0.json").read_text())
    assert described["class"] == "C2CProjector"
    assert described["init_args"] | ARGS | {"dtype": None} == described["init_args"] | {"dtype": None}
    assert described["init_args"]["dtype"] == {"__type__": "torch.dtype", "value": "bfloat16"}
    layers = json.loads((tmp_path / "written" / "projector_config.json").read_text())
    assert layers == {"0": {"1": {"0": [[0, 0]], "3": [[2, 0]]}}}
    state = torch.load(tmp_path / "written" / "projector_0.pt", weights_only=True)
    assert list(state) == list(pair.fusers[0].state_dict())


def test_reading_spends_no_random_numbers_and_shares_no_memory(folder: Path) -> None:
    weights = folder / "projector_0.pt"
    state = torch.load(weights, weights_only=True)
    state["value_mlp1.blocks.0.w1.weight"] = state["key_mlp1.blocks.0.w1.weight"]
    torch.save(state, weights)
    before = torch.get_rng_state()
    pair = read_published(folder)
    assert torch.equal(before, torch.get_rng_state())
    places = [parameter.data_ptr() for parameter in pair.parameters()]
    assert len(set(places)) == len(places)


class Runs:
    """Something that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (os.environ["MADE_BY_A_PICKLE"],)


def described(**changes: Any) -> str:
    return json.dumps({"class": "C2CProjector", "init_args": ARGS | changes})


SPOILT_JSON = {
    "cut": ("projector_0.json", described()[:-9], "not what it should be"),
    "no-utf8": ("projector_0.json", "\udcff", "not what it should be"),
    "list": ("projector_0.json", "[]", "not what it should be"),
    "deep": ("projector_0.json", "[" * 100_000, "not what it should be"),
    "long": ("projector_0.json", " " * (1 << 20) + "{}", "more than 1048576 bytes"),
    "class": ("projector_0.json", '{"class": "ReplaceProjector", "init_args": {}}', "'ReplaceProjector', expected C2C"),
    "no-class": ("projector_0.json", '{"init_args": {}}', "class"),
    "more": ("projector_0.json", '{"class": "C2CProjector", "init_args": {}, "code": 1}', "code"),
    "unknown-arg": ("projector_0.json", described(pos_emb=True), "pos_emb"),
    "missing-arg": ("projector_0.json", '{"class": "C2CProjector", "init_args": {"source_dim": 3}}', "target_dim"),
    "arg-type": ("projector_0.json", described(hidden_dim="8"), "hidden_dim"),
    "arg-bool": ("projector_0.json", described(hidden_dim=True), "hidden_dim"),
    "arg-size": ("projector_0.json", described(num_layers=2), "num_layers is 2, expected 3"),
    "arg-huge": ("projector_0.json", described(hidden_dim=10**40), "hidden_dim"),
    "dtype": ("projector_0.json", described(dtype={"__type__": "torch.dtype", "value": "int8"}), "dtype"),
    "dtype-text": ("projector_0.json", described(dtype="float32"), "dtype"),
    "map-cut": ("projector_config.json", '{"0": {"1": {"0": [[0, 0]', "not what it should be"),
    "map-word": ("projector_config.json", '{"0": {"1": {"first": [[0, 0]]}}}', "not what it should be"),
    "map-negative": ("projector_config.json", '{"0": {"1": {"0": [[0, -1]]}}}', "not what it should be"),
    "map-negative-layer": ("projector_config.json", '{"0": {"1": {"-1": [[0, 0]]}}}', "not what it should be"),
    "map-half": ("projector_config.json", '{"0": {"1": {"0": [[0]]}}}', "not what it should be"),
    "map-empty": ("projector_config.json", '{"0": {"1": {"0": []}}}', "not what it should be"),
    "map-none": ("projector_config.json", '{"0": {"3": {"0": [[0, 0]]}}}', "only for: 0 from 3"),
    "map-fuser": ("projector_config.json", '{"0": {"1": {"0": [[0, 2]]}}}', "names fuser 2, the folder has 2"),
}


@pytest.mark.parametrize("case", SPOILT_JSON)
def test_json_that_is_not_as_published_is_refused(folder: Path, case: str) -> None:
    name, text, said = SPOILT_JSON[case]
    (folder / name).write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match=said) as told:
        read_published(folder)
    assert name in told.value.problem


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("projector_config.json", "no projector_config.json"),
        ("projector_0.json", "projector_0.json is missing"),
        ("projector_0.pt", "projector_0.pt is missing"),
        ("projector_1.pt", "projector_1.pt is missing"),
    ],
)
def test_a_missing_file_is_refused(folder: Path, name: str, said: str) -> None:
    (folder / name).unlink()
    with pytest.raises(StorageError, match=said):
        read_published(folder)


def test_a_gap_in_the_numbers_is_refused(folder: Path) -> None:
    for ending in ("json", "pt"):
        shutil.copy(folder / f"projector_1.{ending}", folder / f"projector_3.{ending}")
    with pytest.raises(StorageError, match=r"projector_2\.json is missing"):
        read_published(folder)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    for name in ("missing", "with\0null"):
        with pytest.raises(StorageError, match="Give a folder"):
            read_published(tmp_path / name)


def with_state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return spoil


SPOILT_WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "no weights"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 9), "no weights"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-400]), "no weights"),
    "code": (lambda path: torch.save({"key_gate_logit": Runs()}, path), "no weights, or more than weights"),
    "list": (lambda path: torch.save([torch.zeros(())], path), "no state dict"),
    "nested": (with_state(lambda state: state.update(more={"key_in.bias": torch.zeros(1)})), "no state dict"),
    "missing": (with_state(lambda state: state.pop("key_in.bias")), r"lacks \['key_in.bias'\]"),
    "unknown": (with_state(lambda state: state.update(extra=torch.zeros(1))), r"unknown \['extra'\]"),
    "shape": (with_state(lambda state: state.update({"key_in.bias": torch.zeros(7)})), "'key_in.bias' of .* \\[7\\]"),
    "whole": (with_state(lambda state: state.update({"key_in.bias": torch.zeros(8).long()})), "torch.int64"),
    "nan": (with_state(lambda state: state["key_in.bias"].fill_(torch.nan)), "expected dense finite"),
    "sparse": (with_state(lambda state: state.update({"key_in.bias": torch.zeros(8).to_sparse()})), "dense"),
    "stretched": (with_state(lambda state: state.update({"key_in.bias": torch.zeros(1).expand(8)})), "dense"),
    "other-layers": (lambda path: shutil.copy(path.with_name("projector_1.pt"), path), "unknown"),
}


@pytest.mark.parametrize("case", SPOILT_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADE_BY_A_PICKLE", str(tmp_path / "made"))
    spoil, said = SPOILT_WEIGHTS[case]
    spoil(folder / "projector_0.pt")
    with pytest.raises(UsageError, match=said) as told:
        read_published(folder)
    assert "projector_0.pt" in told.value.problem
    assert not (tmp_path / "made").exists()


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "projector_0.pt").unlink()
    (folder / "projector_0.pt").mkdir()
    with pytest.raises(StorageError, match=r"projector_0\.pt cannot be read"):
        read_published(folder)


def test_nothing_is_written_over_or_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = C2CPair([C2CFuser(3, 4, 2, 2, 8, 8)], {0: (0, 0)})
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_published(pair, tmp_path / "taken")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_published(pair, tmp_path / "file" / "below")
    with pytest.raises(UsageError, match="no fusers"):
        write_published(C2CPair([], {}), tmp_path / "none")

    def full(*_: object) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="unexpected pos"):
        write_published(pair, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
