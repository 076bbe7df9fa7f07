"""Whole numbers of 8 or 4 bits with scales in groups: the codecs `int8` and `int4`.

Keys share a scale per channel over a group of tokens, values per token over a group of channels (KIVI, arXiv
2402.02750): a key's large channels are large in every token, a value's are not. That holds for keys without RoPE,
which mixes two channels by an angle that differs from token to token (KVQuant, arXiv 2401.18079, section 3.2), so
keys are position-free while they are packed. Sinks, whose numbers are unlike all others, are kept in bfloat16 beside
the codes (the same, section 3.5).

int4 rotates each head by a Hadamard matrix first, as llama.cpp does for its quantised caches (its pull request 21038),
which spreads large numbers over the head: half the divergence on SmolLM2, at the same bytes. For int8 the gain is
below what bfloat16 loses, and the rotation would take longer than everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.errors import UsageError
from unspoken.layout import GROUPINGS, Grouping, Part, channel_group, parts, sink_runs, token_runs
from unspoken.manifest import LayerInfo, Manifest
from unspoken.packed import ELEMENTS, Packed, positions
from unspoken.transforms.blocks import ElementType, hadamard, rotation_size
from unspoken.transforms.codecs import packed_manifest, unpacked
from unspoken.transforms.quantise_groups import Groups, decode, encode
from unspoken.transforms.rope import RemoveRope

# Rotated like llama.cpp's type of as many bits.
_ROTATED = {"int4": ElementType.named("q4_0")}


@dataclass(frozen=True)
class Grouped:
    """The codecs `int8` and `int4`, by their name."""

    name: str

    def pack(self, cache: KVCache, /) -> Packed:
        """Return the codes of all keys and values, with their scales, minima and sinks.

        Raises:
            UsageError: If a number is NaN or too large for float16.
        """
        manifest = packed_manifest(self.name, cache)
        tensors = {name: _blank(part) for name, part in parts(manifest).items()} | positions(cache)
        for layer in RemoveRope()(cache).layers:
            for side, numbers in (("keys", layer.keys), ("values", layer.values)):
                _pack(f"layers.{layer.index}.{side}", numbers, tensors, manifest)
        return Packed(manifest, tensors)

    def unpack(self, packed: Packed, /) -> KVCache:
        """Return the cache in float32; columns of kind `sink` have lost no more than bfloat16 does."""
        return unpacked(packed, lambda name, layer: _unpack(name, layer, packed))


def _blank(part: Part) -> Tensor:
    return torch.empty(part.shape, dtype=ELEMENTS[part.element])


def _pack(
    name: str, numbers: Float[Tensor, "kv_heads seq head_dim"], tensors: Mapping[str, Tensor], manifest: Manifest
) -> None:
    """Fill in the tensors of a layer's keys or values."""
    sink = tensors.get(f"{name}.sink")
    rest = numbers.contiguous()
    if sink is not None:
        apart = _sinks(manifest, numbers.shape[1])
        sink.copy_(numbers[:, apart])
        rest = numbers[:, ~apart]
        if not sink.isfinite().all():
            raise UsageError(f"The cache holds NaN or infinite numbers in '{name}'.", "Check the model's weights.")
    rest = _rotated(rest, name, manifest.dtype)
    for piece in _pieces(name, rest, tensors, GROUPINGS[manifest.dtype]):
        encode(piece.numbers, piece.groups)


def _unpack(name: str, layer: LayerInfo, packed: Packed) -> Float32[Tensor, "kv_heads seq head_dim"]:
    """Return a layer's keys or values."""
    spec, sink = packed.manifest.spec, packed.tensors.get(f"{name}.sink")
    rest = torch.empty(spec.kv_heads, packed.tensors[name].shape[1], spec.head_dim)
    for piece in _pieces(name, rest, packed.tensors, GROUPINGS[packed.manifest.dtype]):
        decode(piece.groups, piece.numbers)
    rest = _rotated(rest, name, packed.manifest.dtype)
    if sink is None:
        return rest
    whole, apart = torch.empty(spec.kv_heads, layer.columns, spec.head_dim), _sinks(packed.manifest, layer.columns)
    whole[:, apart], whole[:, ~apart] = sink.float(), rest
    return whole


def _rotated(numbers: Tensor, name: str, codec: str) -> Tensor:
    """Return numbers rotated for a codec, which is its own inverse; int8 and heads of no multiple of 64 are not."""
    side: Literal["keys", "values"] = "keys" if name.endswith("keys") else "values"
    size = rotation_size(_ROTATED[codec], numbers.shape[-1], side) if codec in _ROTATED else 0
    return torch.from_numpy(hadamard(numbers.float().numpy(), size)) if size else numbers


def _sinks(manifest: Manifest, columns: int) -> Bool[Tensor, " seq"]:
    """Tell for each column whether it is a sink."""
    apart = torch.zeros(columns, dtype=torch.bool)
    for run in sink_runs(manifest):
        apart[run.start : run.stop] = True
    return apart


class _Piece(NamedTuple):
    """Some numbers and the groups that stand for them, cut alike."""

    numbers: Tensor
    groups: Groups


def _pieces(
    name: str, numbers: Float[Tensor, "kv_heads seq head_dim"], tensors: Mapping[str, Tensor], rule: Grouping
) -> Iterator[_Piece]:
    """Yield views of keys, one for each size of their groups of tokens, or of values, all at once."""
    codes, scale, minimum = (tensors[name + end] for end in ("", ".scale", ".minimum"))
    heads, columns, head_dim = numbers.shape
    if name.endswith("values"):
        shared = channel_group(head_dim, rule.channels)
        cut = numbers.view(heads, columns, head_dim // shared, shared)
        yield _Piece(cut, Groups(codes.unsqueeze(2), scale, minimum, axis=2, bits=rule.bits))
        return
    first = 0
    for start, groups, tokens in token_runs(columns, rule.tokens):
        here, shared_by = slice(start, start + groups * tokens), slice(first, first + groups)
        cut, coded = (each[:, here].view(heads, groups, tokens, -1) for each in (numbers, codes))
        yield _Piece(cut, Groups(coded, scale[:, shared_by], minimum[:, shared_by], axis=1, bits=rule.bits))
        first += groups
