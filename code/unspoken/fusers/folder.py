"""A fuser in a folder: `config.json`, `model.safetensors`, and a card for people.

The folder is Hugging Face's (`from_pretrained`, `save_pretrained`, `push_to_hub` of `PyTorchModelHubMixin`). Loading is
stricter than there: every tensor must be there, in its shape, finite, and nothing else; no pickle is ever opened, and
sizes that a configuration asks for are compared with the weights before any memory is taken.

Large matrices are kept as int8 with one scale per row: a fuser of the same size in bfloat16 would have half as many
weights. A row's error is at most half a step of 1/127 of its largest weight.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unspoken.errors import StorageError, UsageError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SCALE = ".scale"
# Smaller matrices are kept as they are: they weigh little.
PACKED_FROM = 1 << 14
AGAIN = "Take the folder from where it was made, or train the fuser again with `unspoken fuser train`."
# What the hub is asked with, of all that `from_pretrained` may be given.
HUB = ("revision", "cache_dir", "token", "force_download", "local_files_only")


def write(module: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Write a fuser's configuration and weights; each file is put in place whole.

    The configuration comes last, and without it there is no fuser: a folder never pairs old weights with a new one.

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
    files = {
        WEIGHTS: save(tensors, metadata={"format": "pt"}),
        CONFIG: (json.dumps(dict(config), indent=2, sort_keys=True) + "\n").encode(),
    }
    aside = {name: folder / f"{name}.{os.getpid()}.part" for name in files}
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name, data in files.items():
                aside[name].write_bytes(data)
            (folder / CONFIG).unlink(missing_ok=True)
            for name in files:
                aside[name].replace(folder / name)
        finally:
            for path in aside.values():
                path.unlink(missing_ok=True)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn a failure to write a fuser into an error that says what to do.

    Raises:
        StorageError: If something cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"The fuser cannot be written to {folder}: {error.strerror}.", "Make room, or choose another folder."
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
    except (ValueError, RecursionError) as error:  # Of bytes that are no text, of what is no JSON, of endless numbers.
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
    module.load_state_dict(weights(module.state_dict(), folder))


def weights(wanted: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return a fuser's weights from a folder.

    Args:
        wanted: Every tensor's name, shape and type, told by any tensor that has them; one without memory will do.
        folder: Where they are.

    Raises:
        StorageError: If they cannot be read.
        UsageError: If a tensor is missing, has another shape, is not finite, or is not wanted.
    """
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            _require_same(path, found, wanted)
            return {name: _value(file, name, name + SCALE in found, tensor) for name, tensor in wanted.items()}
    except OSError as error:
        raise StorageError(f"The weights {path} cannot be read: {error.strerror or error}.", AGAIN) from error
    except SafetensorError as error:
        raise UsageError(f"{path} is no sound safetensors file: {error}.", AGAIN) from error


def built(kind: type[Any], model_id: str, how: dict[str, Any]) -> Any:
    """Return a fuser from a folder, or from a hub's repository; what `from_pretrained` comes to.

    Args:
        kind: The fuser's class. It is made twice, first on torch's device `meta`, where tensors have shapes alone.
        model_id: The folder, or the repository's name.
        how: What `from_pretrained` was given.

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
        with torch.device("meta"):
            shapes = kind(**config).state_dict()
    except (TypeError, ValueError, RuntimeError, OverflowError, msgspec.ValidationError) as error:
        raise UsageError(
            f"{path / CONFIG} describes no fuser of the kind '{kind.kind}': {_first_line(error)}.", AGAIN
        ) from error
    kept = weights(shapes, path)
    with torch.random.fork_rng(devices=()):  # Whoever set a seed before goes on with their own numbers.
        fuser = kind(**config)
    fuser.load_state_dict(kept)
    return fuser.eval()


def fetched(repository: str, how: Mapping[str, Any]) -> Path:
    """Return the folder of a hub's repository on this machine.

    Args:
        repository: Its name.
        how: Options of the hub (`HUB`); others are left out.

    Raises:
        StorageError: If there is no such repository within reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options: dict[str, Any] = {name: how[name] for name in HUB if how.get(name) is not None}
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS], **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StorageError(
            f"There is no fuser '{repository}': no such folder, and the hub does not give it ({_first_line(error)}).",
            "Give a folder, or the name of one below models/.",
        ) from error


def described(name: str) -> dict[str, Any]:
    """Return what a fuser is, as plain data, having read all of it.

    Args:
        name: As for `unspoken.fusers.load_fuser`.

    Returns:
        Its kind, the names of its two models, how many numbers it holds and the bytes of its files; how many numbers
        travel for one of the receiver's columns, and their bytes in bfloat16; what it is built from besides, and the
        fingerprints of both models.

    Raises:
        StorageError: If there is none, or its files cannot be read.
        UsageError: If they are no sound fuser.
    """
    from unspoken.fusers import found, load_fuser
    from unspoken.fusers.protocol import Enricher

    path = found(name)
    fuser: Any = load_fuser(str(path))
    pair = fuser.pair
    # What an enricher is given is the sender's columns.
    numbers = pair.sender.width if isinstance(fuser, Enricher) else _message(fuser)
    return {
        "kind": fuser.kind,
        "sender": pair.sender.name,
        "receiver": pair.receiver.name,
        "numbers": sum(tensor.numel() for tensor in fuser.state_dict().values()),
        "bytes_on_disk": sum((path / each).stat().st_size for each in (CONFIG, WEIGHTS)),
        "message_numbers_per_column": numbers,
        "bytes_per_column": torch.bfloat16.itemsize * numbers,
        "settings": {key: value for key, value in read_config(path).items() if key not in ("kind", "pair")},
        "fingerprints": {
            role: {field: getattr(side, field) for field in ("weights", "architecture", "tokenizer")}
            for role, side in (("sender", pair.sender), ("receiver", pair.receiver))
        },
    }


def packed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor as it is kept.

    A large matrix is kept as int8 and a scale per row, a large stack of matrices as float16 if that has room for its
    numbers, anything else as it is.
    """
    if tensor.dim() not in (2, 3) or tensor.numel() < PACKED_FROM or not tensor.is_floating_point():
        return {name: tensor.contiguous()}
    if tensor.dim() == 3:
        half = tensor.to(torch.float16)
        return {name: half.contiguous() if bool(torch.isfinite(half).all()) else tensor.contiguous()}
    wide = tensor.to(torch.float32)
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return {name: (wide / scale).round().to(torch.int8), name + SCALE: scale}


def unpacked(name: str, tensor: Tensor, scale: Tensor | None) -> Tensor:
    """Return a tensor as it is used.

    Args:
        name: For messages.
        tensor: As it is kept.
        scale: One number for each of its rows, if it is kept as int8.

    Raises:
        UsageError: If a scale does not fit.
    """
    if scale is None:
        return tensor
    fits = tensor.dtype == torch.int8 and tensor.dim() == 2 and scale.shape == (len(tensor), 1)
    if not fits or scale.dtype != torch.float32 or not bool((scale > 0).all()):
        raise UsageError(
            f"The scale of '{name}', {scale.dtype} {list(scale.shape)}, does not fit {tensor.dtype} "
            f"{list(tensor.shape)}, or is not above 0 throughout.",
            AGAIN,
        )
    return tensor.to(torch.float32) * scale


def _require_same(path: Path, found: Mapping[str, list[int]], wanted: Mapping[str, Tensor]) -> None:
    missing = wanted.keys() - found.keys()
    extra = found.keys() - wanted.keys() - {name + SCALE for name in wanted}
    if extra or missing:
        raise UsageError(
            f"The weights {path} lack {sorted(missing) or 'nothing'} and have {sorted(extra) or 'nothing'} besides.",
            AGAIN,
        )
    for name, tensor in wanted.items():
        if found[name] != list(tensor.shape):
            raise UsageError(
                f"The weights {path} have '{name}' of shape {found[name]}, expected {list(tensor.shape)}.", AGAIN
            )


def _value(file: Any, name: str, scaled: bool, wanted: Tensor) -> Tensor:
    value = unpacked(name, file.get_tensor(name), file.get_tensor(name + SCALE) if scaled else None)
    if value.is_floating_point() != wanted.is_floating_point() or not bool(torch.isfinite(value).all()):
        raise UsageError(
            f"The tensor '{name}' is {value.dtype}, expected {wanted.dtype}, or has numbers that are not finite.", AGAIN
        )
    return value.to(wanted.dtype)


def _message(translator: Any) -> int:
    """Return how many numbers a translator makes of one column."""
    with torch.inference_mode():
        return int(translator.encode(torch.zeros(1, translator.pair.sender.width)).shape[1])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
