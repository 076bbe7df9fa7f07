"""Small safetensors files with a JSON description: profiles and backgrounds. Written atomically, read with checks."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unspoken.errors import StorageError, UsageError

T = TypeVar("T")
# A background of an 8B model has 20 sites of 1,024 numbers, times 256 directions in float16: 10 MB.
MOST_BYTES = 1 << 30
# What is written; others may hold what float32 does not.
DTYPES = (torch.float32, torch.float16)


def write(path: Path, key: str, info: msgspec.Struct, tensors: Mapping[str, Tensor]) -> None:
    """Write a file as a whole or not at all.

    Args:
        path: The file.
        key: Name of the description in the header.
        info: The description.
        tensors: By name.

    Raises:
        StorageError: If it cannot be written.
    """
    data = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        {key: msgspec.json.encode(info, order="deterministic").decode()},
    )
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise StorageError(f"The file {path} cannot be written: {error.strerror}.", "Choose another folder.") from error
    finally:
        # Where no file could be made, there is none to delete.
        with suppress(OSError):
            part.unlink()


def read(path: Path, key: str, kind: type[T], what: str) -> tuple[T, dict[str, Tensor]]:
    """Read a file back.

    Args:
        path: The file.
        key: Name of the description in the header.
        kind: Of the description.
        what: What the file is, for messages: "profile".

    Raises:
        StorageError: If it cannot be read.
        UsageError: If it is no such file, or holds other numbers than finite float32 and float16.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} has more than {MOST_BYTES} bytes: no {what}.", "Give another file.")
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"The {what} {path} cannot be read: {error.strerror}.", "Give an existing file.") from error
    try:
        length = int.from_bytes(data[:8], "little")
        described = json.loads(data[8 : 8 + length])["__metadata__"][key]
        info, tensors = msgspec.json.decode(described, type=kind), load(data)
    except (ValueError, KeyError, TypeError, RecursionError, msgspec.MsgspecError, SafetensorError) as error:
        raise UsageError(
            f"{path} is no {what}: {_brief(error)}.", f"Make the {what} again; see `unspoken identity --help`."
        ) from error
    if not all(tensor.dtype in DTYPES and torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise UsageError(
            f"The {what} {path} holds NaN, infinity, or numbers that are neither float32 nor float16.",
            f"Make the {what} again.",
        )
    return info, tensors


def require_shape(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], what: str) -> Tensor:
    """Return one tensor of a file, float32, if it has the shape its description says.

    Raises:
        UsageError: If it is missing or has another shape.
    """
    tensor = tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape or not math.prod(shape):
        found = "missing" if tensor is None else str(list(tensor.shape))
        raise UsageError(f"'{name}' of the {what} is {found}, expected {list(shape)}.", f"Make the {what} again.")
    return tensor.to(torch.float32)


def _brief(error: Exception) -> str:
    """Return what is wrong with a file, without the names of the program's insides."""
    return "its header describes none" if isinstance(error, KeyError | TypeError) else f"{error}"[:200]
