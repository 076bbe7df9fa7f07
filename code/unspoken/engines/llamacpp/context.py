"""A model and its context in llama.cpp: decode tokens, fork, save and restore sequences.

Always with flash attention (saved values are then rows like the keys) and a unified cache (every sequence sees the
same cells, so forking one copies nothing).
"""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspoken.engines.llamacpp.library import Library
from unspoken.engines.llamacpp.room import Room, fresh
from unspoken.engines.llamacpp.structures import Batch
from unspoken.errors import ContextOverflow, ModelNotFound, UsageError
from unspoken.transforms.blocks import ElementType

# Tokens computed at a time. More of them need a larger buffer and make nothing faster on a CPU.
CHUNK = 512
# Sequences alive at the same time: pasts, turns on them and options. llama.cpp allows 256.
SEQUENCES = 128
_NO_SLOT = 1


@dataclass(frozen=True)
class Settings:
    """How a context is made.

    Attributes:
        kv_type: Element type of keys and values: f32, f16, bf16, q8_0 or q4_0.
        context: Columns there is room for, over all sequences.
        threads: Threads to compute with.
    """

    kv_type: ElementType
    context: int
    threads: int


class Model:
    """A GGUF file opened by llama.cpp.

    Attributes:
        library: What opened it.
        vocabulary: Number of its tokens.
        rope_type: llama.cpp's number for which coordinates its RoPE pairs.
        window: Size of its sliding window, 0 without one.
        recurrent: Whether some of its layers keep a state instead of columns.

    Raises:
        ModelNotFound: If it cannot be opened.
    """

    def __init__(self, library: Library, path: Path, gpu_layers: int) -> None:
        self.library = library
        params = library.model_params()
        params.n_gpu_layers = gpu_layers
        # Repacked weights are a second copy, not backed by the file: 8.2 GB instead of 4.9 for an 8B model of Q4_0.
        params.use_extra_bufts = False
        library.last_words()
        self.pointer = library.calls.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise ModelNotFound(
                f"llama.cpp cannot open {path.name}: {library.last_words() or 'no reason given'}",
                f"Give a sound GGUF file of an architecture that {library.source} knows.",
            )
        calls = library.calls
        self.vocab = calls.llama_model_get_vocab(self.pointer)
        self.vocabulary = int(calls.llama_vocab_n_tokens(self.vocab))
        self.rope_type = int(calls.llama_model_rope_type(self.pointer))
        self.window = int(calls.llama_model_n_swa(self.pointer))
        self.recurrent = bool(calls.llama_model_is_recurrent(self.pointer) or calls.llama_model_is_hybrid(self.pointer))

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text; special tokens in it are recognised, none is added."""
        raw = text.encode()
        room = len(raw) + 8  # A token is at least one byte, but for what a tokenizer may put in front.
        tokens = np.empty(room, np.int32)
        count = self.library.calls.llama_tokenize(self.vocab, raw, len(raw), tokens.ctypes.data, room, False, True)
        if count < 0:
            raise UsageError("The text cannot be tokenised.", "Give a shorter one.")
        return tuple(tokens[:count].tolist())

    def detokenize(self, token_ids: Sequence[int]) -> bytes:
        """Return the bytes of tokens, special tokens left out; they may end inside a letter.

        Raises:
            UsageError: If there is no such token: llama.cpp would end the process.
        """
        strange = next((each for each in token_ids if not 0 <= each < self.vocabulary), None)
        if strange is not None:
            raise UsageError(
                f"There is no token {strange} in a vocabulary of {self.vocabulary}.", "Give tokens of this model."
            )
        tokens = np.asarray(token_ids, np.int32)
        room = 16 * len(tokens) + 64
        for _ in range(2):
            text = np.empty(room, np.uint8)
            count = self.library.calls.llama_detokenize(
                self.vocab, tokens.ctypes.data, len(tokens), text.ctypes.data, room, True, False
            )
            if count >= 0:
                return text[:count].tobytes()
            room = -count
        return b""

    def token(self, at: int) -> str:
        """Return a token as it is written in the vocabulary."""
        raw: bytes = self.library.calls.llama_vocab_get_text(self.vocab, at)
        return raw.decode(errors="replace")

    def ends(self) -> frozenset[int]:
        """Return the tokens that end an answer."""
        ends = self.library.calls.llama_vocab_is_eog
        return frozenset(at for at in range(self.vocabulary) if ends(self.vocab, at))

    def close(self) -> None:
        """Give the memory back; the model cannot be used any more."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            self.library.calls.llama_model_free(pointer)


class Context:
    """Cells for columns and what computes in them.

    Raises:
        ContextOverflow: If there is no memory for that many cells.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        self._model, self._calls = model, model.library.calls
        params = model.library.context_params()
        # llama.cpp ends the process where a context or a batch is smaller than the number of its sequences.
        params.n_ctx, params.n_seq_max = max(SEQUENCES, settings.context), SEQUENCES
        self._chunk = max(SEQUENCES, min(CHUNK, settings.context))
        params.n_batch = params.n_ubatch = self._chunk
        params.n_threads = params.n_threads_batch = settings.threads
        params.type_k = params.type_v = settings.kv_type.number
        params.flash_attn_type, params.kv_unified = 1, True
        model.library.last_words()
        self._pointer = self._calls.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise ContextOverflow(
                f"llama.cpp cannot make a context of {settings.context} columns of {settings.kv_type.name}: "
                f"{model.library.last_words() or 'no reason given'}",
                "Choose a smaller --context or a smaller --kv-type; `unspoken plan` tells what fits.",
            )
        self._memory = self._calls.llama_get_memory(self._pointer)
        self.cells = settings.context

    def decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        wanted: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Read tokens, each in its own sequence, and return the logits where they are wanted.

        Args:
            tokens: `[new]`.
            positions: `[new]`; within a sequence each is one more than the last.
            sequences: `[new]`.
            wanted: `[new]`.

        Returns:
            float32 `[wanted tokens, vocabulary]`, a copy.

        Raises:
            ContextOverflow: If there are not enough free cells.
        """
        kept = []
        for at in range(0, len(tokens), self._chunk):
            part = slice(at, at + self._chunk)
            kept.append(self._decode(tokens[part], positions[part], sequences[part], wanted[part]))
        return np.concatenate(kept) if len(kept) > 1 else kept[0]

    def _decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        wanted: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        count, outputs = len(tokens), int(wanted.sum())
        tokens, positions, sequences = (np.ascontiguousarray(each, np.int32) for each in (tokens, positions, sequences))
        marks, ones = wanted.astype(np.int8), np.ones(count, np.int32)
        addresses = sequences.ctypes.data + 4 * np.arange(count, dtype=np.uint64)
        batch = Batch(
            count,
            tokens.ctypes.data,
            None,
            positions.ctypes.data,
            ones.ctypes.data,
            addresses.ctypes.data,
            marks.ctypes.data,
        )
        told = self._calls.llama_decode(self._pointer, batch)
        if told == _NO_SLOT:
            raise ContextOverflow(
                f"There are not enough free cells for {count} more tokens in a context of {self.cells}.",
                "Choose a larger --context, or shorten the document or the question.",
            )
        if told != 0:
            raise UsageError(
                f"llama.cpp refused {count} tokens (code {told}): {self._model.library.last_words()}",
                "Start where the sequence ends, and give tokens of this model.",
            )
        vocabulary = self._model.vocabulary
        if not outputs:
            return np.empty((0, vocabulary), np.float32)
        pointer = c.cast(self._calls.llama_get_logits(self._pointer), c.POINTER(c.c_float))
        return np.ctypeslib.as_array(pointer, (outputs, vocabulary)).copy()

    def fork(self, sequence: int, into: int) -> None:
        """Let another sequence see all cells of one; nothing is copied."""
        self._calls.llama_memory_seq_cp(self._memory, sequence, into, -1, -1)

    def drop(self, sequence: int) -> None:
        """Forget a sequence; cells that no other one sees are free again."""
        self._calls.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def clear(self) -> None:
        """Forget everything."""
        self._calls.llama_memory_clear(self._memory, False)

    def save(self, sequence: int, room: Room = fresh) -> NDArray[np.uint8]:
        """Return a sequence's state as bytes, see `unspoken.engines.llamacpp.blob`."""
        size = self._calls.llama_state_seq_get_size_ext(self._pointer, sequence, 0)
        state = room(size)
        written = self._calls.llama_state_seq_get_data_ext(self._pointer, state.ctypes.data, size, sequence, 0)
        return state[:written]

    def restore(self, state: NDArray[np.uint8], sequence: int) -> str | None:
        """Put a saved state into a sequence; return why it was refused, or None."""
        library = self._model.library
        library.last_words()
        read = self._calls.llama_state_seq_set_data_ext(self._pointer, state.ctypes.data, state.size, sequence, 0)
        if read == state.size > 0:
            return None
        self.drop(sequence)
        return library.last_words() or f"{read} of {state.size} bytes were read"

    def close(self) -> None:
        """Give the memory back; the context cannot be used any more."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            self._calls.llama_free(pointer)


class Closed:
    """Stands where a model or a context stood that was closed: using those would end the process without a word."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError("The engine is closed and its model unloaded.", "Load the model again.")

    def close(self) -> None:
        """There is nothing left to give back."""
