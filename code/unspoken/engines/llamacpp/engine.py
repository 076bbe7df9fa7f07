"""The llama.cpp engine: quantised models on small machines, with columns that go in and out."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.engines import chat
from unspoken.engines.answers import Answers, heard_from
from unspoken.engines.batch import option_score
from unspoken.engines.capabilities import covered
from unspoken.engines.checks import (
    first_position,
    option_tokens,
    require_alike,
    require_injectable,
    require_plain,
    require_turns,
)
from unspoken.engines.llamacpp.blob import Blob
from unspoken.engines.llamacpp.context import SEQUENCES, Closed, Context, Model
from unspoken.engines.llamacpp.opened import Opened
from unspoken.engines.llamacpp.parse import parse
from unspoken.engines.llamacpp.room import Kept
from unspoken.engines.prefilled import prefilled
from unspoken.engines.protocol import Frame, Generation, Hearer, Limits, Prompt, Turn
from unspoken.errors import ContextOverflow, IncompatibleCache, UsageError
from unspoken.spec import ModelSpec

# Turns answered together. Each takes a sequence of its own beside its past and, for a moment, its options.
PACK = 24
OPTIONS_AT_ONCE = SEQUENCES - 2 * PACK
# How vocabularies of bytes write them: what is printable as itself, the others as letters from U+0100 on (GPT-2,
# `bytes_to_unicode` in encoder.py). SentencePiece's write spaces as U+2581, and bytes of other characters as <0xE6>.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(256) if byte not in _PRINTABLE)
_LETTERS = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + at): byte for at, byte in enumerate(_OTHERS)}
_SPACE, _PIECES_SPACE, _PIECES_BYTE = "Ġ", "▁", re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Row:
    """A turn with its sequences: what it stands on, its own, its tokens, its options and its first position."""

    past: int | None
    sequence: int
    token_ids: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    start: int

    @property
    def stop(self) -> int:
        """The position after its prompt."""
        return self.start + len(self.token_ids)


class LlamaCppEngine:
    """A GGUF file in llama.cpp, with a context.

    Args:
        opened: The model, its context and what is known of both; closed with the engine.
    """

    name = "llamacpp"

    def __init__(self, opened: Opened) -> None:
        self._model, self._context = opened.model, opened.context
        self._spec, self._translation = opened.spec, opened.translation
        self._template, self._between = opened.template, opened.between
        self._ends = opened.model.ends()
        self._frames: dict[str, Frame] = {}
        self._room = Kept()  # States pass through it: columns are copied out of it, cells are read from it.
        self.dtype = opened.translation.dtype
        self.precision = opened.precision
        self.version = opened.version

    @property
    def spec(self) -> ModelSpec:
        """The model, as far as a cache depends on it."""
        return self._spec

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text, with no special tokens added."""
        return self._model.tokenize(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return self._model.detokenize(token_ids).decode(errors="replace")

    def located(self, text: str) -> tuple[tuple[int, int], ...]:
        """Return for each token of `encode(text)` the characters [start, stop) of the text that it covers.

        Leading spaces are covered. Where a tokenizer puts a space of its own in front of a text that begins with
        spaces, ranges at the beginning may be one space off.

        Raises:
            UsageError: If the tokens do not spell the text: the tokenizer changed it.
        """
        raw, lengths, at = text.encode(), list[int](), 0
        for token in self.encode(text):
            lengths.append(self._length(token, raw, at))
            at += lengths[-1]
        return covered(text, lengths)

    def frame(self, system: str) -> Frame:
        """Return the model's chat template around a user's words, for a system prompt."""
        if system not in self._frames:
            self._frames[system] = chat.cut(self._template, self._between, system, self.encode)
        return self._frames[system]

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        """Read a prompt and return the cache of `past` and prompt together.

        Raises:
            IncompatibleCache: If layers of `past` hold different columns: cells cannot tell their positions apart.
        """
        if past is not None:
            require_alike(past, self.name)
        self._read(prompt, past, start, everywhere=False)
        return prefilled(self.take(), self._spec, prompt, past, self.name)

    def logits(
        self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None
    ) -> Float[Tensor, "seq vocab"]:
        """Return the float32 logits at every token of a prompt read on top of `past`."""
        return torch.from_numpy(self._read(prompt, past, start, everywhere=True))

    def generate(self, turns: Sequence[Turn], limits: Limits, hear: Hearer | None = None) -> tuple[Generation, ...]:
        """Answer several turns, as many at once as there is room for; each sees only its own past and prompt."""
        require_turns(turns, limits)
        require_plain(turns, self.name)
        options = [option_tokens(turn, limits, self._spec, self.encode) for turn in turns]
        made: list[Generation] = []
        while len(made) < len(turns):
            at = len(made)
            pack = self._that_fit(turns[at:], options[at:], limits)
            made += self._generate_pack(turns[at : at + pack], options[at : at + pack], limits, heard_from(hear, at))
        return tuple(made)

    def take(self, sequence: int = 0) -> list[KVLayer]:
        """Return the columns of one of the context's sequences, copied."""
        return self.columns(parse(self._context.save(sequence, self._room)))

    def columns(self, blob: Blob) -> list[KVLayer]:
        """Return the columns in a saved state, copied.

        Raises:
            IncompatibleCache: If it is of another shape, type or rotation than this model's and context's.
        """
        return self._translation.columns(blob)

    def close(self) -> None:
        """Give the memory of context and model back."""
        self._context.close()
        self._model.close()
        self._context, self._model = cast(Context, Closed()), cast(Model, Closed())

    def _length(self, token: int, raw: bytes, at: int) -> int:
        """Return how many bytes of a text a token stands for, which ones being known."""
        written = self._model.token(token)
        for piece in _spellings(written, self._of_bytes):
            for each in (piece, piece.removeprefix(b" ")):  # The second without a space that was put in front.
                if raw.startswith(each, at):
                    return len(each)
        raise UsageError(
            f"The token {token} of '{self._spec.name}', {written!r}, does not spell what stands at byte {at} of the "
            "text: the tokenizer changed the text.",
            "Use the transformers engine for this model.",
        )

    @cached_property
    def _of_bytes(self) -> bool:
        return any(_SPACE in self._model.token(token) for token in self.encode(" "))

    def _read(
        self, prompt: Prompt, past: KVCache | None, start: int | None, *, everywhere: bool
    ) -> NDArray[np.float32]:
        """Read a prompt into sequence 0 and return the logits of all its tokens, or of none."""
        first = first_position(prompt, past, start, self._spec)
        if past is not None and first != past.next_position:
            raise UsageError(
                f"llama.cpp goes on at position {past.next_position}, right after the past; asked for was {first}.",
                "Leave the start out, or use the transformers engine.",
            )
        self._require_cells((past.columns if past else 0) + len(prompt.token_ids))
        self._context.clear()
        if past is not None:
            self.put(past, 0)
        ids = np.array(prompt.token_ids, np.int32)
        positions = np.arange(first, first + len(ids), dtype=np.int32)
        return self._context.decode(ids, positions, np.zeros_like(ids), np.full(len(ids), everywhere))

    def put(self, cache: KVCache, sequence: int = 0) -> None:
        """Put a cache into one of the context's sequences, in place of what was there.

        Raises:
            IncompatibleCache: If it does not fit this model and this context; the sequence is then empty.
        """
        require_injectable(cache, self._spec)
        refused = self._context.restore(self._translation.state(cache, self._room), sequence)
        if refused is not None:
            raise IncompatibleCache(
                f"llama.cpp did not take the cache: {refused}", "Capture it again; if that does not help, report this."
            )

    def _generate_pack(
        self,
        turns: Sequence[Turn],
        options: Sequence[tuple[tuple[int, ...], ...]],
        limits: Limits,
        hear: Hearer | None,
    ) -> list[Generation]:
        began = time.perf_counter()
        self._context.clear()
        rows = self._rows(turns, options)
        first = self._read_prompts(rows).log_softmax(dim=-1)
        first_token = time.perf_counter()
        scores = self._scores(rows, first)
        answers = Answers(len(rows), limits, self._ends, self.decode, hear)
        self._go_on(rows, first, answers)
        seconds = first_token - began, time.perf_counter() - began
        return answers.generations([row.token_ids for row in rows], list(first), scores, seconds)

    def _rows(self, turns: Sequence[Turn], options: Sequence[tuple[tuple[int, ...], ...]]) -> list[Row]:
        """Put each distinct past into a sequence and let every turn on it fork that."""
        pasts: dict[int, int] = {}
        rows = []
        for at, (turn, scored) in enumerate(zip(turns, options, strict=True)):
            sequence, start = PACK + at, first_position(turn.prompt, turn.past, None, self._spec)
            if turn.past is not None and id(turn.past) not in pasts:
                pasts[id(turn.past)] = len(pasts)
                self.put(turn.past, pasts[id(turn.past)])
            past = pasts.get(id(turn.past))
            if past is not None:
                self._context.fork(past, sequence)
            rows.append(Row(past, sequence, turn.prompt.token_ids, scored, start))
        return rows

    def _read_prompts(self, rows: Sequence[Row]) -> Float[Tensor, "rows vocab"]:
        wanted = [np.arange(len(row.token_ids)) == len(row.token_ids) - 1 for row in rows]
        return self._decode([(row.token_ids, row.start, row.sequence) for row in rows], np.concatenate(wanted))

    def _scores(self, rows: Sequence[Row], first: Float[Tensor, "rows vocab"]) -> list[tuple[float, ...]]:
        """Score options: each is read behind its turn in a fork that is forgotten again; the last token never is."""
        nothing = torch.empty(0, first.shape[1])
        read: dict[tuple[int, int], Tensor] = {}
        longer = [(i, j) for i, row in enumerate(rows) for j, option in enumerate(row.options) if len(option) > 1]
        for at in range(0, len(longer), OPTIONS_AT_ONCE):
            forks = list(enumerate(longer[at : at + OPTIONS_AT_ONCE], start=2 * PACK))
            for sequence, (i, _) in forks:
                self._context.fork(rows[i].sequence, sequence)
            parts = [(rows[i].options[j][:-1], rows[i].stop, sequence) for sequence, (i, j) in forks]
            logprobs = self._decode(parts, np.ones(sum(len(ids) for ids, _, _ in parts), bool)).log_softmax(dim=-1)
            for (sequence, which), lines in zip(
                forks, torch.split(logprobs, [len(ids) for ids, _, _ in parts]), strict=True
            ):
                self._context.drop(sequence)
                read[which] = lines
        return [
            tuple(option_score(first[i], read.get((i, j), nothing), option) for j, option in enumerate(row.options))
            for i, row in enumerate(rows)
        ]

    def _go_on(self, rows: Sequence[Row], first: Float[Tensor, "rows vocab"], answers: Answers) -> None:
        """Make the answers token by token, all that are going in one step."""
        logits, step = dict(enumerate(first)), 0
        while True:
            taken = {i: answers.take(i, logits[i]) for i in logits}
            going = [(i, token) for i, token in taken.items() if token is not None]
            if not going:
                return
            parts = [((token,), rows[i].stop + step, rows[i].sequence) for i, token in going]
            made = self._decode(parts, np.ones(len(parts), bool))
            logits, step = {i: made[line] for line, (i, _) in enumerate(going)}, step + 1

    def _decode(
        self, parts: Sequence[tuple[Sequence[int], int, int]], wanted: NDArray[np.bool_]
    ) -> Float[Tensor, "wanted vocab"]:
        """Read tokens from a position on, in a sequence each; return the logits that are wanted."""
        ids = np.concatenate([np.asarray(tokens, np.int32) for tokens, _, _ in parts])
        positions = np.concatenate([np.arange(start, start + len(tokens)) for tokens, start, _ in parts])
        sequences = np.concatenate([np.full(len(tokens), sequence) for tokens, _, sequence in parts])
        return torch.from_numpy(
            self._context.decode(ids, positions.astype(np.int32), sequences.astype(np.int32), wanted)
        )

    def _that_fit(self, turns: Sequence[Turn], options: Sequence[tuple[tuple[int, ...], ...]], limits: Limits) -> int:
        """Return how many of the next turns there are cells for together: at least one, or it is refused."""
        needed, pasts = 0, set[int]()
        for at, (turn, scored) in enumerate(zip(turns[:PACK], options[:PACK], strict=True)):
            own = len(turn.prompt.token_ids) + limits.new_tokens + sum(len(option) - 1 for option in scored)
            if turn.past is not None and id(turn.past) not in pasts:
                own += turn.past.columns
            needed += own
            if at == 0:
                self._require_cells(needed)
            elif needed > self._context.cells:
                return at
            pasts.add(id(turn.past))
        return min(len(turns), PACK)

    def _require_cells(self, needed: int) -> None:
        if needed > self._context.cells:
            raise ContextOverflow(
                f"The prompt needs {needed} columns; the context of '{self._spec.name}' has {self._context.cells}.",
                "Choose a larger --context, or shorten the document or the question.",
            )


def _spellings(written: str, of_bytes: bool) -> Iterator[bytes]:
    """Yield what a token of a vocabulary of bytes, or of SentencePiece's, may stand for, the likeliest first."""
    byte = _PIECES_BYTE.fullmatch(written)
    if of_bytes and all(letter in _LETTERS for letter in written):
        yield bytes(_LETTERS[letter] for letter in written)
    if not of_bytes and byte is not None:
        yield bytes.fromhex(byte[1])
    # Tokens that were added to a vocabulary of bytes are written as they are.
    yield (written if of_bytes else written.replace(_PIECES_SPACE, " ")).encode()
