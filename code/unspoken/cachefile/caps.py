"""What a cache file may claim, and whether it can be so: judged before a tensor is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from unspoken.layout import BLOCK_BYTES, BLOCK_VALUES, FLOATS, PACKED
from unspoken.manifest import Manifest

KNOWN = (*FLOATS, *PACKED)
KV_HEADS, HEAD_DIM = 1 << 12, 1 << 14
# Models have one radian per position at most. Beyond this, an angle at the largest position there can be, 2^31 - 1,
# would come near to what float32 holds, and no key turned by it would be a number.
FREQUENCY = float(1 << 64)
# Of a number of packed keys and values once it is unpacked, to float32.
UNPACKED_BYTES = 4


@dataclass(frozen=True)
class Caps:
    """Most that a file may claim before anything of it is read.

    Attributes:
        header_bytes: Length of the header; a manifest with 400,000 token ids is 3 MB.
        nodes: Lists, objects and their members in the header. A hundred bytes of memory are needed for one of two
            or three bytes; a cache of 1,024 layers has less than 80,000.
        layers: Layers held.
        columns: Columns of a layer, and so token ids.
        sinks: Spans of kind `sink`. They give packed tensors their shapes, and are looked through for each of them.
        file_bytes: Size of the file.
        unpacked_bytes: Size of packed keys and values once they are unpacked, which takes memory; eight times the
            file's, at most. Others are mapped, and take none.
    """

    header_bytes: int = 32 << 20
    nodes: int = 1 << 18
    layers: int = 1024
    columns: int = 1 << 22
    sinks: int = 1024
    file_bytes: int = 1 << 40
    unpacked_bytes: int = 1 << 40


CAPS = Caps()


def nodes(text: bytes) -> int:
    """Return how many lists, objects and members a JSON text has, or more: signs within its strings are counted too."""
    return text.count(b"[") + text.count(b"{") + text.count(b":")


def header_problem(text: bytes, caps: Caps) -> str | None:
    """Return why a header of this text is too large for any reader ("has ..."), or None if it is not."""
    found = nodes(text)
    if len(text) > caps.header_bytes:
        return f"has a header of {len(text)} bytes (at most {caps.header_bytes})"
    if found > caps.nodes:
        return f"has a header with {found} lists, objects and members (at most {caps.nodes})"
    return None


def first_problem(cache: Manifest, caps: Caps) -> str | None:
    """Return why no reader takes a cache of this manifest ("holds zero layers"), or None if every reader does."""
    return next((problem for check in (_held, _model, _described) for problem in check(cache, caps)), None)


def _held(cache: Manifest, caps: Caps) -> Iterator[str]:
    indices, columns = [layer.index for layer in cache.layers], [layer.columns for layer in cache.layers]
    if not indices:
        yield "holds zero layers"
    if cache.dtype not in KNOWN:
        yield f"has the unknown element type '{cache.dtype}' (known: {', '.join(KNOWN)})"
    if len(indices) > caps.layers:
        yield f"holds {len(indices)} layers (at most {caps.layers})"
    if max(columns) > caps.columns:
        yield f"holds {max(columns)} columns (at most {caps.columns})"
    if min(columns) < 1:
        yield "has a layer with no columns"
    if indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < cache.spec.layers:
        layers = cache.spec.layers
        yield f"holds layers that the model of {layers} layers does not have, or one twice, or out of order"


def _model(cache: Manifest, caps: Caps) -> Iterator[str]:
    heads, head_dim, frequencies = cache.spec.kv_heads, cache.spec.head_dim, cache.spec.rope.inverse_frequencies
    if not (0 < heads <= KV_HEADS and 0 < head_dim <= HEAD_DIM):
        yield f"has an impossible shape of {heads} heads of {head_dim}"
    if 2 * len(frequencies) != head_dim:
        yield f"has {len(frequencies)} RoPE frequencies for heads of {head_dim}"
    if not all(abs(frequency) <= FREQUENCY for frequency in frequencies):
        yield f"has a RoPE frequency beyond {FREQUENCY:.2g} radians per position"
    if cache.dtype in BLOCK_BYTES and heads * head_dim % BLOCK_VALUES:
        yield f"has {heads} heads of {head_dim}, which do not fill {cache.dtype} blocks of {BLOCK_VALUES}"
    unpacked = UNPACKED_BYTES * 2 * heads * head_dim * sum(layer.columns for layer in cache.layers)
    if cache.dtype in PACKED and unpacked > caps.unpacked_bytes:
        yield f"unpacks to {unpacked} bytes (at most {caps.unpacked_bytes})"


def _described(cache: Manifest, caps: Caps) -> Iterator[str]:
    longest, ids = max(layer.columns for layer in cache.layers), cache.token_ids
    sinks = sum(span.kind == "sink" for span in cache.spans)
    if any(not 0 <= span.start < span.stop <= longest for span in cache.spans):
        yield "has spans outside its columns"
    if sinks > caps.sinks:
        yield f"has {sinks} spans of sinks (at most {caps.sinks})"
    if ids is not None and len(ids) != longest:
        yield f"has {len(ids)} token ids for {longest} columns"
