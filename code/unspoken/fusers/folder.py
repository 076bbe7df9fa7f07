"""A fuser in a folder: `config.json`, `model.safetensors`, and a card for people.

The folder is Hugging Face's (`from_pretrained`, `save_pretrained`, `push_to_hub` of `PyTorchModelHubMixin`). Loading is
stricter than there: every tensor must be there, in its shape, finite, and nothing else; no pickle is ever opened.

Large matrices are kept as int8 with one scale per row: a fuser of the same size in bfloat16 would have half as many
weights. A row's error is at most half a step of 1/127 of its largest weight.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from unspoken.errors import StorageError, UsageError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SCALE = ".scale"
# Smaller matrices are kept as they are: they weigh little.
PACKED_FROM = 1 << 14
AGAIN = "Take the folder from where it was made, or train the fuser again with `unspoken fuser train`."


def write(module: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Write a fuser's configuration and weights; each file is put in place whole.

    Args:
        module: The fuser.
        config: What it is built from, and its kind.
        folder: Where; made if it does not exist.

    Raises:
        StorageError: If it cannot be written.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        tensors |= packed(name, tensor.detach())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _put(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        _put(folder / CONFIG, (json.dumps(dict(config), indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise StorageError(
            f"The fuser cannot be written to {folder}: {error.strerror}.", "Choose another folder."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a fuser in a folder is built from, and its kind.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If it is no such configuration.
    """
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except OSError as error:
        raise StorageError(
            f"There is no fuser in {folder}: {CONFIG} cannot be read ({error.strerror}).", AGAIN
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{folder / CONFIG} is not JSON.", AGAIN) from error
    if not isinstance(config, dict) or not isinstance(config.get("kind"), str):
        raise UsageError(f"{folder / CONFIG} says no kind of fuser.", AGAIN)
    return config


def fill(module: nn.Module, folder: Path) -> None:
    """Put the weights of a folder into a fuser that was just built.

    Raises:
        StorageError: If they cannot be read.
        UsageError: If a tensor is missing, has another shape, is not finite, or is not the fuser's.
    """
    from safetensors.torch import load

    path = folder / WEIGHTS
    try:
        found = load(path.read_bytes())
    except OSError as error:
        raise StorageError(f"The weights {path} cannot be read: {error.strerror}.", AGAIN) from error
    except SafetensorError as error:
        raise UsageError(f"{path} is no sound safetensors file: {error}.", AGAIN) from error
    wanted = module.state_dict()
    extra = found.keys() - wanted.keys() - {name + SCALE for name in wanted}
    missing = wanted.keys() - found.keys()
    if extra or missing:
        raise UsageError(
            f"The weights {path} lack {sorted(missing) or 'nothing'} and have {sorted(extra) or 'nothing'} besides.",
            AGAIN,
        )
    for name, tensor in wanted.items():
        value = unpacked(found[name], found.get(name + SCALE))
        if value.shape != tensor.shape or not bool(torch.isfinite(value).all()):
            raise UsageError(
                f"The weights {path} have '{name}' of shape {list(value.shape)}, expected {list(tensor.shape)} and "
                "finite numbers.",
                AGAIN,
            )
        wanted[name] = value.to(tensor.dtype)
    module.load_state_dict(wanted)


def built(kind: type[Any], model_id: str, how: dict[str, Any]) -> Any:
    """Return a fuser from a folder, or from a hub's repository; what `from_pretrained` comes to.

    Args:
        kind: The fuser's class.
        model_id: The folder, or the repository's name.
        how: What the mixin was given, and the arguments it found in the configuration.

    Raises:
        StorageError: If files cannot be read.
        UsageError: If they are no sound fuser of this kind.
    """
    path = Path(model_id)
    if not path.is_dir():
        path = fetched(model_id, how)
    config = read_config(path)
    if config.pop("kind") != kind.kind:
        raise UsageError(f"{path} holds a fuser of another kind than '{kind.kind}'.", "Use `load_fuser`.")
    try:
        fuser = kind(**config)
    except (TypeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path / CONFIG} describes no fuser of the kind '{kind.kind}': {error}.", AGAIN) from error
    fill(fuser, path)
    return fuser.eval()


def fetched(repository: str, how: dict[str, Any]) -> Path:
    """Return the folder of a hub's repository on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options = {name: how.get(name) for name in ("revision", "cache_dir", "token")}
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS], **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StorageError(
            f"There is no fuser '{repository}': no such folder, and the hub does not give it "
            f"({str(error).splitlines()[0]}).",
            "Give a folder, or the name of one below models/.",
        ) from error


def packed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor as it is kept: a large matrix as int8 and a scale per row, anything else as it is."""
    if tensor.dim() != 2 or tensor.numel() < PACKED_FROM or not tensor.is_floating_point():
        return {name: tensor.contiguous()}
    wide = tensor.to(torch.float32)
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return {name: (wide / scale).round().to(torch.int8), name + SCALE: scale}


def unpacked(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """Return a tensor as it is used.

    Raises:
        UsageError: If a scale does not fit.
    """
    if scale is None:
        return tensor
    if tensor.dim() != 2 or scale.shape != (len(tensor), 1):
        raise UsageError(f"A scale of shape {list(scale.shape)} does not fit {list(tensor.shape)}.", AGAIN)
    return tensor.to(torch.float32) * scale


def _put(path: Path, data: bytes) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.write_bytes(data)
    aside.replace(path)
