"""`unspoken plan` as a user meets it: tables, JSON, commands, and one sentence where there is nothing to plan."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .program import Program, clear

LAYERS = 3
SIZES = {
    "context_length": 512,
    "embedding_length": 64,
    "block_count": LAYERS,
    "feed_forward_length": 96,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 40,
    "max_position_embeddings": 512,
}


def _gguf(path: Path) -> Path:
    """Write a file that is a tiny model as far as its header goes."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    for key, value in SIZES.items():
        writer.add_uint32(f"llama.{key}", value)
    for name in ("token_embd", *(f"blk.{index}.ffn_up" for index in range(LAYERS)), "output"):
        writer.add_tensor(f"{name}.weight", np.ones((40, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _folder(folder: Path, **changes: Any) -> Path:
    """Write a folder with a model's configuration, and with the file of its weights, which nobody reads."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "model.safetensors").write_bytes(bytes(123_456))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in and no hub cache, whatever this machine has."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def test_a_known_model_is_planned_for_three_machines(unspoken: Program) -> None:
    told = unspoken("plan", "llama-3.1-8b")
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith(
        "llama-3.1-8b: 8.03 billion weights; 32 layers, 8 KV heads of 128, made for 131072 columns"
    )
    for profile in ("minimum", "comfortable", "optimal"):
        assert f"\n{profile}: all layers on the GPU, f16 caches; " in told.out
    assert "sequential: one agent at a time, the caches of the other 2 wait in RAM (1.1 GB)." in told.out
    assert "parallel: 3 at once beside one copy of the weights (13 would fit)." in told.out
    assert re.search(r"parallel: batches of up to \d+ agents beside one copy of the weights\.", told.out)
    run = "unspoken prove --engine llamacpp --model"
    assert f"  {run} llama-3.1-8b --kv-type f16 --gpu-layers 33 --context 4096\n" in told.out
    assert "  The first time, this fetches its Q4_K_M file, 4.9 GB\n" in told.out
    assert told.out.count(f"  {run} FILE --kv-type f16 --gpu-layers 33 --context 12288\n") == 2
    assert "  FILE: a GGUF of it as Q8_0, yours to bring\n" in told.out


def test_the_tables_give_the_caches_of_the_published_sizes(unspoken: Program) -> None:
    rows = [line.replace("│", "").split() for line in unspoken("plan", "llama-3.1-8b").out.splitlines()]
    # 128, 68 and 36 KiB per token; times 4096 columns; times 3 agents.
    for row in (
        "f16 131.1 kB 536.9 MB 1.6 GB 310.9 MB",
        "q8_0 69.6 kB 285.2 MB 855.6 MB 310.9 MB",
        "q4_0 36.9 kB 151.0 MB 453.0 MB 310.9 MB",
    ):
        assert row.split() in rows


def test_the_same_as_json(unspoken: Program) -> None:
    told = unspoken("plan", "llama-3.1-8b", "--agents", 2, "--context", 1024, "--json").data
    assert told.keys() == {
        "model", "stored_bytes", "context", "agents", "cache", "compute_buffer_bytes", "process_bytes", "gpu_bytes",
        "profiles",
    }  # fmt: skip
    assert (told["context"], told["agents"], told["model"]["parameters"]) == (1024, 2, 8_030_261_248)
    tokens = {kind: each["bytes_per_token"] for kind, each in told["cache"].items()}
    assert tokens == {"f32": 262144, "f16": 131072, "bf16": 131072, "q8_0": 69632, "q4_0": 36864}
    assert all(each["bytes_per_agent"] == 1024 * each["bytes_per_token"] for each in told["cache"].values())
    assert [each["name"] for each in told["profiles"]] == ["minimum", "comfortable", "optimal"]
    small = told["profiles"][0]
    assert (small["vram_bytes"], small["ram_bytes"], small["aim"]) == (6_000_000_000, 19_400_000_000, "sequential")
    weights = small["weights"]
    parts = weights["layers_bytes"] + weights["embedding_bytes"] + weights["output_bytes"]
    assert (parts, weights["estimated"]) == (weights["bytes"], True)
    for kind, fit in small["kv_types"].items():
        cache, rest = 1024 * tokens[kind], told["compute_buffer_bytes"] + told["process_bytes"]
        assert fit["resident_bytes_cpu"] == weights["bytes"] + cache + rest
        assert fit["vram_bytes"] <= small["vram_bytes"]


def test_a_file_is_planned_with_the_command_to_run_it(unspoken: Program, tmp_path: Path) -> None:
    path = _gguf(tmp_path / "my model.gguf")
    told = unspoken("plan", path)
    assert told.code == 0
    assert f"--model '{path}' --kv-type f16 --gpu-layers {LAYERS + 1} --context 512\n" in told.out
    assert "from the header of its GGUF file" in told.out.replace(" \n", " ").replace("\n", " ")
    assert "yours to bring" not in told.out
    assert "fetches" not in told.out


def test_a_folder_is_planned_by_its_configuration(unspoken: Program, tmp_path: Path) -> None:
    told = unspoken("plan", _folder(tmp_path / "mine"), "--json").data
    assert (told["stored_bytes"], told["model"]["source"]) == (123_456, "config.json and the sizes of safetensors")


def test_the_machine_can_be_another(unspoken: Program) -> None:
    small = unspoken("plan", "mistral-7b", "--vram", "4GiB", "--ram", "16GB", "--context", 16384, "--json").data
    first, second, _ = small["profiles"]
    assert (first["vram_bytes"], first["ram_bytes"], second["vram_bytes"]) == (4 * 2**30, 16 * 10**9, 16 * 10**9)
    chosen = first["kv_types"][first["kv_type"]]
    assert 0 < chosen["gpu_layers"] < 32
    assert chosen["gpu_layers"] + chosen["layers_in_ram"] == 32
    assert f"--kv-type {first['kv_type']} --gpu-layers {chosen['gpu_layers']} --context 16384" in first["command"]
    mixed = unspoken("plan", "mistral-7b", "--vram", "4GiB", "--context", 16384)
    assert f"{chosen['layers_on_gpu']} layers on the GPU and {chosen['layers_in_ram']} in RAM" in mixed.out


def test_without_a_gpu_all_layers_are_in_ram(unspoken: Program) -> None:
    told = unspoken("plan", "llama-3.1-8b", "--vram", 0)
    assert "minimum: all layers in RAM, f16 caches" in told.out
    assert "--gpu-layers 0 --context 12288" in told.out  # Three agents at once, in RAM.


def test_where_nothing_fits_it_says_so_and_what_would(unspoken: Program) -> None:
    told = unspoken("plan", "llama-3.1-8b", "--vram", 0, "--ram", "4GB")
    assert told.code == 0
    (line,) = (line for line in told.out.splitlines() if line.startswith("minimum: "))
    assert line.startswith("minimum: Q4_K_M weights do not fit, whatever the cache. What would: Q2_K weights, about")
    assert line.endswith("GB of RAM, without any GPU.")
    assert told.out.count("unspoken prove") == 2


def _damaged(into: Path) -> Path:
    path = _gguf(into / "cut.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _text(into: Path) -> Path:
    path = into / "text.gguf"
    path.write_text("This is no model.")
    return path


BAD: dict[str, tuple[Callable[[Path], tuple[object, ...]], str]] = {
    "a damaged file": (lambda into: (_damaged(into),), "it is shorter than its header says"),
    "no GGUF file": (lambda into: (_text(into),), "it is no GGUF file"),
    "a folder without a model": (lambda into: (into,), "there is no config.json"),
    "an unknown name": (lambda into: ("llama-4",), "There is no model 'llama-4' on this machine"),
    "a hub model that is elsewhere": (lambda into: ("qwen3-0.6b",), "a plan fetches nothing"),
    "a model with windows": (
        lambda into: (_folder(into / "gemma", sliding_window=512, model_type="gemma3"),),
        "Caches of 'gemma3' models cannot be planned",
    ),
    "zero agents": (lambda into: ("mistral-7b", "--agents", 0), "A plan for 0 agents is none"),
    "zero columns": (lambda into: ("mistral-7b", "--context", 0), "A context of 0 columns"),
    "too many columns": (lambda into: ("mistral-7b", "--context", 32769), "more than 'mistral-7b' was made for: 32768"),
    "no size": (lambda into: ("mistral-7b", "--vram", "lots"), "--vram is 'lots', which is no size"),
    "a size without unit": (lambda into: ("mistral-7b", "--ram", "16"), "--ram is '16', which is no size"),
    "a negative size": (lambda into: ("mistral-7b", "--ram", "-16GB"), "--ram is '-16GB', which is no size"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_cannot_be_planned_is_one_clear_error(unspoken: Program, tmp_path: Path, name: str) -> None:
    arguments, problem = BAD[name]
    told = unspoken("plan", *arguments(tmp_path))
    clear(told, problem)
    assert told.out == ""


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [(["plan", "--help"], set()), (["plan", "llama-3.1-8b", "--json"], {"huggingface_hub", "numpy"})],
)
def test_planning_loads_nothing_heavy(arguments: list[str], allowed: set[str]) -> None:
    heavy = ["torch", "numpy", "transformers", "gguf", "huggingface_hub", "rich"]
    code = (
        f"import sys; sys.argv = ['unspoken', *{arguments!r}]\nfrom unspoken.cli import main\n"
        f"try: main()\nfinally: print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert set(re.findall(r"'(\w+)'", done.stderr.strip().splitlines()[-1])) <= allowed
