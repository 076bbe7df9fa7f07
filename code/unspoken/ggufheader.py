"""Read the header of a GGUF file, quickly and without trust; tensors stay in the file, mapped into memory."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType

# Far beyond any model; a damaged count would otherwise be walked to its end.
LARGEST_COUNT = 1 << 18
LARGEST_ARRAY = 1 << 22
# Longer arrays are vocabularies and the like, which nobody here needs.
KEPT_ITEMS = 4096


class HeaderReader(GGUFReader):
    """Reads a header as gguf does, but steps over vocabularies, and refuses what does not fit the file.

    gguf makes several objects per token, which takes seconds where there are many thousands.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            start = file.read(24)
        if start[:4] != b"GGUF" or len(start) < 24:
            raise ValueError("it is no GGUF file")
        if max(struct.unpack("<QQ", start[8:])) > LARGEST_COUNT and start[4] != 0:  # Big-endian files start with 0.
            raise ValueError("it claims more tensors or fields than a model has")
        super().__init__(path)

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError("it is shorter than its header says")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        if length[0] > LARGEST_ARRAY:
            raise ValueError(f"a list in its header claims {length[0]} items")
        if length[0] <= KEPT_ITEMS or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        item = GGUFValueType(kind[0])
        if item is GGUFValueType.ARRAY:
            raise ValueError("a list in its header holds too many lists")
        return 12 + self._stepped_over(int(orig_offs) + 12, item, int(length[0])), [kind, length], [], [raw_type, item]

    def _stepped_over(self, start: int, item: GGUFValueType, length: int) -> int:
        if item is not GGUFValueType.STRING:
            return int(np.dtype(self.gguf_scalar_to_np[item]).itemsize) * length
        raw, offset = self.data.data, start
        for _ in range(length):
            size = raw[offset : offset + 8]
            offset += 8 + int.from_bytes(size, "little")
            if offset > len(raw) or len(size) < 8:
                raise ValueError("it is shorter than its header says")
        return offset - start
