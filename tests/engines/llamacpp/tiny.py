"""Tiny random models as GGUF files, written as llama.cpp's convert_hf_to_gguf.py writes models of their kind."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFWriter, TokenType, get_tensor_name_map
from numpy.typing import NDArray
from torch import nn

# A vocabulary as large as the tokenizer's: llama.cpp has no ids without a token.
VOCABULARY = {"vocab_size": 258}
# Heads of the size that llama.cpp rotates when it quantises a cache.
WIDE = {"hidden_size": 256, "head_dim": 64}


@dataclass(frozen=True)
class File:
    """A GGUF file as the source of a model."""

    path: Path
    memory: Path | None = None
    name: str = "tiny"

    def folder(self) -> tuple[Path, str]:
        raise NotImplementedError

    def gguf(self) -> tuple[Path, str]:
        return self.path, self.name


def write_model(path: Path, model: nn.Module, tokenizer: Any, changed: Mapping[str, Any] | None = None) -> Path:
    """Write a transformers model and its tokenizer as a GGUF file of float32 weights.

    Args:
        path: The file.
        model: Llama, Qwen2 or Qwen3.
        tokenizer: Of bytes, with special tokens and perhaps merges.
        changed: Fields to have another value, or None to be left out; `{arch}` stands for the architecture.
    """
    config: Any = model.config
    arch = str(config.model_type)
    fields = {
        key.replace("{arch}", arch): value
        for key, value in {**_fields(config), **_tokens(tokenizer), **(changed or {})}.items()
    }
    writer = GGUFWriter(path, arch)
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[
                type(value)
            ](key, value)
    for name, values in tensors(model):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merging(tokenizer: Any, *more: str) -> Any:
    """Return a tokenizer of bytes with two merges, so that not all its tokens are bytes, and more special tokens."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    raw["model"]["vocab"] |= {"he": 256, "the": 257}
    raw["model"]["merges"] = [["h", "e"], ["t", "he"]]
    raw["added_tokens"] = []
    made = Tokenizer.from_str(json.dumps(raw))
    made.add_special_tokens([AddedToken(each, special=True) for each in ("<|im_start|>", "<|im_end|>", *more)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=tokenizer.eos_token, chat_template=tokenizer.chat_template
    )


def tensors(model: nn.Module) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield a model's tensors by their names in GGUF, rows of queries and keys reordered where that is done."""
    config: Any = model.config
    arch = next(number for number, name in MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", llama3_factors(config)
    for name, parameter in model.named_parameters():
        values: NDArray[np.float32] = parameter.detach().numpy()
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = permuted(values, heads)
        yield str(names.get_name(name, try_suffixes=(".weight", ".bias"))), values


def permuted(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return rows in the order of the converter's `permute`: of each head i, i + D/2, i + 1, i + 1 + D/2 ..."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))


def llama3_factors(config: Any) -> NDArray[np.float32]:
    """Return what the converter divides the frequencies of Llama 3.1 by (`LlamaModel.generate_extra_tensors`)."""
    rope, dim = config.rope_parameters, config.head_dim
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    old = rope["original_max_position_embeddings"]
    factors = []
    for pair in range(dim // 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (2 * pair / dim)
        smooth = (old / wave - low) / (high - low)
        factors.append(1 / ((1 - smooth) / factor + smooth) if old / high <= wave <= old / low else
                       1.0 if wave < old / high else factor)  # fmt: skip
    return np.array(factors, np.float32)


def _fields(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    linear = {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": rope.get("factor")}
    return {
        "{arch}.block_count": config.num_hidden_layers,
        "{arch}.context_length": config.max_position_embeddings,
        "{arch}.embedding_length": config.hidden_size,
        "{arch}.feed_forward_length": config.intermediate_size,
        "{arch}.attention.head_count": config.num_attention_heads,
        "{arch}.attention.head_count_kv": config.num_key_value_heads,
        "{arch}.attention.key_length": config.head_dim,
        "{arch}.attention.value_length": config.head_dim,
        "{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "{arch}.rope.dimension_count": config.head_dim,
        "{arch}.rope.freq_base": rope["rope_theta"],
        "{arch}.vocab_size": config.vocab_size,
        **(linear if rope["rope_type"] == "linear" else {}),
    }


def _tokens(tokenizer: Any) -> dict[str, Any]:
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.added_tokens_decoder)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(vocabulary, key=vocabulary.__getitem__),
        "tokenizer.ggml.token_type": [
            int(TokenType.CONTROL if at in special else TokenType.NORMAL) for at in range(len(vocabulary))
        ],
        # llama.cpp insists on merges; these two never stand beside each other as letters of one word.
        "tokenizer.ggml.merges": merges or ["<|im_start|> <|im_end|>"],
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
