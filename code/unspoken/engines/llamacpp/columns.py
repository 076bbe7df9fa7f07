"""Between llama.cpp's cells and this package's columns: element types, rotation, order of a head's coordinates.

Two things keep llama.cpp's numbers from being ours. Quantised caches are rotated (`unspoken.transforms.blocks`).
And for the models whose RoPE pairs neighbours, GGUF files have the rows of query and key projections reordered, so
that coordinate 2i + j of a key stands for coordinate j·D/2 + i as transformers has it (`permute` of llama.cpp's
convert_hf_to_gguf.py). Columns are kept in transformers' order, which pairs i with i + D/2, so that one cache
serves both. Values are in the same order everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.engines.checks import require_even
from unspoken.engines.llamacpp.blob import Blob, blank
from unspoken.engines.llamacpp.room import Room, fresh
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.spec import ModelSpec
from unspoken.transforms.blocks import ElementType, decode, encode, hadamard, row_bytes

# The element type of columns for each type of cells. A quantised cell, decoded to float32 and encoded again, is the
# same cell; through 16 bits it would not be.
COLUMN_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "float32", "q4_0": "float32"}


@dataclass(frozen=True)
class Translation:
    """How one context's cells are turned into columns and back.

    Attributes:
        spec: The model.
        kind: Element type of the cells.
        interleaved: Whether the library's keys pair neighbouring coordinates.
        rotations: Sizes of the blocks in which keys and values are rotated, 0 for not rotated.
        tells_rotations: Whether states have words for that: the new layout.
    """

    spec: ModelSpec
    kind: ElementType
    interleaved: bool
    rotations: tuple[int, int]
    tells_rotations: bool

    @property
    def dtype(self) -> str:
        """Element type of the columns."""
        return COLUMN_DTYPES[self.kind.name]

    def columns(self, blob: Blob) -> list[KVLayer]:
        """Return the cells of a state as columns, copied.

        Raises:
            IncompatibleCache: If the state is of another shape, type or rotation than this context's.
        """
        self._require_same(blob)
        positions = torch.from_numpy(blob.positions.copy())
        of_keys, of_values = self.rotations
        return [
            KVLayer(index, self._read(keys, of_keys, self.interleaved), self._read(values, of_values, False), positions)
            for index, (keys, values) in enumerate(zip(blob.keys, blob.values, strict=True))
        ]

    def state(self, cache: KVCache, room: Room = fresh) -> NDArray[np.uint8]:
        """Return columns as the bytes of a state that this context takes.

        Args:
            cache: The columns.
            room: Where the bytes are to stand.

        Raises:
            IncompatibleCache: If layers hold different numbers of columns, or numbers too large for the cells' type.
        """
        require_even(cache, "llamacpp")
        # A cell has one position for all layers, which only decides who sees it. Keys are turned already, so layers
        # may hold different columns as long as none of them stands behind what is read next.
        first = torch.stack([layer.positions for layer in cache.layers]).amax(dim=0)
        spec = self.spec
        told = self.rotations if self.tells_rotations else None
        bytes_, blob = blank(first.numpy(), spec.layers, spec.kv_heads * spec.head_dim, self.kind, told, room)
        of_keys, of_values = self.rotations
        for layer, keys, values in zip(cache.layers, blob.keys, blob.values, strict=True):
            self._write(keys, layer.keys, of_keys, self.interleaved)
            self._write(values, layer.values, of_values, False)
        return bytes_

    def _read(
        self, rows: NDArray[np.uint8], rotation: int, interleaved: bool
    ) -> Float[Tensor, "kv_heads seq head_dim"]:
        heads, head_dim = self.spec.kv_heads, self.spec.head_dim
        if self.kind.quantised:
            wide = hadamard(decode(rows, self.kind, heads * head_dim), rotation)
            cells = torch.from_numpy(wide)
        else:
            cells = torch.from_numpy(rows).view(DTYPES[self.dtype])
        return _from_cells(cells.view(-1, heads, head_dim), interleaved)

    def _write(
        self, rows: NDArray[np.uint8], states: Float[Tensor, "kv_heads seq head_dim"], rotation: int, interleaved: bool
    ) -> None:
        heads, head_dim = self.spec.kv_heads, self.spec.head_dim
        if not self.kind.quantised:
            cells = torch.from_numpy(rows).view(DTYPES[self.dtype]).view(-1, heads, head_dim)
            _into_cells(cells, states, interleaved)
            if states.dtype != cells.dtype and not cells.isfinite().all():
                raise self._too_large(states)
            return
        wide = torch.empty(states.shape[1], heads, head_dim)
        _into_cells(wide, states, interleaved)
        try:
            rows[...] = encode(hadamard(wide.view(-1, heads * head_dim).numpy(), rotation), self.kind)
        except UsageError as error:
            raise self._too_large(states) from error

    def _too_large(self, states: Tensor) -> IncompatibleCache:
        return IncompatibleCache(
            f"The cache holds numbers up to {float(states.abs().max()):.3g}, too large for {self.kind.name}.",
            "Choose --kv-type bf16 or f32.",
        )

    def _require_same(self, blob: Blob) -> None:
        spec = self.spec
        row = row_bytes(self.kind, spec.kv_heads * spec.head_dim)
        found = (
            blob.key_type.name,
            blob.value_type.name,
            len(blob.keys),
            blob.keys[0].shape[1],
            blob.values[0].shape[1],
        )
        expected = (self.kind.name, self.kind.name, spec.layers, row, row)
        names = ("type of keys", "type of values", "layers", "bytes in a row of keys", "bytes in a row of values")
        wrong = _differences(names, found, expected)
        if blob.rotations is not None and blob.rotations != self.rotations:
            wrong.append(f"rotations {blob.rotations}, expected {self.rotations}")
        if (blob.rotations is not None) != self.tells_rotations:
            wrong.append("the layout of another version of llama.cpp")
        if wrong:
            raise IncompatibleCache(
                f"The llama.cpp state does not fit '{spec.name}': it has {'; '.join(wrong)}.",
                "Make it with the same model, the same --kv-type and the same llama.cpp.",
            )


def _from_cells(
    cells: Float[Tensor, "seq kv_heads head_dim"], interleaved: bool
) -> Float[Tensor, "kv_heads seq head_dim"]:
    seq, heads, head_dim = cells.shape
    if not interleaved:
        return cells.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    pairs = cells.view(seq, heads, head_dim // 2, 2).permute(1, 0, 3, 2)
    return pairs.clone(memory_format=torch.contiguous_format).view(heads, seq, head_dim)


def _into_cells(
    cells: Float[Tensor, "seq kv_heads head_dim"], states: Float[Tensor, "kv_heads seq head_dim"], interleaved: bool
) -> None:
    seq, heads, head_dim = cells.shape
    if not interleaved:
        cells.copy_(states.transpose(0, 1))
        return
    halves = states.reshape(heads, seq, 2, head_dim // 2)
    cells.view(seq, heads, head_dim // 2, 2).copy_(halves.permute(1, 0, 3, 2))


def _differences(names: Sequence[str], found: Sequence[object], expected: Sequence[object]) -> list[str]:
    told = zip(names, found, expected, strict=True)
    return [f"{name} {one}, expected {other}" for name, one, other in told if one != other]
