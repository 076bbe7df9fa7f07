"""Cache files: safetensors with one JSON manifest in the header. `docs/format.md` specifies them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unspoken.cachefile.header import CAPS, Caps, FileManifest, Header, peek
from unspoken.cachefile.sealed import Seal, tokens_digest

if TYPE_CHECKING:
    from unspoken.cachefile.reader import map_packed, read_cache, read_packed
    from unspoken.cachefile.writer import file_codec, write_cache, write_packed

__all__ = [
    "CAPS",
    "Caps",
    "FileManifest",
    "Header",
    "Seal",
    "file_codec",
    "map_packed",
    "peek",
    "read_cache",
    "read_packed",
    "tokens_digest",
    "write_cache",
    "write_packed",
]


def __getattr__(name: str) -> Any:
    # Reading a header needs no torch; only what touches tensors imports it.
    if name in ("map_packed", "read_cache", "read_packed"):
        from unspoken.cachefile import reader

        return getattr(reader, name)
    if name in ("write_cache", "write_packed", "file_codec"):
        from unspoken.cachefile import writer

        return getattr(writer, name)
    raise AttributeError(f"module 'unspoken.cachefile' has no attribute '{name}'")
