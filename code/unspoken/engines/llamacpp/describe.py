"""Describe a GGUF file as a `ModelSpec`, the same one that transformers' reading of it has, or refuse it by name.

Reading samples of every tensor takes a moment for the small models and longer for large ones, so a description is
remembered for as long as the file stays as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from unspoken import __version__
from unspoken.engines import chat
from unspoken.engines.fingerprints import (
    ARCHITECTURE_FIELDS,
    PROBE,
    Sampled,
    hash_architecture,
    hash_tokenizer,
    hash_weights,
    scattered,
)
from unspoken.engines.llamacpp.context import Model
from unspoken.engines.memory import recalled, remember
from unspoken.errors import ModelNotFound, UnspokenError, UnsupportedModel
from unspoken.ggufheader import HeaderReader
from unspoken.spec import ModelSpec, RopeSpec, fingerprint

# llama.cpp's kinds of RoPE (`llama_rope_type`): neighbours form a pair, or coordinates half a head apart do.
PAIRS_NEIGHBOURS, PAIRS_HALVES = 0, 2
# GGUF's names of a layer's parts, and transformers' names of the same tensors.
_LAYER_PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_PARTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# What llama.cpp computes with for these; a file does not say it.
_ACTIVATIONS = {"llama": "silu", "qwen2": "silu", "qwen3": "silu"}
# What transformers calls a special token, and what GGUF does.
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_INSTEAD = "Use a model with full attention and one RoPE, such as Llama, Mistral (v0.2 on), Qwen2.5 or Qwen3."


class Description(msgspec.Struct, frozen=True):
    """What a file says.

    Attributes:
        spec: The model, as far as a cache depends on it.
        template: Its chat template rendered around marks, see `unspoken.engines.chat`.
        between: What it writes between an answer and the user's next words.
        weights: ggml's name of the type most of its weights have ("F16", "Q4_K").
    """

    spec: ModelSpec
    template: str
    between: str
    weights: str


def describe(model: Model, path: Path, name: str, memory: Path | None) -> Description:
    """Return what a cache of this model depends on.

    Args:
        model: The file, opened by llama.cpp.
        path: The file.
        name: For display.
        memory: Folder of remembered descriptions; None remembers nothing.

    Raises:
        UnsupportedModel: If a cache of this kind of model cannot be moved.
        ModelNotFound: If its header cannot be read here, though llama.cpp opened it.
    """
    stat = path.stat()
    # The last two: a change of what is fingerprinted makes remembered descriptions unused, not wrong.
    facts = f"{stat.st_size}\n{stat.st_mtime_ns}\n{__version__}\n{model.library.source}\n{PROBE}\n{ARCHITECTURE_FIELDS}"
    key = fingerprint(os.fsencode(path.resolve()) + f"\n{facts}".encode())  # A path need not be text.
    kept = None if memory is None else memory / "specs" / f"{key}.json"
    found = recalled(kept, Description)
    if found is None:
        try:
            with open(path, "rb", buffering=0) as file:
                found = _described(model, file, HeaderReader(path), name)
        except UnspokenError:
            raise
        except Exception as error:  # A header that is damaged, or newer than its reader, trips it in any way.
            raise ModelNotFound(
                f"{path.name} cannot be read as a GGUF model: {error}.",
                "Fetch or copy the file again; if it is sound, it may need a newer version of the package gguf.",
            ) from error
        remember(kept, found)
    return msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, name=name))


def _described(model: Model, file: RawIOBase, reader: HeaderReader, name: str) -> Description:
    fields = {key: field.contents() for key, field in reader.fields.items() if field.data}
    family = str(fields["general.architecture"])
    own = {key.removeprefix(f"{family}."): value for key, value in fields.items() if key.startswith(f"{family}.")}
    heads = _number(own, "attention.head_count", family)
    head_dim = _number(own, "attention.key_length", family, _number(own, "embedding_length", family) // heads)
    _refuse(model, family, own, head_dim)
    architecture = {
        "model_type": family,
        "num_attention_heads": heads,
        "hidden_act": _ACTIVATIONS.get(family),
        "rms_norm_eps": own.get("attention.layer_norm_rms_epsilon"),
    }
    tokens = [model.token(at) for at in range(model.vocabulary)]
    tokenizer = _template(fields, model)
    template, between = chat.rendered(tokenizer), chat.rendered_between(tokenizer)
    spec = ModelSpec(
        name=name,
        family=family,
        layers=_number(own, "block_count", family),
        kv_heads=_number(own, "attention.head_count_kv", family, heads),
        head_dim=head_dim,
        vocabulary=model.vocabulary,
        context=_number(own, "context_length", family),
        rope=_rope(reader, own, head_dim, family),
        weights=hash_weights(_sampled(file, reader, model.rope_type == PAIRS_NEIGHBOURS, head_dim)),
        architecture=hash_architecture(architecture),
        tokenizer=hash_tokenizer(tokens, len(tokens) - 1, model.tokenize(PROBE)),
        chat_template=fingerprint(template),
    )
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    return Description(spec, template, between, max(sizes, key=sizes.__getitem__))


def _number(own: Mapping[str, Any], key: str, family: str, default: int | None = None) -> int:
    found = own.get(key, default)
    if isinstance(found, list) and len(set(found)) == 1:
        found = found[0]  # One number for each layer, all the same.
    if not isinstance(found, int):
        raise _unsupported(family, f"its layers differ or it does not tell its {key} ({found})")
    return found


def _refuse(model: Model, family: str, own: Mapping[str, Any], head_dim: int) -> None:
    turned = own.get("rope.dimension_count", head_dim)
    reasons = {
        "it keeps compressed latents instead of keys and values (MLA)": "attention.kv_lora_rank" in own,
        "some layers keep a recurrent state instead of columns": model.recurrent,
        f"its layers forget columns outside a sliding window of {model.window}": model.window > 0,
        f"its keys and values differ in size ({own.get('attention.value_length')})": own.get(
            "attention.value_length", head_dim
        )
        != head_dim,
        f"its RoPE turns only {turned} of {head_dim} coordinates": turned != head_dim,
        f"its RoPE is of another kind ({model.rope_type})": model.rope_type not in (PAIRS_NEIGHBOURS, PAIRS_HALVES),
    }
    for reason, holds in reasons.items():
        if holds:
            raise _unsupported(family, reason)


def _unsupported(family: str, reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"Caches of '{family}' models cannot be handed over: {reason}.", _INSTEAD)


def _rope(reader: HeaderReader, own: Mapping[str, Any], head_dim: int, family: str) -> RopeSpec:
    """Return the frequencies llama.cpp turns by: plain, divided by a factor, or by one factor for each pair.

    Source: RoFormer, arXiv 2104.09864, section 3.3; the factors for Llama 3.1 stand in the file as a tensor.
    """
    # A factor without a type is a linear one, and older files have another name for it (llama.cpp, `load_hparams`).
    factor = float(own.get("rope.scaling.factor", own.get("rope.scale_linear", 0.0))) or 1.0
    scaling = str(own.get("rope.scaling.type", "none" if factor == 1.0 else "linear"))
    if scaling not in ("none", "linear"):
        raise _unsupported(family, f"its RoPE is scaled by '{scaling}'")
    base = float(own.get("rope.freq_base", 10000.0))
    frequencies = 1.0 / (base ** (torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim))
    kind = "default"
    if scaling == "linear":
        kind, frequencies = "linear", frequencies / factor
    factors = next((each for each in reader.tensors if each.name == "rope_freqs.weight"), None)
    if factors is not None:
        kind, frequencies = "llama3", frequencies / torch.from_numpy(np.array(factors.data, np.float32))
    return RopeSpec(kind, "half", tuple(frequencies.tolist()))


def _sampled(file: RawIOBase, reader: HeaderReader, reordered: bool, head_dim: int) -> Iterator[Sampled]:
    """Yield the samples that transformers' reading of the file would give, taken from the file's blocks."""
    for tensor in reader.tensors:
        part = tensor.name.removesuffix(".weight").removesuffix(".bias")
        suffix = tensor.name[len(part) :]
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", part)
        if part == "rope_freqs":
            continue  # No weight: transformers has it in its configuration.
        name = f"{_PARTS.get(part, part)}{suffix}"
        if layer is not None:
            name = f"model.layers.{layer[1]}.{_LAYER_PARTS.get(layer[2], layer[2])}{suffix}"
        shape = tuple(int(each) for each in reversed(tensor.shape.tolist()))
        places = scattered(int(tensor.n_elements)).numpy()
        if reordered and part.endswith((".attn_q", ".attn_k")):
            places = _places_in_file(places, shape, head_dim)
        yield Sampled(name, shape, torch.from_numpy(_values(file, tensor, places)))


def _places_in_file(places: NDArray[np.int64], shape: tuple[int, ...], head_dim: int) -> NDArray[np.int64]:
    """Return where in a file's projection an element of transformers' stands; see `engines.llamacpp.columns`."""
    width = shape[1] if len(shape) == 2 else 1
    rows, columns = np.divmod(places, width)
    heads, inside = np.divmod(rows, head_dim)
    half, pair = np.divmod(inside, head_dim // 2)
    moved: NDArray[np.int64] = (heads * head_dim + 2 * pair + half) * width + columns
    return moved


def _values(file: RawIOBase, tensor: Any, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return some elements of a tensor as float32, reading only the blocks they stand in.

    They are read, not mapped: the system maps sixteen pages for each one touched, which for a large model would
    count gigabytes of its file as this process's memory.
    """
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    block, size = GGML_QUANT_SIZES[tensor.tensor_type]
    start = int(tensor.data_offset)
    raw = bytearray()
    for at in places // block:
        file.seek(start + int(at) * size)
        raw += file.read(size) or b""
    wide = dequantize(np.frombuffer(raw, np.uint8), tensor.tensor_type).reshape(-1, block)
    found: NDArray[np.float32] = wide[np.arange(len(places)), places % block].astype(np.float32)
    return found


def _template(fields: Mapping[str, Any], model: Model) -> chat.JinjaTemplate:
    ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    # llama.cpp ignores ids outside the vocabulary when it opens a file, but ends the process if asked for such a token.
    known = {name: int(at) for name, at in ids.items() if isinstance(at, int) and 0 <= at < model.vocabulary}
    template = fields.get("tokenizer.chat_template")
    return chat.JinjaTemplate(
        None if template is None else str(template), {name: model.token(at) for name, at in known.items()}
    )
