"""Take llama.cpp's saved state of one sequence apart (see `engines.llamacpp.blob` for what it looks like).

A state in memory says neither which layout it has nor which model it is of. So both layouts are tried, and one is
taken only if everything in it can be true and its end is the end of the bytes. Sizes are compared with what is left
before anything is read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unspoken.engines.llamacpp.blob import (
    BLOB_MAGIC,
    CELL,
    FILE_MAGIC,
    MAX_LAYERS,
    VERSIONS,
    Blob,
    FileState,
    row_problem,
)
from unspoken.engines.llamacpp.reader import Data, Reader, refused
from unspoken.errors import CacheFileError, UsageError
from unspoken.transforms.blocks import ElementType, is_rotation

# Cells of models whose tokens have more than one position; recognised, to be refused by their name.
WIDE_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("more", "<i4", 3), ("sequence_id", "<i4")])
OTHER_MAGICS = {
    BLOB_MAGIC: "is a state in memory, which begins otherwise than a file",
    FILE_MAGIC: "is a file of a saved sequence, which begins otherwise than a state in memory",
    0x6767736E: "is the session of a whole llama.cpp context, not of one sequence",
    0x46554747: "is a GGUF file: a model, not a saved sequence",
}


def parse(data: Data) -> Blob:
    """Take a saved sequence apart; rows stay views of the bytes given, only positions are copied.

    Args:
        data: What `llama_state_seq_get_data` wrote, in contiguous memory, and nothing after it.

    Raises:
        CacheFileError: If it is no sound state of one sequence, or one that cannot be moved.
    """
    reader = Reader.of(data)
    reader.magic(BLOB_MAGIC, OTHER_MAGICS)
    reader.numbers("<i", "the sequence id")
    return _parse_cache(reader, (True, False))


def parse_file(data: Data) -> FileState:
    """Take the contents of a file of one saved sequence apart; rows stay views of them.

    Args:
        data: What `llama_state_seq_save_file` wrote, in contiguous memory.

    Raises:
        CacheFileError: If it is no sound state of one sequence, of another version, or one that cannot be moved.
    """
    reader = Reader.of(data)
    reader.magic(FILE_MAGIC, OTHER_MAGICS)
    version, tokens = reader.numbers("<II", "version and number of tokens")
    if version not in VERSIONS:
        raise refused(
            f"has file version {version}, this program reads versions {', '.join(map(str, VERSIONS))}",
            "Use a llama.cpp that writes one of these, or a newer unspoken.",
        )
    token_ids = reader.take(4 * tokens, "the token ids").view("<i4").astype(np.int32)
    return FileState(token_ids, _parse_cache(reader, (VERSIONS[version],)), version)


def _parse_cache(reader: Reader, layouts: tuple[bool, ...]) -> Blob:
    """Read what blobs and files have in common, in the first of the layouts that fits."""
    start = reader.at
    try:
        return _parse_cells(reader, CELL, layouts)
    except CacheFileError as error:
        reason = error
    try:
        _parse_cells(Reader(reader.data, start), WIDE_CELL, layouts)
    except CacheFileError:
        raise reason from None
    raise refused(
        "has cells with more than one position each, as models with M-RoPE make them",
        "Such a cache cannot be moved: use a text model with plain RoPE.",
    )


def _parse_cells(reader: Reader, cell: np.dtype[np.void], layouts: tuple[bool, ...]) -> Blob:
    (streams,) = reader.numbers("<I", "the number of streams")
    if streams != 1:
        hint = "Make the context with `kv_unified` on, or use a newer llama.cpp, and save again."
        raise refused(f"has {streams} streams instead of one", hint)
    (count,) = reader.numbers("<I", "the number of cells")
    if count == 0:
        raise refused("has no cells: the sequence was empty", "Decode a prompt before the sequence is saved.")
    cells = reader.take(count * cell.itemsize, f"{count} cells").view(cell)
    if (cells["sequences"] != 1).any():
        odd = int(np.argmax(cells["sequences"] != 1))
        raise refused(f"has a cell, number {odd}, of {cells['sequences'][odd]} sequences instead of one")
    if (cells["position"] < 0).any():
        raise refused(f"has the negative position {cells['position'].min()}")
    transposed, layers = reader.numbers("<II", "the marks of the cache")
    if transposed == 1:
        raise refused("has transposed values", "Make the context with flash attention on, and save again.")
    if transposed != 0 or not 1 <= layers <= MAX_LAYERS:
        raise refused(f"has {layers} layers and the mark {transposed} for transposed values, which cannot be")
    return _first_fitting(reader, cells["position"].astype(np.int32), layers, layouts)


def _first_fitting(reader: Reader, positions: NDArray[np.int32], layers: int, layouts: tuple[bool, ...]) -> Blob:
    """Try layouts in turn; if none fits, tell why of the one that could be followed furthest."""
    furthest, reason = -1, refused("has no known layout")
    for rotates in layouts:
        attempt = Reader(reader.data, reader.at)
        try:
            return _parse_layers(attempt, positions, layers, rotates)
        except CacheFileError as error:
            if attempt.at > furthest:
                furthest, reason = attempt.at, error
    raise reason


def _parse_layers(reader: Reader, positions: NDArray[np.int32], layers: int, rotates: bool) -> Blob:
    of_keys, of_values = reader.numbers("<II", "the sizes of the rotations") if rotates else (0, 0)
    if not all(size == 0 or is_rotation(size) for size in (of_keys, of_values)):
        raise refused(f"has rotations of sizes {of_keys} and {of_values}, which cannot be")
    key_type, keys = _parse_rows(reader, (len(positions), layers), "keys", of_keys)
    value_type, values = _parse_rows(reader, (len(positions), layers), "values", of_values)
    if reader.left:
        raise refused(
            f"has {reader.left} bytes after its last layer: a second cache, of a sliding window or a recurrent state, "
            "or bytes that do not belong to it",
            "Use a model with full attention in all layers, and give the state alone.",
        )
    return Blob(positions, keys, values, key_type, value_type, (of_keys, of_values) if rotates else None)


def _parse_rows(
    reader: Reader, shape: tuple[int, int], part: str, rotation: int
) -> tuple[ElementType, tuple[NDArray[np.uint8], ...]]:
    """Read keys or values of so many cells and layers; all layers have to be of one type and one length."""
    count, layers = shape
    first, rows = None, []
    for layer in range(layers):
        found = reader.numbers("<iQ", f"type and length of the {part} of layer {layer}")
        if first is None:
            first, kind = found, _element_type(found[0], part)
        if found != first:
            raise refused(
                f"has {part} of type {found[0]} in rows of {found[1]} bytes in layer {layer}, of type {first[0]} in "
                f"rows of {first[1]} in layer 0",
                "Use a model whose layers all have the same heads; if it is one, save the sequence again.",
            )
        problem = row_problem(found[1], kind, part, rotation)
        if problem is not None:
            raise refused(problem)
        rows.append(reader.take(count * found[1], f"the {part} of layer {layer}").reshape(count, found[1]))
    return kind, tuple(rows)


def _element_type(number: int, part: str) -> ElementType:
    try:
        return ElementType.numbered(number)
    except UsageError as error:
        raise refused(
            f"has {part} of a type it cannot be read in: {error.problem.removesuffix('.')}", error.hint
        ) from None
