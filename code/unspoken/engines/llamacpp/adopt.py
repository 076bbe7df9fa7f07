"""Take in what llama.cpp or llama-server saved of a sequence, once it is shown to be this model's.

A saved state does not say which model made it, and llama.cpp takes one of any model of the same shape. It does hold
the tokens, so the first of them are read again, and their columns have to be the ones in the file.
"""

from __future__ import annotations

import numpy as np
import torch

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.llamacpp.blob import FileState
from unspoken.engines.llamacpp.engine import LlamaCppEngine
from unspoken.engines.llamacpp.parse import parse_file
from unspoken.engines.llamacpp.reader import Data, refused
from unspoken.engines.prefilled import prefilled
from unspoken.engines.protocol import Piece, Prompt
from unspoken.errors import IncompatibleCache

# Tokens read again, and how alike their columns must be: the smallest cosine over layers, of keys and of values.
# The same state made by another build, or on another device, differs by rounding; 4-bit cells by 0.02.
PROBED = 32
ALIKE = 0.95
# llama-server's record in the place of tokens (llama.cpp, pull request 26640): this mark, its version, the number of
# tokens, the tokens, and then what it knows of images.
_RECORD, _RECORD_VERSION = -1, 1


def adopt(engine: LlamaCppEngine, data: Data) -> KVCache:
    """Return the cache in a file of one saved sequence, to be continued from.

    Args:
        engine: The model that is said to have made it, opened with the same type of cache.
        data: The bytes of the file: `llama_state_seq_save_file`, or a slot that llama-server saved.

    Raises:
        CacheFileError: If it is no sound state, or does not tell the tokens of all its columns.
        IncompatibleCache: If shape, type or rotation differ, or another model made it.
    """
    state = parse_file(np.frombuffer(data, np.uint8).copy())  # Tensors are views of it and may be written to.
    tokens = _tokens(state)
    cells, first = len(state.blob.positions), int(state.blob.positions[0])
    if len(tokens) < cells:
        raise refused(
            f"has {len(tokens)} tokens for {cells} cells, so that it cannot be checked against the model",
            "Save it together with its tokens; llama-server does so by itself.",
        )
    if state.blob.positions.tolist() != list(range(first, first + cells)):
        raise refused("has positions with gaps or out of order", "Save a sequence that was neither shifted nor cut.")
    layers = engine.columns(state.blob)
    probe = Prompt((Piece("content", tokens[: min(PROBED, cells)]),))
    _require_alike(layers, engine.prefill(probe, start=first).layers, engine.spec.name)
    return prefilled(layers, engine.spec, Prompt((Piece("content", tokens[:cells]),)), None, engine.name)


def _tokens(state: FileState) -> tuple[int, ...]:
    found = tuple(int(token) for token in state.token_ids)
    if found[:2] == (_RECORD, _RECORD_VERSION) and len(found) > 2:
        found = found[3 : 3 + max(found[2], 0)]
    if any(token < 0 for token in found):
        raise refused("has a negative token: an image, or a record of a newer llama-server", "Save a text alone.")
    return found


def _require_alike(found: list[KVLayer], own: tuple[KVLayer, ...], name: str) -> None:
    """Refuse columns that are not what the model makes of their tokens.

    Raises:
        IncompatibleCache: If in some layer keys or values are less alike than rounding explains.
    """
    columns = own[0].columns
    cosines = [
        float(torch.cosine_similarity(theirs[:, :columns].float().flatten(), ours.float().flatten(), dim=0))
        for left, right in zip(found, own, strict=True)
        for theirs, ours in ((left.keys, right.keys), (left.values, right.values))
    ]
    worst = min(cosines)
    if not worst >= ALIKE:
        raise IncompatibleCache(
            f"The state was not made by '{name}': read again, the columns of its first {columns} tokens have a cosine "
            f"of {worst:.2f} in some layer, at least {ALIKE} is expected.",
            "Give the model that made it, with the same --kv-type.",
        )
