"""Write a cache file: atomic, the same bytes for the same cache."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.cachefile.caps import CAPS, KNOWN, first_problem, header_problem
from unspoken.cachefile.digest import digest_and_check
from unspoken.cachefile.header import VERSION, FileManifest, encode_header, layout, manifest_digest
from unspoken.cachefile.sealed import Seal
from unspoken.errors import StorageError, UsageError
from unspoken.layout import Part, parts
from unspoken.manifest import Manifest
from unspoken.packed import ELEMENTS, Packed, plain
from unspoken.transforms import Codec
from unspoken.transforms.codecs import codec_named

TOGETHER = 16
_BLANK = "0" * 64

Sign = Callable[[FileManifest], Seal]
"""Seals what a manifest says; the seals of two manifests of one cache are equally long."""


def write_cache(cache: KVCache, path: str | Path, codec: str | None = None, sign: Sign | None = None) -> FileManifest:
    """Write a cache to a file, replacing it as a whole; return the manifest with its digests.

    A crash leaves the old file or none, never half of one.

    Args:
        cache: What is written.
        path: The file.
        codec: What it is packed with: `bfloat16`, `int8`, `int4`, `q8_0` ...; by default it is written as it is,
            and no copy of it is made.
        sign: Seals the file while it is written (see `unspoken.trust.seals.signer`); by default it has no seal.

    Raises:
        StorageError: If the file cannot be written.
        UsageError: If files do not have the codec, or no reader accepts the cache: with NaN, infinity or negative
            positions, say.
    """
    return write_packed(plain(cache) if codec is None else file_codec(codec).pack(cache), path, sign)


def file_codec(name: str) -> Codec:
    """Return the codec of a name if files can hold what it packs.

    Raises:
        UsageError: If there is no such codec, or it has a lossless stage.
    """
    base, plus, stage = name.partition("+")
    codec = codec_named(base)
    if plus or codec.name not in KNOWN:
        why = f"the lossless stage '{stage}' leaves nothing to map" if plus else "its tensors have no place there"
        raise UsageError(f"A cache file cannot hold '{name}': {why}.", f"Choose one of {', '.join(KNOWN)}.")
    return codec


def write_packed(packed: Packed, path: str | Path, sign: Sign | None = None) -> FileManifest:
    """Write a packed cache to a file, as `write_cache` does.

    One thread writes the tensors, another one hashes them meanwhile, and the digests, whose length is known
    beforehand, are put into the header at the end.

    Raises:
        StorageError: If the file cannot be written.
        UsageError: If no reader accepts it.
    """
    path = Path(path)
    if sys.byteorder != "little":
        raise UsageError("Cache files are little-endian, this machine is not.", "Write it on a little-endian machine.")
    info = _described(packed)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        manifest = _write(info, packed.tensors, part, sign)
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


def _described(packed: Packed) -> Manifest:
    """Return the manifest as a reader will see it, or refuse what no reader accepts."""
    try:
        info = msgspec.json.decode(msgspec.json.encode(packed.manifest), type=Manifest)
    except (msgspec.MsgspecError, RecursionError, TypeError, UnicodeEncodeError) as error:
        raise UsageError(
            f"The cache's manifest cannot be written as JSON: {error}.", "Give it plain values and valid text."
        ) from error
    problem = first_problem(info, CAPS)
    if packed.stage is not None:
        problem = f"went through the lossless stage '{packed.stage}'"
    for name, part in parts(info).items() if problem is None else ():
        tensor = packed.tensors[name]
        if (tensor.dtype, tuple(tensor.shape)) != (ELEMENTS[part.element], part.shape):
            problem = f"has '{name}' as {list(tensor.shape)}, its manifest says {list(part.shape)}"
            break
    if problem is not None:
        raise UsageError(f"The cache {problem}; no reader would accept its file.", "Capture it again with its model.")
    return info


def _write(info: Manifest, tensors: Mapping[str, Tensor], part: Path, sign: Sign | None) -> FileManifest:
    known = parts(info)
    places = layout(known)
    blank = FileManifest(VERSION, info, dict.fromkeys(known, _BLANK), _BLANK)
    start = encode_header(blank, places, None if sign is None else sign(blank))
    data_start, problem = len(start), header_problem(start[8:], CAPS)
    if problem is not None:
        raise UsageError(
            f"The cache {problem}; no reader would accept its file.",
            "Leave out the token ids, or write fewer columns or spans.",
        )
    with open(part, "wb", buffering=0) as file, ThreadPoolExecutor(1) as hasher:
        # Two threads that both write would wait for each other: a file takes one write at a time.
        hashed = hasher.submit(_digests, tensors, known)
        names = list(places)
        for at in range(0, len(names), TOGETHER):
            few = names[at : at + TOGETHER]
            _write_at(file.fileno(), [_bytes(tensors[name]).data for name in few], data_start + places[few[0]].start)
        digests = hashed.result()
        manifest = FileManifest(VERSION, info, digests, manifest_digest(VERSION, info, digests))
        header = encode_header(manifest, places, None if sign is None else sign(manifest))
        if len(header) != data_start:
            raise UsageError("The seal of the cache is not as long as it was said to be.", "Seal the file afterwards.")
        _write_at(file.fileno(), [memoryview(header)], 0)
    return manifest


def _digests(tensors: Mapping[str, Tensor], known: Mapping[str, Part]) -> dict[str, str]:
    """Return each tensor's digest, or refuse numbers that no model could have made."""
    digests = {}
    for name, part in known.items():
        digests[name], sound = digest_and_check(_bytes(tensors[name]), part.element)
        if not sound:
            raise UsageError(
                f"The cache holds NaN, infinite numbers or negative positions in '{name}'.",
                "Capture it again; check the model's weights.",
            )
    return digests


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = tensor.contiguous().view(torch.uint8).reshape(-1).numpy()
    return found


def _write_at(descriptor: int, data: list[memoryview], offset: int) -> None:
    """Write what follows one another at once: between two calls, threads wait for each other."""
    while data:
        done = os.pwritev(descriptor, data, offset)  # One call writes at most 2 GiB on Linux.
        offset += done
        while data and done >= len(data[0]):
            done -= len(data.pop(0))
        if done:
            data[0] = data[0][done:]
