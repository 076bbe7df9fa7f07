"""The cache as a value: typed layers and a manifest, never changed once made.

No model, no file and no engine in here. Every method returns a new `KVCache` that shares
memory with the old one where it can, so a fork costs nothing and N receivers of one cache
never see each other's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.errors import IncompatibleCache, UsageError
from unspoken.manifest import LayerInfo, LayerKind, Manifest, RopeState, Span, SpanKind, Step, require_compatible
from unspoken.spec import ModelSpec

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class KVLayer:
    """Keys and values of one layer.

    Attributes:
        index: Which decoder layer of the model this is.
        keys: `[kv_heads, seq, head_dim]`, contiguous.
        values: The same shape.
        positions: int32 `[seq]`: the position each column's key is turned to (or, with RoPE
            removed, was made for). Data, not `arange`: after selection there are gaps.
        kind: `full`, or `sliding` while every column is present.
    """

    index: int
    keys: Float[Tensor, "kv_heads seq head_dim"]
    values: Float[Tensor, "kv_heads seq head_dim"]
    positions: Int[Tensor, " seq"]
    kind: LayerKind = "full"

    def __post_init__(self) -> None:
        if self.keys.shape != self.values.shape or self.keys.shape[1] != self.positions.shape[0]:
            raise UsageError(
                f"Layer {self.index} has keys {list(self.keys.shape)}, values {list(self.values.shape)} and "
                f"{self.positions.shape[0]} positions.",
                "Keys and values must be [kv_heads, seq, head_dim] with one position per column.",
            )

    @property
    def columns(self) -> int:
        """Number of columns."""
        return int(self.keys.shape[1])

    def bytes_held(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True, eq=False)
class KVCache:
    """What an agent understood, as columns: one per token, in every layer.

    Build one with `KVCache.build`; engines, files and transforms do.
    """

    layers: tuple[KVLayer, ...]
    manifest: Manifest

    @staticmethod
    def build(
        layers: Sequence[KVLayer],
        spec: ModelSpec,
        *,
        rope: RopeState = "applied",
        spans: Sequence[Span] = (),
        token_ids: Sequence[int] | None = None,
        lineage: Sequence[Step] = (),
        sender: str | None = None,
    ) -> KVCache:
        """Make a cache from its layers; the manifest's layer table is derived from them.

        Raises:
            UsageError: If there is no layer, or dtypes differ or are not a known float type.
        """
        if not layers:
            raise UsageError("A cache needs at least one layer, found none.", "Capture it again with a model.")
        names = {str(layer.keys.dtype).removeprefix("torch.") for layer in layers}
        if len(names) != 1 or not names <= DTYPES.keys():
            raise UsageError(f"A cache has one dtype of {', '.join(DTYPES)}, found {sorted(names)}.", "Cast it first.")
        manifest = Manifest(
            spec=spec,
            dtype=names.pop(),
            layers=tuple(LayerInfo(layer.index, layer.kind, layer.columns) for layer in layers),
            rope=rope,
            spans=tuple(spans),
            token_ids=None if token_ids is None else tuple(token_ids),
            lineage=tuple(lineage),
            sender=sender,
        )
        return KVCache(tuple(layers), manifest)

    @property
    def spec(self) -> ModelSpec:
        """The model that made this cache."""
        return self.manifest.spec

    @property
    def columns(self) -> int:
        """Number of columns of the first layer (all layers, unless some were selected)."""
        return self.layers[0].columns

    @property
    def positions(self) -> Int[Tensor, " seq"]:
        """int32 positions of the first layer's columns."""
        return self.layers[0].positions

    @property
    def next_position(self) -> int:
        """The position right after the last column of any layer."""
        return max((int(layer.positions.max()) + 1 for layer in self.layers if layer.columns), default=0)

    def bytes_held(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.bytes_held() for layer in self.layers)

    def slice(self, start: int, stop: int) -> KVCache:
        """Return columns `start` to `stop` (out), positions kept.

        Raises:
            UsageError: If the range is empty or outside the cache, or layers hold different columns.
        """
        counts = {layer.columns for layer in self.layers}
        if len(counts) != 1 or not 0 <= start < stop <= self.columns:
            raise UsageError(
                f"Columns {start} to {stop} of a cache with {sorted(counts)} columns cannot be cut.",
                "Give a non-empty range inside a cache whose layers hold the same columns.",
            )
        spans = [
            Span(span.kind, max(span.start, start) - start, min(span.stop, stop) - start)
            for span in self.manifest.spans
            if span.start < stop and span.stop > start
        ]
        ids = self.manifest.token_ids
        return self.rebuilt(
            Step("slice", {"start": start, "stop": stop}),
            lambda layer: (
                layer.keys[:, start:stop].contiguous(),
                layer.values[:, start:stop].contiguous(),
                layer.positions[start:stop],
            ),
            spans=tuple(spans),
            token_ids=None if ids is None else ids[start:stop],
        )

    def span(self, kind: SpanKind) -> KVCache:
        """Return the columns of one kind, which must be one run ("content").

        Raises:
            UsageError: If the cache has no such run, or several.
        """
        runs = [span for span in self.manifest.spans if span.kind == kind]
        if len(runs) != 1:
            raise UsageError(
                f"The cache has {len(runs)} runs of '{kind}' columns, expected one.",
                "Capture it with `unspoken capture`, or cut it by column with `slice`.",
            )
        return self.slice(runs[0].start, runs[0].stop)

    def concat(self, later: KVCache) -> KVCache:
        """Return this cache's columns followed by another's; nothing is re-positioned here.

        Raises:
            IncompatibleCache: If models, layers, dtype or RoPE state differ.
        """
        require_compatible(later.spec, self.spec)
        ours, theirs = self.manifest, later.manifest
        if (ours.dtype, ours.rope) != (theirs.dtype, theirs.rope) or len(self.layers) != len(later.layers):
            raise IncompatibleCache(
                f"A {ours.dtype} cache with RoPE {ours.rope} over {len(self.layers)} layers cannot be followed by a "
                f"{theirs.dtype} one with RoPE {theirs.rope} over {len(later.layers)} layers.",
                "Cast and re-position the second one first.",
            )
        layers = [
            KVLayer(
                mine.index,
                torch.cat((mine.keys, other.keys), dim=1),
                torch.cat((mine.values, other.values), dim=1),
                torch.cat((mine.positions, other.positions)),
                mine.kind,
            )
            for mine, other in zip(self.layers, later.layers, strict=True)
        ]
        return self.followed_by(later, layers, theirs.lineage)

    def followed_by(self, later: KVCache, layers: Sequence[KVLayer], lineage: Sequence[Step]) -> KVCache:
        """Return layers that hold this cache's columns and then another's, described as such.

        Args:
            later: The cache whose columns come second; its spans, tokens and sender are taken over.
            layers: The joined layers.
            lineage: What was done to the second cache before it was joined.
        """
        ours, theirs = self.manifest, later.manifest
        both_known = ours.token_ids is not None and theirs.token_ids is not None
        return KVCache.build(
            layers,
            self.spec,
            rope=ours.rope,
            spans=(*ours.spans, *(span.shifted(self.columns) for span in theirs.spans)),
            token_ids=(*(ours.token_ids or ()), *(theirs.token_ids or ())) if both_known else None,
            lineage=(*lineage, Step("concat", {"before": self.columns, "after": later.columns})),
            sender=theirs.sender,
        )

    def rebuilt(
        self,
        step: Step,
        change: Callable[[KVLayer], tuple[Tensor, Tensor, Tensor]],
        **manifest_fields: Any,
    ) -> KVCache:
        """Return a cache whose layers are `change(layer) -> keys, values, positions`, with one more step of lineage.

        This is what transforms are made of. `manifest_fields` replace fields of the manifest;
        dtype, layer table and lineage follow by themselves.
        """
        layers = tuple(KVLayer(layer.index, *change(layer), layer.kind) for layer in self.layers)
        manifest = msgspec.structs.replace(
            self.manifest,
            dtype=str(layers[0].keys.dtype).removeprefix("torch."),
            layers=tuple(LayerInfo(layer.index, layer.kind, layer.columns) for layer in layers),
            lineage=(*self.manifest.lineage, step),
            **manifest_fields,
        )
        return KVCache(layers, manifest)

    def labelled(self, *, sender: str | None = None, spans: Sequence[Span] | None = None) -> KVCache:
        """Return the same columns with another sender's name or other spans."""
        changes: dict[str, Any] = {}
        if sender is not None:
            changes["sender"] = sender
        if spans is not None:
            changes["spans"] = tuple(spans)
        return KVCache(self.layers, msgspec.structs.replace(self.manifest, **changes))

    def without_tokens(self) -> KVCache:
        """Return the same columns without the token ids, which spell out the text."""
        return KVCache(self.layers, msgspec.structs.replace(self.manifest, token_ids=None))
