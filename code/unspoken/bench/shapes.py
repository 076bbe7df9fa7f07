"""GGUF files of real size with random weights, to measure memory and time where real ones cannot be had.

Such a model says nothing about quality: it writes nonsense. It takes as much memory as a real one of its
shape and quantisation, and as much time for each token.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, replace
from errno import EISDIR
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFEndian,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
)
from numpy.typing import NDArray

from unspoken.errors import ModelNotFound, StorageError, UsageError
from unspoken.modelstore.rope import RopeFactors, rope_divisors
from unspoken.plan.shape import KNOWN, Shape

SEED = 20261123
WARNING = "random weights, for memory and time only"
# Values drawn at a time: a few megabytes, so that a matrix of any size takes no memory to speak of.
VALUES_AT_ONCE = 1 << 22
F32, Q4, Q8 = GGMLQuantizationType.F32, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0
# Standard deviation of what a block's random integers stand for: 0 to 15 less 8, with the scale's sign drawn as
# well, so that their mean is 0; and -128 to 127.
SPREAD = {
    Q4: (sum((q - 8) ** 2 for q in range(16)) / 16) ** 0.5,
    Q8: (sum(q**2 for q in range(-128, 128)) / 256) ** 0.5,
}


@dataclass(frozen=True)
class Built:
    """A shape to build: the sizes, the base of its RoPE, and what divides its frequencies."""

    shape: Shape
    theta: float
    factors: RopeFactors | None = None


SHAPES = {
    "llama-3.1-8b": Built(KNOWN["llama-3.1-8b"], 500_000.0, RopeFactors(8.0, 1.0, 4.0, 8192)),
    "mistral-7b": Built(KNOWN["mistral-7b"], 1_000_000.0),
    # Small enough for a test, with heads that llama.cpp rotates when it quantises their cache.
    "tiny": Built(Shape("tiny", 2, 256, 512, 4, 2, 64, 0, 2048), 10_000.0),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: its shape with the longest stride first, as numpy has it, and its type."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape in bytes of a quantised tensor; blocks lie along rows."""
        values, size = GGML_QUANT_SIZES[self.kind]
        return self.shape if self.kind is F32 else (*self.shape[:-1], self.shape[-1] // values * size)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file, without padding."""
        return int(np.prod(self.stored_shape)) * (4 if self.kind is F32 else 1)


def build(shape: str, tokenizer_source: Path, target: Path) -> None:
    """Write a GGUF file of a shape, with random weights and somebody else's tokenizer.

    Weights are drawn while they are written, so that only the tokenizer takes memory. The same shape and tokenizer
    give the same file. It appears under its name only when it is complete.

    Args:
        shape: A name of `SHAPES`.
        tokenizer_source: A GGUF file whose tokenizer and chat template are copied; its vocabulary sets the size of
            the embedding.
        target: The file to write.

    Raises:
        UsageError: If there is no such shape.
        ModelNotFound: If the source is no GGUF file with a tokenizer.
        StorageError: If the file cannot be written, or there is not enough room for it.
    """
    if shape not in SHAPES:
        raise UsageError(f"There is no shape named '{shape}'.", f"Known: {', '.join(sorted(SHAPES))}.")
    fields = _tokenizer(tokenizer_source)
    plain = SHAPES[shape]
    built = replace(plain, shape=replace(plain.shape, vocabulary=len(fields["tokenizer.ggml.tokens"][0])))
    wanted = tensors(built)
    part = target.with_name(f"{target.name}.part")
    try:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        _require_room(target.parent, sum(each.stored_bytes for each in wanted))
        _write(part, built, fields, wanted)
        os.replace(part, target)
    except OSError as error:
        raise StorageError(
            f"The model {target} cannot be written: {error.strerror or error}.", "Choose another place for it."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # It is not there any more, or never was.
            part.unlink()


def tensors(built: Built) -> list[Tensor]:
    """Return the tensors of a plain llama model, in the order in which they are written."""
    shape = built.shape
    hidden, wide, narrow = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    found = [Tensor("token_embd.weight", (shape.vocabulary, hidden), Q8)]
    if built.factors is not None:
        found.append(Tensor("rope_freqs.weight", (shape.head_dim // 2,), F32))
    for index in range(shape.layers):
        matrices = {
            "attn_q": (wide, hidden),
            "attn_k": (narrow, hidden),
            "attn_v": (narrow, hidden),
            "attn_output": (hidden, wide),
            "ffn_gate": (shape.feed_forward, hidden),
            "ffn_up": (shape.feed_forward, hidden),
            "ffn_down": (hidden, shape.feed_forward),
        }
        found += [Tensor(f"blk.{index}.{name}.weight", size, Q4) for name, size in matrices.items()]
        found += [Tensor(f"blk.{index}.{name}.weight", (hidden,), F32) for name in ("attn_norm", "ffn_norm")]
    return [
        *found,
        Tensor("output_norm.weight", (hidden,), F32),
        Tensor("output.weight", (shape.vocabulary, hidden), Q8),
    ]


def random_blocks(
    rows: int, columns: int, kind: GGMLQuantizationType, deviation: float, source: np.random.BitGenerator
) -> NDArray[np.uint8]:
    """Return a matrix of random quantised blocks, as bytes.

    All blocks have the same scale up to its sign, so that values have the standard deviation asked for, and the
    mean 0 although there is one negative integer more than positive ones.
    """
    values, size = GGML_QUANT_SIZES[kind]
    count = rows * columns // values * size
    # Raw words are several times as fast as drawing bytes.
    words: NDArray[np.uint64] = np.asarray(source.random_raw(-(-count // 8)))
    raw = words.view(np.uint8)[:count].reshape(-1, size)
    low, high = np.array(deviation / SPREAD[kind], dtype="<f2").tobytes()
    raw[:, 0] = low
    raw[:, 1] = raw[:, 1] & 0x80 | high
    return raw.reshape(rows, -1)


class _RandomMatrix:
    """A matrix that is drawn while it is written, a few rows at a time: what a writer asks of an array."""

    def __init__(self, tensor: Tensor, deviation: float, seed: int) -> None:
        self.nbytes = tensor.stored_bytes
        self._tensor, self._deviation, self._seed = tensor, deviation, seed

    def tofile(self, file: BinaryIO) -> None:
        rows, columns = self._tensor.shape
        source, together = np.random.SFC64(self._seed), max(1, VALUES_AT_ONCE // columns)
        for first in range(0, rows, together):
            count = min(together, rows - first)
            random_blocks(count, columns, self._tensor.kind, self._deviation, source).tofile(file)


def _drawn(tensor: Tensor, built: Built, seed: int) -> Any:
    if tensor.name == "rope_freqs.weight" and built.factors is not None:
        return rope_divisors(built.shape.head_dim, built.theta, built.factors)
    if tensor.kind is F32:
        return np.ones(tensor.shape, dtype="<f4")
    # With 1 / sqrt(inputs), a matrix leaves the size of what it is given as it is; an embedding has that of a norm.
    deviation = 1.0 if tensor.name == "token_embd.weight" else tensor.shape[-1] ** -0.5
    return _RandomMatrix(tensor, deviation, seed)


def _write(path: Path, built: Built, fields: dict[str, Any], wanted: list[Tensor]) -> None:
    writer = GGUFWriter(path, "llama")
    with contextlib.closing(writer):
        _describe(writer, built)
        for key, (value, kind, item) in fields.items():
            writer.add_key_value(key, value, kind, item)
        for each in wanted:
            held = np.dtype(np.float32 if each.kind is F32 else np.uint8)
            writer.add_tensor_info(each.name, each.stored_shape, held, each.stored_bytes, each.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for number, each in enumerate(wanted):
            # Everything drawn is little-endian already, on whatever machine.
            writer.write_tensor_data(_drawn(each, built, SEED + number), GGUFEndian.LITTLE)


def _describe(writer: GGUFWriter, built: Built) -> None:
    shape = built.shape
    writer.add_name(f"{shape.name}: {WARNING}")
    writer.add_description(f"The shape of {shape.name} with {WARNING}; it writes nonsense.")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(2)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(built.theta)


def _tokenizer(path: Path) -> dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]]:
    """Return every field of a GGUF file's tokenizer: its value, its type, and that of an array's items."""
    try:
        fields = GGUFReader(path).fields
        found = {
            name: (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
            for name, field in fields.items()
            if name.startswith("tokenizer.") and (len(field.types) == 1 or len(field.data))
        }
    except Exception as error:  # A damaged file trips its reader in any way.
        raise ModelNotFound(
            f"The tokenizer of {path} cannot be read: {str(error) or type(error).__name__}.",
            "Give a GGUF file of a language model, such as SmolLM2's.",
        ) from error
    if not found.get("tokenizer.ggml.tokens"):
        raise ModelNotFound(f"{path} holds no tokenizer.", "Give a GGUF file of a language model, such as SmolLM2's.")
    return found


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"The model takes {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free.",
            "Make room, or choose a folder on another disk.",
        )
