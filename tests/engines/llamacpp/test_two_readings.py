"""One GGUF file read by both engines is one model: the same description, and each goes on from the other's cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from unspoken.engines.gate import measure_pair
from unspoken.engines.llamacpp import load as load_llamacpp
from unspoken.engines.llamacpp.library import Library
from unspoken.engines.protocol import Loading
from unspoken.engines.transformers import load as load_transformers
from unspoken.manifest import compare
from unspoken.modelstore import Source

from .tiny import File, merging, write_model

# As Llama 3.1's: of a tiny model's pairs, some are left, some stretched and one is in between.
STRETCHED = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
Pair = Callable[..., tuple[Any, Any]]


@pytest.fixture
def read(
    libllama: Library,
    tiny_model: Callable[..., nn.Module],
    tiny_tokenizer: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Pair:
    """Write a file of a tiny model and open it in llama.cpp and in transformers."""
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "home"))

    def make(kind: str, *tokens: str, **changes: Any) -> tuple[Any, Any]:
        tokenizer = merging(tiny_tokenizer(), *tokens)
        model = tiny_model(kind, vocab_size=len(tokenizer), **changes)
        path = write_model(tmp_path / "model.gguf", model, tokenizer)
        ours = load_llamacpp(File(path), Loading(kv_type="f32", threads=1))
        return ours, load_transformers(Source(str(path)), Loading())

    return make


def same(ours: Any, theirs: Any) -> None:
    """See that two engines have one model."""
    try:
        assert compare(ours.spec, theirs.spec) == []
        for text in ("the hen, there", "The mill.", "naïve 東京 🙂", "<|im_start|>user\n"):
            assert ours.encode(text) == theirs.encode(text)
            assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
        assert len(ours.encode("the")) == 1
        assert ours.frame("Be brief.") == theirs.frame("Be brief.")
        assert measure_pair(ours, theirs).passed
        assert measure_pair(theirs, ours).passed
    finally:
        ours.close()


def test_a_llama_file_is_one_model_in_both_engines(read: Pair) -> None:
    same(*read("llama", "<|endoftext|>"))


def test_a_llama_3_1_file_is_one_model_in_both_engines(read: Pair) -> None:
    same(*read("llama3", "<|endoftext|>", rope_parameters=STRETCHED))


def test_a_qwen2_file_is_one_model_in_both_engines(read: Pair) -> None:
    same(*read("qwen2", "<|endoftext|>"))


def test_a_qwen3_file_is_one_model_in_both_engines(read: Pair) -> None:
    # transformers takes heads of 128 for granted in these files, which all published ones have.
    same(*read("qwen3", "<|endoftext|>", head_dim=128))


def test_a_file_with_linear_scaling_is_one_model_in_both_engines(read: Pair) -> None:
    same(*read("linear", "<|endoftext|>"))


def test_a_file_to_whose_vocabulary_transformers_adds_a_token_is_two_models_and_refused_as_such(read: Pair) -> None:
    # It takes <|endoftext|> for granted and adds it where a vocabulary has none.
    ours, theirs = read("llama")
    assert [each.field for each in compare(ours.spec, theirs.spec) if each.severity == "fatal"] == ["tokenizer"]
    ours.close()
