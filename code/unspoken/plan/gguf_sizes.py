"""The sizes of a model from the header of its GGUF file; no tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import LlamaFileType
from gguf.gguf_reader import ReaderTensor

from unspoken.errors import ModelNotFound, UnsupportedModel
from unspoken.ggufheader import HeaderReader
from unspoken.plan.shape import LARGEST_LAYERS, LARGEST_SIZE, Shape, Weights, unsupported


def read_gguf(path: Path) -> tuple[Shape, Weights]:
    """Return the shape of a GGUF file's model, and where the bytes of its weights lie.

    Raises:
        ModelNotFound: If it is no GGUF file of a whole model.
        UnsupportedModel: If its layers do not all keep the same keys and values per token.
    """
    try:
        reader = HeaderReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if field.data}
        shape = _shape(path.stem, fields, reader.tensors)
        return shape, _weights(shape, _kind(fields, reader.tensors), reader.tensors)
    except (ModelNotFound, UnsupportedModel):
        raise
    except Exception as error:  # A damaged file trips its reader in any way.
        raise ModelNotFound(
            f"{path.name} cannot be read as a GGUF model: {_reason(error)}.",
            "Fetch or copy the file again, and compare its size with that of the original.",
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "its header holds bytes that are no text"
    return (str(error).splitlines() or [""])[0].strip("'\" .") or type(error).__name__


def _shape(name: str, fields: Mapping[str, Any], tensors: list[ReaderTensor]) -> Shape:
    kind = fields.get("general.architecture")
    if not isinstance(kind, str):
        raise ValueError("its header names no architecture")

    def size(key: str, otherwise: int | None = None) -> int:
        values = fields.get(f"{kind}.{key}", otherwise)
        distinct = set(values if isinstance(values, list) else [values])
        if len(distinct) != 1:
            raise unsupported(kind, f"its layers differ in {key}")
        (value,) = distinct
        if not isinstance(value, int) or not 0 < value <= LARGEST_SIZE:
            raise ValueError(f"{kind}.{key} is {value}")
        return value

    _refuse_unsupported(kind, fields)
    _refuse_part(name, fields)
    hidden, heads, layers = size("embedding_length"), size("attention.head_count"), size("block_count")
    if layers > LARGEST_LAYERS:
        raise ValueError(f"it claims {layers} layers")
    head_dim = size("attention.key_length", hidden // heads)
    if size("attention.value_length", head_dim) != head_dim:
        raise unsupported(kind, "keys and values differ in width")
    return Shape(
        name=name,
        layers=layers,
        hidden=hidden,
        feed_forward=size("feed_forward_length"),
        heads=heads,
        kv_heads=size("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocabulary=_vocabulary(tensors),
        context=size("context_length"),
        tied=not any(tensor.name == "output.weight" for tensor in tensors),
        counted=sum(int(tensor.n_elements) for tensor in tensors),
    )


def _vocabulary(tensors: list[ReaderTensor]) -> int:
    embedding = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError("it holds no embedding of a language model")
    return int(embedding.shape[1])


def _refuse_part(name: str, fields: Mapping[str, Any]) -> None:
    parts = int(fields.get("split.count", 1))
    if parts > 1:
        raise ModelNotFound(
            f"{name}.gguf is one of the {parts} parts of a model.", "Join them with llama-gguf-split --merge."
        )


def _refuse_unsupported(kind: str, fields: Mapping[str, Any]) -> None:
    window = fields.get(f"{kind}.attention.sliding_window")
    reasons = {
        f"its layers forget columns outside a sliding window of {window}": bool(window),
        "it keeps compressed latents instead of keys and values (MLA)": f"{kind}.attention.kv_lora_rank" in fields,
        "some layers keep a recurrent state instead of columns": any(key.startswith(f"{kind}.ssm.") for key in fields),
    }
    for reason, holds in reasons.items():
        if holds:
            raise unsupported(kind, reason)


def _kind(fields: Mapping[str, Any], tensors: list[ReaderTensor]) -> str:
    """Return how most of a file is quantised: as the file says, else by its largest tensor."""
    try:
        return LlamaFileType(fields["general.file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError):
        return max(tensors, key=lambda tensor: int(tensor.n_bytes)).tensor_type.name


def _weights(shape: Shape, name: str, tensors: list[ReaderTensor]) -> Weights:
    layers, embedding, output = [0] * shape.layers, 0, 0
    for tensor in tensors:
        part, _, rest = tensor.name.partition(".")
        if part == "blk":
            index = int(rest.partition(".")[0])
            if not 0 <= index < shape.layers:
                raise ValueError(f"it holds a layer {index}, its header speaks of {shape.layers}")
            layers[index] += int(tensor.n_bytes)
        elif part == "token_embd":
            embedding += int(tensor.n_bytes)
        else:
            output += int(tensor.n_bytes)
    present = sum(size > 0 for size in layers)
    if present != shape.layers:
        raise ValueError(f"it holds {present} of its {shape.layers} layers")
    return Weights(name, tuple(layers), embedding, output, shape.tied, estimated=False)
