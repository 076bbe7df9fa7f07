"""SmolLM2 with its weights written out as float32: the two engines then compute with the same numbers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize


def widened(packed: Path, folder: Path) -> Path:
    """Return a GGUF file of the same model with float32 weights, written the first time it is asked for.

    Args:
        packed: A GGUF file of any types of weights.
        folder: Where it is kept; made if need be.
    """
    path = folder / f"{packed.stem}.F32.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        _write(GGUFReader(packed), part)
        os.replace(part, path)  # Whole or not at all: two test processes may write it at the same time.
    finally:
        part.unlink(missing_ok=True)
    return path


def _write(reader: GGUFReader, path: Path) -> None:
    architecture = str(reader.fields["general.architecture"].contents())
    writer = GGUFWriter(path, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue  # The writer's own.
        kind = field.types[0]
        item = field.types[1] if kind is GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, item)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
