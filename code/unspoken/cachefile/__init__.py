"""Cache files: safetensors with one JSON manifest in the header. `docs/format.md` specifies them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unspoken.cachefile.header import CAPS, Caps, FileManifest, Header, peek

if TYPE_CHECKING:
    from unspoken.cachefile.reader import read_cache
    from unspoken.cachefile.writer import write_cache

__all__ = ["CAPS", "Caps", "FileManifest", "Header", "peek", "read_cache", "write_cache"]


def __getattr__(name: str) -> Any:
    # Reading a header needs no torch; only what touches tensors imports it.
    if name == "read_cache":
        from unspoken.cachefile.reader import read_cache

        return read_cache
    if name == "write_cache":
        from unspoken.cachefile.writer import write_cache

        return write_cache
    raise AttributeError(f"module 'unspoken.cachefile' has no attribute '{name}'")
