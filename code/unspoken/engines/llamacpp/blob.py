"""llama.cpp's saved state of one sequence as a value: taken apart without copying, put together byte for byte.

    in memory    u32 magic, i32 sequence id, then the cache    (`llama_state_seq_get_data`)
    in a file    u32 magic, u32 version, u32 tokens, i32 for each token, then the cache    (`llama_state_seq_save_file`)

    the cache    u32 streams, u32 cells; for each cell i32 position, u32 sequences, i32 sequence id
                 u32 whether values are transposed, u32 layers
                 new layout only: u32 size of the keys' rotation, u32 of the values'; 0 if not rotated
                 for each layer: i32 element type, u64 bytes per row, one row of keys for each cell
                 for each layer: the same for values

All of it is little-endian and packed; a row holds all heads of one token. Sources: `state_write` in llama.cpp's
llama-kv-cache.cpp; the new layout came with its pull request 28498.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unspoken.engines.llamacpp.room import Room, fresh
from unspoken.errors import UsageError
from unspoken.transforms.blocks import ElementType, is_rotation, row_bytes

BLOB_MAGIC = 0xAF143CD8
FILE_MAGIC = 0x67677371
# Whether files of a version are of the new layout; with plain cells, files of versions 2 and 3 do not differ.
VERSIONS = {2: False, 3: False, 4: True}
CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence_id", "<i4")])
# Far above any model, and small enough that a forged state cannot keep a reader busy.
MAX_LAYERS = 1024
MAX_ROW_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class Blob:
    """The cells of one sequence in llama.cpp's cache.

    Attributes:
        positions: int32 `[cells]`, in the order of the cells.
        keys: For each layer the rows uint8 `[cells, row_bytes]`; after `parse`, views of what was parsed.
        values: The same for values; rows may have another length than those of keys.
        key_type: How the numbers in the rows of keys are stored.
        value_type: The same for values.
        rotations: The sizes of the blocks in which keys and values are rotated, 0 for not rotated; None in the old
            layout, which does not tell.
    """

    positions: NDArray[np.int32]
    keys: tuple[NDArray[np.uint8], ...]
    values: tuple[NDArray[np.uint8], ...]
    key_type: ElementType
    value_type: ElementType
    rotations: tuple[int, int] | None

    def __post_init__(self) -> None:
        problem = _first_problem(self)
        if problem is not None:
            raise UsageError(f"A llama.cpp state {problem}.", "Give rows as `blocks.encode` makes them, one per cell.")

    @property
    def bytes_built(self) -> int:
        """Bytes that `build` makes of it."""
        return 8 + _cache_bytes(self)


@dataclass(frozen=True, eq=False)
class FileState:
    """What a file of one saved sequence holds.

    Attributes:
        token_ids: int32 `[words]`, as whoever saved the file gave them: not checked, not always one per cell. Slots
            of newer llama-servers (pull request 26640) begin with -1: a record of -1, 1, the number of ids, the ids
            and what media there are.
        blob: The cells.
        version: Of the file; None stands for the newest one of the blob's layout.
    """

    token_ids: NDArray[np.int32]
    blob: Blob
    version: int | None = None

    def __post_init__(self) -> None:
        rotates = self.blob.rotations is not None
        if self.version is not None and VERSIONS.get(self.version) is not rotates:
            raise UsageError(
                f"A llama.cpp file of version {self.version} cannot hold the {'new' if rotates else 'old'} layout.",
                "Give no version, or one of the blob's layout: 2 and 3 are of the old one, 4 is of the new one.",
            )


def build(blob: Blob, sequence_id: int = 0) -> NDArray[np.uint8]:
    """Put a saved sequence together: the inverse of `parse`, to be given to `llama_state_seq_set_data`.

    Args:
        blob: The cells; its layout is the new one if it tells of rotations.
        sequence_id: Stands in the bytes; llama.cpp ignores it when it loads them.

    Raises:
        UsageError: If the sequence id is negative or too large.
    """
    return _build(blob, _sequence(sequence_id), struct.pack("<Ii", BLOB_MAGIC, sequence_id))


def blank(
    positions: NDArray[np.int32],
    layers: int,
    elements: int,
    kind: ElementType,
    rotations: tuple[int, int] | None,
    room: Room = fresh,
) -> tuple[NDArray[np.uint8], Blob]:
    """Return a state whose rows are still to be written: its bytes, and the blob whose rows lie in them.

    Args:
        positions: int32 `[cells]`.
        layers: Layers of keys, and of values.
        elements: Values of one row: kv_heads * head_dim.
        kind: How keys and values are stored.
        rotations: What the layout tells of rotations; None for the old one.
        room: Where it is to stand.

    Raises:
        UsageError: If there is no cell, or rows do not fill whole blocks.
    """
    empty = (np.broadcast_to(np.uint8(0), (len(positions), row_bytes(kind, elements))),) * layers
    described = Blob(positions, empty, empty, kind, kind, rotations)
    state, places = _laid_out(described, 0, struct.pack("<Ii", BLOB_MAGIC, 0), room)
    return state, Blob(positions, tuple(places[:layers]), tuple(places[layers:]), kind, kind, rotations)


def build_file(state: FileState, sequence_id: int = 0) -> NDArray[np.uint8]:
    """Put the contents of a file together: the inverse of `parse_file`, for `llama_state_seq_load_file`.

    Args:
        state: Tokens and cells; a llama.cpp loads files of its own version only.
        sequence_id: Stands in the cells; llama.cpp ignores it when it loads them.

    Raises:
        UsageError: If the sequence id is negative or too large.
    """
    newest = max(each for each, rotates in VERSIONS.items() if rotates is (state.blob.rotations is not None))
    version = newest if state.version is None else state.version
    prefix = struct.pack("<III", FILE_MAGIC, version, len(state.token_ids))
    return _build(state.blob, _sequence(sequence_id), prefix + state.token_ids.astype("<i4").tobytes())


def row_problem(length: int, kind: ElementType, part: str, rotation: int) -> str | None:
    """Return why keys or values cannot have rows of this length, or None."""
    if not 0 < length < MAX_ROW_BYTES or length % kind.bytes_per_block:
        return f"has rows of {length} bytes for {part} of type {kind.name}, which cannot be"
    elements = length // kind.bytes_per_block * kind.values_per_block
    if rotation and (not is_rotation(rotation) or elements % rotation):
        return f"has {part} of {elements} values in a row rotated in blocks of {rotation}, which cannot be"
    return None


def _first_problem(blob: Blob) -> str | None:
    """Return why llama.cpp could not have made a blob ("has a negative position"), or None."""
    count = len(blob.positions)
    if blob.positions.ndim != 1 or count == 0 or blob.positions.min() < 0:
        return "has no cells, or a negative position"
    if len(blob.keys) != len(blob.values) or not 1 <= len(blob.keys) <= MAX_LAYERS:
        return f"has keys of {len(blob.keys)} layers and values of {len(blob.values)}"
    sizes = blob.rotations or (0, 0)
    parts = (("keys", blob.key_type, blob.keys), ("values", blob.value_type, blob.values))
    for size, (part, kind, layers) in zip(sizes, parts, strict=True):
        shape = layers[0].shape
        if len(shape) != 2 or shape[0] != count or any(r.shape != shape or r.dtype != np.uint8 for r in layers):
            return f"has {part} that are not the same number of bytes for each of {count} cells in all layers"
        problem = row_problem(shape[1], kind, part, size)
        if problem is not None:
            return problem
    return None


def _sequence(sequence_id: int) -> int:
    if not 0 <= sequence_id < 1 << 31:
        raise UsageError(f"There is no sequence {sequence_id}.", "Sequences are numbered from 0.")
    return sequence_id


def _cache_bytes(blob: Blob) -> int:
    rows = sum(each.size for each in (*blob.keys, *blob.values))
    return 16 + 8 * (blob.rotations is not None) + CELL.itemsize * len(blob.positions) + 24 * len(blob.keys) + rows


def _build(blob: Blob, sequence_id: int, prefix: bytes) -> NDArray[np.uint8]:
    out, places = _laid_out(blob, sequence_id, prefix)
    for place, rows in zip(places, (*blob.keys, *blob.values), strict=True):
        place[...] = rows
    return out


def _laid_out(
    blob: Blob, sequence_id: int, prefix: bytes, room: Room = fresh
) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """Return a state in which everything stands but the rows, and the places of the rows in it."""
    out = room(len(prefix) + _cache_bytes(blob))
    at, places = 0, []

    def space(count: int) -> NDArray[np.uint8]:
        nonlocal at
        at += count
        return out[at - count : at]

    def put(part: bytes) -> None:
        space(len(part))[...] = np.frombuffer(part, np.uint8)

    put(prefix + struct.pack("<II", 1, len(blob.positions)))
    cells = space(CELL.itemsize * len(blob.positions)).view(CELL)
    cells["position"], cells["sequences"], cells["sequence_id"] = blob.positions, 1, sequence_id
    put(struct.pack("<II", 0, len(blob.keys)))
    if blob.rotations is not None:
        put(struct.pack("<II", *blob.rotations))
    for kind, layers in ((blob.key_type, blob.keys), (blob.value_type, blob.values)):
        for rows in layers:
            put(struct.pack("<iQ", kind.number, rows.shape[1]))
            places.append(space(rows.size).reshape(rows.shape))
    return out, places
