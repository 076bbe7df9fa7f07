"""Lossless stages: what a codec made, compressed. For slow links; on one machine it costs more than it saves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.errors import UsageError
from unspoken.layout import FLOATS, PACKED, Part, parts
from unspoken.packed import ELEMENTS, Packed
from unspoken.transforms import Codec


@dataclass(frozen=True)
class Blosc2:
    """A codec's tensors, compressed with blosc2: zstd, level 1, bytes of elements shuffled apart before it.

    Of bfloat16 two thirds are left, because the exponents of neighbours are alike; of quantised caches more than nine
    tenths.

    Raises:
        UsageError: If the package `blosc2` is not installed, or the codec is none of this package's own.
    """

    codec: Codec

    def __post_init__(self) -> None:
        if self.codec.name not in (*FLOATS, *PACKED):  # Compressed tensors have no shape; only these are known here.
            raise UsageError(
                f"The lossless stage 'blosc2' does not know what tensors the codec '{self.codec.name}' makes.",
                f"Leave '+blosc2' out, or choose one of {', '.join((*FLOATS, *PACKED))}.",
            )
        _library()

    @property
    def name(self) -> str:
        """The codec's name and this stage's."""
        return f"{self.codec.name}+blosc2"

    def pack(self, cache: KVCache, /) -> Packed:
        """Return what the codec packs, keys and values compressed; positions stay as they are."""
        packed = self.codec.pack(cache)
        made = {
            name: tensor if name.endswith(".positions") else _compressed(tensor)
            for name, tensor in packed.tensors.items()
        }
        return replace(packed, tensors=made, stage="blosc2")

    def unpack(self, packed: Packed, /) -> KVCache:
        """Return what the codec unpacks."""
        known = parts(packed.manifest)
        made = {
            name: tensor if name.endswith(".positions") else _expanded(name, tensor, known[name])
            for name, tensor in packed.tensors.items()
        }
        return self.codec.unpack(replace(packed, tensors=made, stage=None))


def _library() -> Any:
    try:
        import blosc2
    except ImportError as error:
        raise UsageError(
            "The lossless stage 'blosc2' needs the package blosc2, which is not installed.",
            "Install it with `pip install 'unspoken[compress]'`, or leave '+blosc2' out.",
        ) from error
    return blosc2


def _compressed(tensor: Tensor) -> Tensor:
    blosc2 = _library()
    if tensor.numel() == 0:  # All columns are sinks; nothing can be compressed to less.
        return tensor
    if tensor.nbytes > blosc2.MAX_BUFFERSIZE:
        raise UsageError(
            f"A tensor of {tensor.nbytes} bytes cannot be compressed: blosc2 takes {blosc2.MAX_BUFFERSIZE} at most.",
            "Leave '+blosc2' out, or cut the cache by columns first.",
        )
    raw = tensor.contiguous().view(torch.uint8).numpy().reshape(-1)
    shuffled = {"filters": [blosc2.Filter.SHUFFLE], "typesize": tensor.itemsize}
    found = blosc2.compress2(raw, codec=blosc2.Codec.ZSTD, clevel=1, nthreads=1, **shuffled)
    return torch.frombuffer(bytearray(found), dtype=torch.uint8)


def _expanded(name: str, tensor: Tensor, part: Part) -> Tensor:
    out, blosc2 = torch.empty(part.shape, dtype=ELEMENTS[part.element]), _library()
    if out.numel() == 0:
        return out
    try:
        claimed = blosc2.get_cbuffer_sizes(tensor.numpy())[0]
        if claimed != out.nbytes:
            raise ValueError(f"it has {claimed} bytes where {out.nbytes} are expected")
        blosc2.decompress2(tensor.numpy(), dst=out.view(torch.uint8).numpy(), nthreads=1)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"'{name}' cannot be expanded: {error}.", "Hand over what was packed, unchanged.") from error
    return out
