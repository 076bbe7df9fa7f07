"""Open a GGUF file in llama.cpp and find out, by looking, how its saved states are laid out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unspoken.engines.gate import BOUNDS
from unspoken.engines.llamacpp.blob import Blob
from unspoken.engines.llamacpp.columns import Translation
from unspoken.engines.llamacpp.context import Context, Model, Settings
from unspoken.engines.llamacpp.describe import PAIRS_NEIGHBOURS, Description, describe
from unspoken.engines.llamacpp.library import Library
from unspoken.engines.llamacpp.parse import parse
from unspoken.engines.protocol import Loading
from unspoken.errors import UnspokenError, UsageError
from unspoken.spec import ModelSpec
from unspoken.transforms.blocks import ElementType, rotation_size

# Room for an agent's document, question and answer on a small machine; more has to be asked for.
USUAL_CONTEXT = 8192


@dataclass(frozen=True)
class Opened:
    """A model and a context, and what is known of both.

    Attributes:
        model: The file.
        context: The cells.
        spec: The model, as far as a cache depends on it.
        template: Its chat template rendered around marks, see `unspoken.engines.chat`.
        between: What it writes between an answer and the user's next words.
        translation: How cells become columns.
        precision: The coarsest element type anything is computed in; the gate's bound depends on it.
        version: Of the library, and where it computes.
    """

    model: Model
    context: Context
    spec: ModelSpec
    template: str
    between: str
    translation: Translation
    precision: str
    version: str


def open_file(library: Library, path: Path, name: str, loading: Loading, memory: Path | None) -> Opened:
    """Open a GGUF file with a context.

    Raises:
        ModelNotFound: If it is no GGUF file that llama.cpp can open.
        UnsupportedModel: If a cache of this kind of model cannot be moved.
        ContextOverflow: If there is no memory for the context.
        UsageError: If a setting cannot work.
    """
    kind = ElementType.named(loading.kv_type or "f16")
    _require_device(library, loading.gpu_layers or 0)
    model = Model(library, path, loading.gpu_layers or 0)
    try:
        described = describe(model, path, name, memory)
        spec = described.spec
        _require_blocks(kind, spec)
        settings = Settings(
            kind,
            min(loading.context or USUAL_CONTEXT, spec.context),
            loading.threads or torch.get_num_threads(),
        )
        context = Context(model, settings)
        try:
            translation = _translation(context, model, spec, kind)
        except UnspokenError:
            context.close()
            raise
    except UnspokenError:
        model.close()
        raise
    where = "gpu" if loading.gpu_layers and library.devices() else "cpu"
    version = f"{library.source}, {described.weights}, {kind.name}, {where}"
    precision = _precision(described, kind)
    return Opened(model, context, spec, described.template, described.between, translation, precision, version)


def _require_device(library: Library, gpu_layers: int) -> None:
    """Refuse what llama.cpp would pass over in silence, to run on the CPU, many times as slow."""
    if gpu_layers and not library.offloads():
        raise UsageError(
            f"No layer can go on a graphics device: the llama.cpp library of {library.source} finds none.",
            "Leave --gpu-layers out for the CPU, or build a library with CUDA (docs/llamacpp.md); unspoken doctor "
            "tells what is found.",
        )


def _require_blocks(kind: ElementType, spec: ModelSpec) -> None:
    if spec.head_dim % kind.values_per_block:
        raise UsageError(
            f"Heads of {spec.head_dim} values cannot be stored as {kind.name}, in blocks of {kind.values_per_block}.",
            "Choose --kv-type f16, bf16 or f32, which take any number.",
        )


def _translation(context: Context, model: Model, spec: ModelSpec, kind: ElementType) -> Translation:
    """Save one token and look: layout and rotation are the library's, whatever its version."""
    one = np.zeros(1, np.int32)
    context.decode(one, one, one, np.zeros(1, bool))
    blob = parse(context.save(0))
    context.clear()
    return Translation(
        spec=spec,
        kind=kind,
        interleaved=model.rope_type == PAIRS_NEIGHBOURS,
        rotations=_rotations(blob, kind, spec.head_dim),
        tells_rotations=blob.rotations is not None,
    )


def _rotations(blob: Blob, kind: ElementType, head_dim: int) -> tuple[int, int]:
    """Return what the state tells of rotations, or, in the old layout, what such builds do; the gate confirms it."""
    if blob.rotations is not None:
        return blob.rotations
    return rotation_size(kind, head_dim, "keys"), rotation_size(kind, head_dim, "values")


def _precision(described: Description, kind: ElementType) -> str:
    """Return the coarser of the types of weights, to which activations are rounded as well, and of cells."""
    plain = described.weights in ("F32", "F16", "BF16")
    weights = f"ggml-{described.weights.lower()}" if plain else "ggml-quantised"
    return max(weights, f"ggml-{kind.name}", key=BOUNDS.__getitem__)
