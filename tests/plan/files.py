"""Files of models that are small enough to make in a test: GGUF and folders in Hugging Face's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, CONTEXT = 3, 64, 96, 4, 2, 32, 40, 512
SIZES: dict[str, Any] = {
    "context_length": CONTEXT,
    "embedding_length": HIDDEN,
    "block_count": LAYERS,
    "feed_forward_length": FEED_FORWARD,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD_DIM,
    "attention.value_length": HEAD_DIM,
}
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": FEED_FORWARD,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
}
MATRICES = {
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (FEED_FORWARD, HIDDEN),
    "ffn_up": (FEED_FORWARD, HIDDEN),
    "ffn_down": (HIDDEN, FEED_FORWARD),
    "attn_norm": (HIDDEN,),
    "ffn_norm": (HIDDEN,),
}


def write_gguf(
    path: Path, *, tokens: int = VOCABULARY, layers: int = LAYERS, tied: bool = False, **changes: Any
) -> Path:
    """Write a GGUF file of a tiny llama model, all weights 1 in float16 but the norms, which are float32.

    Args:
        path: Where to.
        tokens: Entries of the tokenizer; the embedding has `VOCABULARY` rows whatever it is.
        layers: Layers that are really written.
        tied: Leave out the output matrix.
        changes: Header fields to set, or to leave out where they are None; `__` stands for a dot.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    fields = {f"llama.{key}": value for key, value in SIZES.items()}
    for key, value in changes.items():
        name = key.replace("__", ".")
        fields[name if name.startswith(("general.", "split.")) else f"llama.{name}"] = value
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(tokens)])
    for name, shape in _tensors(layers, tied).items():
        writer.add_tensor(name, np.ones(shape, dtype=np.float32 if len(shape) == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(layers: int, tied: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, HIDDEN)}
    for index in range(layers):
        found |= {f"blk.{index}.{name}.weight": shape for name, shape in MATRICES.items()}
    found["output_norm.weight"] = (HIDDEN,)
    return found if tied else found | {"output.weight": (VOCABULARY, HIDDEN)}


def write_folder(folder: Path, *, stored_bytes: int = 0, **changes: Any) -> Path:
    """Write a folder with a config.json, and a file with the bytes of safetensors where there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(fields))
    if stored_bytes:
        (folder / "model.safetensors").write_bytes(bytes(stored_bytes))
    return folder
