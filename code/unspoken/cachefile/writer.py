"""Write a cache file: atomic, the same bytes for the same cache."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.cachefile.digest import digest_and_check
from unspoken.cachefile.header import (
    CAPS,
    VERSION,
    FileManifest,
    encode_header,
    first_problem,
    layout,
    manifest_digest,
    tensor_names,
)
from unspoken.errors import StorageError, UsageError
from unspoken.manifest import Manifest

WRITERS = 2
_BLANK = "0" * 64


def write_cache(cache: KVCache, path: str | Path) -> FileManifest:
    """Write a cache to a file, replacing it as a whole; return the manifest with its digests.

    Two threads hash and write one tensor after the other, each at its place, and the digests, whose length
    is known beforehand, are put into the header at the end. No copy of the cache is made. A crash leaves
    the old file or none, never half of one.

    Raises:
        StorageError: If the file cannot be written.
        UsageError: If it is a cache that no reader accepts: with NaN, infinity or negative positions, say.
    """
    path = Path(path)
    if sys.byteorder != "little":
        raise UsageError("Cache files are little-endian, this machine is not.", "Write it on a little-endian machine.")
    info = _described(cache)
    tensors = dict(zip(tensor_names(info), _in_order(cache), strict=True))
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        manifest = _write(info, tensors, part)
        os.replace(part, path)
    except OSError as error:
        raise StorageError(
            f"The cache file {path} cannot be written: {error.strerror}.",
            "Choose a folder you may write to, with room.",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # In a folder that cannot be written, nothing was left behind.
            part.unlink(missing_ok=True)
    return manifest


def _described(cache: KVCache) -> Manifest:
    """Return the manifest as a reader will see it, or refuse a cache that no reader accepts."""
    try:
        info = msgspec.json.decode(msgspec.json.encode(cache.manifest), type=Manifest)
    except (msgspec.MsgspecError, RecursionError, TypeError, UnicodeEncodeError) as error:
        raise UsageError(
            f"The cache's manifest cannot be written as JSON: {error}.", "Give it plain values and valid text."
        ) from error
    problem = first_problem(info, CAPS)
    for layer in cache.layers:
        expected, found = [info.spec.kv_heads, layer.columns, info.spec.head_dim], list(layer.keys.shape)
        if problem is None and found != expected:
            problem = f"has layer {layer.index} as {found}, its model says {expected}"
    if problem is not None:
        raise UsageError(f"The cache {problem}; no reader would accept its file.", "Capture it again with its model.")
    return info


def _write(info: Manifest, tensors: dict[str, Tensor], part: Path) -> FileManifest:
    places, names = layout(info), list(tensors)
    blank = FileManifest(VERSION, info, dict.fromkeys(names, _BLANK), _BLANK)
    data_start = len(encode_header(blank, places))
    # The pool ends before the file is closed: a thread that is still writing must not meet a closed descriptor.
    with open(part, "wb", buffering=0) as file, ThreadPoolExecutor(WRITERS) as pool:

        def store(share: list[str]) -> dict[str, str]:
            digests = {}
            for name in share:
                data = _bytes(tensors[name])
                digests[name], sound = digest_and_check(data, "int32" if name.endswith("positions") else info.dtype)
                if not sound:
                    raise UsageError(
                        f"The cache holds NaN, infinite numbers or negative positions in '{name}'.",
                        "Capture it again; check the model's weights.",
                    )
                _write_at(file.fileno(), data.data, data_start + places[name].start)
            return digests

        shares = pool.map(store, (names[at::WRITERS] for at in range(WRITERS)))
        found = {name: digest for share in shares for name, digest in share.items()}
        digests = {name: found[name] for name in names}
        manifest = FileManifest(VERSION, info, digests, manifest_digest(VERSION, info, digests))
        _write_at(file.fileno(), memoryview(encode_header(manifest, places)), 0)
    return manifest


def _in_order(cache: KVCache) -> list[Tensor]:
    """Return positions, then keys and values layer by layer."""
    states = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return [layer.positions.to(torch.int32) for layer in cache.layers] + states


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = tensor.contiguous().view(torch.uint8).reshape(-1).numpy()
    return found


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):  # One call writes at most 2 GiB on Linux.
        done += os.pwrite(descriptor, data[done:], offset + done)
