"""Convert a GGUF file to a folder in Hugging Face's layout, once.

transformers reads a GGUF itself, but takes about twenty seconds for the smallest one, each time, and refuses to
save what it read. So the weights are saved beside a clean configuration, in float32: a de-quantised weight is
scale times integer plus minimum, which 16 bits would round.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from unspoken.errors import ModelNotFound, StorageError, UnsupportedModel

# Part of the folder's name: a change of what is written makes old conversions unused, not wrong.
LAYOUT = 2


def converted(path: Path, sha256: str | None = None) -> Path:
    """Return the folder a GGUF file was converted to, converting it if it was not.

    Args:
        path: The file.
        sha256: Its digest, where it is known already.

    Raises:
        ModelNotFound: If transformers cannot read the file.
        StorageError: If the cache folder cannot be written.
    """
    folder = conversion_folder(sha256 or file_sha256(path))
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                _convert(path, folder)
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    return folder


def conversion_folder(sha256: str) -> Path:
    """Return where the conversion of a file with this digest, by the installed transformers, is kept.

    One version of transformers may read otherwise what another wrote: 5.23 cuts text wrongly with the tokenizer
    that 5.0 makes of SmolLM2's GGUF (docs/log.md).
    """
    from unspoken.modelstore import home

    return home() / "models" / f"gguf-{sha256[:16]}-{LAYOUT}-transformers-{version('transformers')}"


def unwritable(folder: Path, error: OSError) -> StorageError:
    """Return the error for a cache folder that cannot be written."""
    return StorageError(
        f"The cache folder {folder} cannot be written: {error.strerror or error}.",
        "Set UNSPOKEN_HOME to a folder you may write to, with room for the model.",
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(path: Path, folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        tokenizer, model, fields = _read(path)
        type(model.config)(**fields).save_pretrained(work)
        tokenizer.save_pretrained(work)
        weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
        save_file(weights, work / "model.safetensors", metadata={"format": "pt"})
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Return a GGUF file's tokenizer, model and the fields of a clean configuration."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from unspoken.modelstore.rope import rope_parameters

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        fields: dict[str, Any] = model.config.to_dict()
        fields.pop("quantization_config", None)
        head_dim = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
        stretched = rope_parameters(path, int(head_dim), float(fields["rope_parameters"]["rope_theta"]))
    except UnsupportedModel:
        raise
    except Exception as error:  # A damaged file trips its reader in any way.
        raise ModelNotFound(
            f"{path.name} cannot be read as a GGUF model: {(str(error).splitlines() or [type(error).__name__])[0]}",
            "Give a GGUF file of an architecture that transformers knows.",
        ) from error
    return tokenizer, model, fields if stretched is None else fields | {"rope_parameters": stretched}
