"""Where a plan's sizes come from: a file, a folder, what is on this machine of the catalogue, or a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unspoken.errors import ModelNotFound, UnsupportedModel
from unspoken.modelstore import catalogue
from unspoken.modelstore.convert import conversion_folder
from unspoken.modelstore.pypi import kept_gguf
from unspoken.plan.shape import BITS_PER_WEIGHT, KNOWN, TYPICAL, quantised, spread
from unspoken.plan.source import find

from .files import CONFIG, CONTEXT, HEAD_DIM, HIDDEN, KV_HEADS, LAYERS, VOCABULARY, write_folder, write_gguf


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache folders of their own, a folder to work in, and no network, for every test."""
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", _no_network)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def _no_network(*_: Any) -> None:
    raise AssertionError("a plan fetches nothing")


def test_the_table_has_the_weights_that_were_published() -> None:
    assert KNOWN["llama-3.1-8b"].parameters == 8_030_261_248
    assert KNOWN["mistral-7b"].parameters == 7_248_023_552
    for name, shape in KNOWN.items():
        stored = catalogue()[name].bytes
        assert stored is not None
        assert 2 * shape.parameters == pytest.approx(stored, rel=1e-4)  # bfloat16, and headers


def test_a_quantisation_has_the_size_its_files_have() -> None:
    # Sizes in GiB from the same table as the bits per weight.
    for kind, gibibytes in {"F16": 14.96, "Q8_0": 7.95, "Q5_K_M": 5.33, "Q4_K_M": 4.58, "Q2_K": 2.95}.items():
        assert quantised(KNOWN["llama-3.1-8b"], kind).total_bytes / 2**30 == pytest.approx(gibibytes, abs=0.01)
    sizes = [quantised(KNOWN["mistral-7b"], kind).total_bytes for kind in BITS_PER_WEIGHT]
    assert sizes == sorted(sizes, reverse=True)
    assert tuple(BITS_PER_WEIGHT)[: len(TYPICAL)] == TYPICAL


def test_spread_weights_add_up_to_the_byte() -> None:
    for shape in KNOWN.values():
        for total in (4_920_739_232, 4_920_739_233, 8_540_775_840):
            weights = spread(shape, total, "x", estimated=False)
            assert weights.total_bytes == total
            assert len(weights.layer_bytes) == shape.layers
            assert max(weights.layer_bytes) - min(weights.layer_bytes) <= 1


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_model_of_the_table_needs_no_file(name: str) -> None:
    model = find(name)
    assert (model.shape, model.source) == (KNOWN[name], "a table of shapes")
    assert tuple(each.name for each in model.choices) == TYPICAL
    assert all(each.estimated for each in model.choices)


def test_a_file_has_the_weights_it_has(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "my model.gguf")
    model = find(str(path))
    assert model.shape.name == "my model"
    assert model.argument(model.choices[0]) == f"'{path}'"  # As a shell takes it.
    assert [each.name for each in model.choices] == ["F16"]
    assert not model.choices[0].estimated


def test_a_folder_is_planned_by_its_configuration(tmp_path: Path) -> None:
    model = find(str(write_folder(tmp_path / "mine", stored_bytes=1234)))
    shape = model.shape
    assert (shape.name, shape.layers, shape.kv_heads, shape.head_dim) == ("mine", LAYERS, KV_HEADS, HEAD_DIM)
    assert (shape.hidden, shape.vocabulary, shape.context) == (HIDDEN, VOCABULARY, CONTEXT)
    assert (shape.tied, model.stored_bytes) == (False, 1234)
    assert {model.argument(each) for each in model.choices} == {"FILE"}
    assert tuple(each.name for each in model.choices) == TYPICAL
    assert "safetensors" in model.source
    without = find(str(write_folder(tmp_path / "other", tie_word_embeddings=True)))
    assert (without.shape.tied, without.stored_bytes, without.source) == (True, None, "config.json")


def test_sizes_that_follow_from_others_may_be_missing(tmp_path: Path) -> None:
    shape = find(str(write_folder(tmp_path / "mine", head_dim=None, num_key_value_heads=None))).shape
    assert (shape.head_dim, shape.kv_heads) == (HIDDEN // 4, 4)


def test_a_folder_hides_a_name_of_the_table(tmp_path: Path) -> None:
    write_folder(tmp_path / "here" / "llama-3.1-8b")
    assert find("llama-3.1-8b").shape.layers == LAYERS


def test_the_same_model_is_planned_alike_as_a_file_and_as_a_folder(tmp_path: Path) -> None:
    file = find(str(write_gguf(tmp_path / "tiny.gguf"))).shape
    folder = find(str(write_folder(tmp_path / "tiny"))).shape
    assert file.counted == file.parameters == folder.parameters
    for field in ("layers", "hidden", "feed_forward", "heads", "kv_heads", "head_dim", "vocabulary", "context", "tied"):
        assert getattr(file, field) == getattr(folder, field)


def test_a_package_is_planned_once_it_is_here() -> None:
    with pytest.raises(ModelNotFound, match="not on this machine, and a plan fetches nothing") as caught:
        find("smollm2-135m")
    assert "unspoken prove --model smollm2-135m" in caught.value.hint
    package = catalogue()["smollm2-135m"].package
    assert package is not None
    write_folder(conversion_folder(package.sha256))
    converted = find("smollm2-135m")
    (weights,) = converted.choices
    assert (converted.shape.layers, converted.argument(weights)) == (LAYERS, "smollm2-135m")
    assert (weights.name, weights.total_bytes, weights.estimated) == ("Q4_1", package.bytes, False)
    write_gguf(kept_gguf(package))
    kept = find("smollm2-135m")
    assert (kept.shape.name, kept.argument(kept.choices[0])) == ("smollm2-135m", "smollm2-135m")
    assert (kept.choices[0].name, kept.source) == ("F16", "the header of its GGUF file")


def _in_hub_cache(hub: Path, repository: str) -> Path:
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123456789")
    (folder / "snapshots" / "0123456789").mkdir(parents=True)
    return folder / "snapshots" / "0123456789"


def test_a_hub_model_is_planned_from_the_local_cache(tmp_path: Path) -> None:
    write_folder(_in_hub_cache(tmp_path / "hub", "Qwen/Qwen3-0.6B"), model_type="qwen3")
    write_folder(_in_hub_cache(tmp_path / "hub", "me/mine"), num_hidden_layers=7)
    assert find("qwen3-0.6b").shape.layers == LAYERS
    assert find("me/mine").shape.layers == 7


def test_a_hub_models_gguf_comes_before_its_folder_and_the_table(tmp_path: Path) -> None:
    listed = catalogue()["llama-3.1-8b"]
    assert listed.gguf is not None
    write_folder(_in_hub_cache(tmp_path / "hub", str(listed.hub)), num_hidden_layers=7)
    assert find("llama-3.1-8b").shape.layers == 7
    write_gguf(_in_hub_cache(tmp_path / "hub", listed.gguf.repository) / listed.gguf.file)
    model = find("llama-3.1-8b")
    assert (model.shape.layers, model.argument(model.choices[0])) == (LAYERS, "llama-3.1-8b")
    assert not model.choices[0].estimated


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_what_a_command_fetches_by_name_needs_no_file_of_the_users(name: str) -> None:
    model = find(name)
    assert {each.name: model.argument(each) for each in model.choices} == {
        "F16": "FILE", "Q8_0": "FILE", "Q5_K_M": "FILE", "Q4_K_M": name,
    }  # fmt: skip


def test_a_hub_model_that_is_not_here_is_not_fetched() -> None:
    with pytest.raises(ModelNotFound, match=r"'qwen3-0\.6b' are not on this machine"):
        find("qwen3-0.6b")


@pytest.mark.parametrize(
    "name", ["missing.gguf", "./missing", "llama", "nobody/nothing", "a/b/c", "--/..", "", "a\0b", "x" * 5000]
)
def test_a_name_that_leads_nowhere_lists_those_that_do(name: str) -> None:
    with pytest.raises(ModelNotFound, match="There is no model") as caught:
        find(name)
    assert all(known in caught.value.hint for known in catalogue())


BAD_CONFIG: dict[str, str | None] = {
    "no config.json": None,
    "cannot be read as JSON": "{",
    "describes no model": "[]",
    "gives None as num_attention_heads": "{}",
    "gives 0 as num_hidden_layers": json.dumps(CONFIG | {"num_hidden_layers": 0}),
    "gives -1 as vocab_size": json.dumps(CONFIG | {"vocab_size": -1}),
    "gives '64' as hidden_size": json.dumps(CONFIG | {"hidden_size": "64"}),
    "gives True as intermediate_size": json.dumps(CONFIG | {"intermediate_size": True}),
    "gives 1e9 as max": json.dumps(CONFIG).replace(f": {CONTEXT}}}", ": 1e9}").replace("1e9", "1000000000.0"),
    "claims 1000000 layers": json.dumps(CONFIG | {"num_hidden_layers": 1_000_000}),
    "gives 4294967296 as hidden_size": json.dumps(CONFIG | {"hidden_size": 1 << 32}),
}


@pytest.mark.parametrize("problem", sorted(BAD_CONFIG))
def test_a_folder_that_describes_no_model_is_refused(tmp_path: Path, problem: str) -> None:
    text = BAD_CONFIG[problem]
    if text is not None:
        (tmp_path / "here" / "config.json").write_text(text)
    with pytest.raises(ModelNotFound, match=problem.replace("1e9", "1000000000.0")) as caught:
        find(".")
    assert caught.value.problem.endswith(".")
    assert caught.value.hint.endswith(".")


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "sliding window of 4096": {"sliding_window": 4096},
    "sliding window of 1024": {"sliding_window": 1024, "layer_types": ["full_attention", "sliding_attention"]},
    "compressed latents": {"kv_lora_rank": 512},
    "recurrent state": {"layer_types": ["full_attention", "linear_attention"]},
    "encoder-decoder": {"is_encoder_decoder": True},
    "it has experts": {"num_local_experts": 8},
}


@pytest.mark.parametrize("reason", sorted(UNSUPPORTED))
def test_what_the_formula_does_not_hold_for_is_refused_by_name(tmp_path: Path, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        find(str(write_folder(tmp_path / "mine", **UNSUPPORTED[reason])))


def test_a_window_that_is_not_used_is_none(tmp_path: Path) -> None:
    unused: list[dict[str, Any]] = [
        {"sliding_window": 4096, "use_sliding_window": False},
        {"sliding_window": None},
        {"sliding_window": 4096, "layer_types": ["full_attention"] * LAYERS},
    ]
    for index, changes in enumerate(unused):
        assert find(str(write_folder(tmp_path / str(index), **changes))).shape.layers == LAYERS


def test_experts_are_counted_by_the_bytes_they_are_stored_in(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_local_experts": 8, "stored_bytes": 1_000_000}
    assert find(str(write_folder(tmp_path / "a", **changes))).shape.parameters == 500_000
    assert (
        find(str(write_folder(tmp_path / "b", dtype=None, torch_dtype="float32", **changes))).shape.counted == 250_000
    )
    for index, unknown in enumerate(({"dtype": "int8"}, {"quantization_config": {"bits": 4}}, {"stored_bytes": 100})):
        with pytest.raises(UnsupportedModel, match="it has experts"):
            find(str(write_folder(tmp_path / f"c{index}", **(changes | unknown))))
