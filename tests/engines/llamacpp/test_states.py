"""A state that is not this context's is refused with the reason, and leaves nothing behind in the sequence."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unspoken.cache import KVCache
from unspoken.engines.llamacpp.blob import FileState, build, build_file
from unspoken.engines.llamacpp.engine import LlamaCppEngine
from unspoken.engines.llamacpp.parse import parse
from unspoken.engines.protocol import Engine, Prompt
from unspoken.errors import CacheFileError, ContextOverflow, IncompatibleCache

from .tiny import WIDE

Engines = Callable[..., Any]
PromptOf = Callable[[Engine, str], Prompt]
State = NDArray[np.uint8]
SOURCE = "The old mill is run by Anna. It was calm."
OTHER = "Bob left."


@pytest.fixture
def engine(tiny_llama: Engines) -> Iterator[LlamaCppEngine]:
    """An engine with an empty context of float16 cells."""
    made: LlamaCppEngine = tiny_llama("llama", "f16", **WIDE)
    made._context.clear()
    yield made
    made._context.clear()


@pytest.fixture
def state(engine: LlamaCppEngine, content: PromptOf) -> State:
    """A sound state of it; the context is empty again."""
    engine.prefill(content(engine, SOURCE))
    saved = engine._context.save(0)
    engine._context.clear()
    return saved


def columns(engine: LlamaCppEngine, sequence: int) -> int:
    """How many columns a sequence has: positions begin at 0 here."""
    context = engine._context
    return int(context._calls.llama_memory_seq_pos_max(context._memory, sequence)) + 1


def refused(engine: LlamaCppEngine, state: State) -> str:
    """See that a state is refused and that neither its sequence nor another one's changed; return the reason."""
    context = engine._context
    context.clear()
    ids = np.array(engine.encode(OTHER), np.int32)
    places = np.arange(len(ids), dtype=np.int32)
    context.decode(ids, places, np.ones_like(ids), np.zeros(len(ids), bool))
    before = context.save(1).tobytes()
    reason = context.restore(np.ascontiguousarray(state), 0)
    assert reason
    assert columns(engine, 0) == 0
    assert context.save(1).tobytes() == before
    return reason


def test_a_sound_state_is_taken_and_saved_again_byte_for_byte(engine: LlamaCppEngine, state: State) -> None:
    for sequence in (0, 7):
        assert engine._context.restore(state, sequence) is None
        assert columns(engine, sequence) == len(SOURCE)
        # The number of the sequence stands in the bytes; nothing else differs.
        assert build(parse(engine._context.save(sequence))).tobytes() == state.tobytes()


def test_a_state_built_of_columns_is_the_state_that_was_saved(tiny_llama: Engines, content: PromptOf) -> None:
    for kind in ("llama", "qwen3"):
        for kv_type in ("f32", "f16", "bf16", "q8_0", "q4_0"):
            engine = tiny_llama(kind, kv_type, **WIDE)
            cache = engine.prefill(content(engine, SOURCE))
            assert engine._translation.state(cache).tobytes() == engine._context.save(0).tobytes()


def test_every_truncation_is_refused_and_leaves_nothing(engine: LlamaCppEngine, state: State) -> None:
    points = [0, 1, 4, 8, 12, 16, 17, 28, 16 + 12 * len(SOURCE), len(state) // 2, len(state) - 1]
    for kept in points:
        refused(engine, state[:kept])
        with pytest.raises(CacheFileError, match=r"The llama\.cpp state (is cut off|has)"):
            parse(state[:kept])


def test_bytes_after_the_end_are_refused_and_leave_nothing(engine: LlamaCppEngine, state: State) -> None:
    for more in (1, 24):
        longer = np.concatenate([state, np.zeros(more, np.uint8)])
        assert refused(engine, longer) == f"{len(state)} of {len(longer)} bytes were read"
        with pytest.raises(CacheFileError, match=f"has {more} bytes after its last layer"):
            parse(longer)


def _foreign(engine: LlamaCppEngine, state: State, tiny_llama: Engines, content: PromptOf) -> dict[str, State]:
    """States of other contexts and models, all sound in themselves."""

    def of(other: LlamaCppEngine) -> State:
        other.prefill(content(other, SOURCE))
        return other._context.save(0)

    blob = parse(state)
    return {
        "wider cells": of(tiny_llama("llama", "f32", **WIDE)),
        "cells as wide": of(tiny_llama("llama", "bf16", **WIDE)),
        "quantised cells": of(tiny_llama("llama", "q8_0", **WIDE)),
        "smaller heads": of(tiny_llama("llama", "f16")),
        "a layer more": build(replace(blob, keys=blob.keys + blob.keys[:1], values=blob.values + blob.values[:1])),
        "a layer less": build(replace(blob, keys=blob.keys[:1], values=blob.values[:1])),
        "the other layout": build(replace(blob, rotations=None if blob.rotations is not None else (0, 0))),
        "values of another type": build(
            replace(blob, value_type=parse(of(tiny_llama("llama", "bf16", **WIDE))).key_type)
        ),
    }


@pytest.mark.parametrize(
    "name",
    ["wider cells", "cells as wide", "quantised cells", "smaller heads", "a layer more", "a layer less",
     "the other layout", "values of another type"],
)  # fmt: skip
def test_the_state_of_another_context_is_refused_here_and_by_llama_cpp(
    name: str, engine: LlamaCppEngine, state: State, tiny_llama: Engines, content: PromptOf
) -> None:
    foreign = _foreign(engine, state, tiny_llama, content)[name]
    with pytest.raises(IncompatibleCache, match="does not fit 'tiny'"):
        engine._translation.columns(parse(foreign))
    refused(engine, foreign)


def test_a_forged_state_is_refused_and_leaves_nothing(engine: LlamaCppEngine, state: State) -> None:
    cells = len(SOURCE)
    layers = 16 + 12 * cells + 4
    new_layout = parse(state).rotations is not None
    first = layers + 4 + 8 * new_layout
    for at, code, number in (
        (0, "<I", 0x46554747), (8, "<I", 0), (8, "<I", 2), (12, "<I", 0), (12, "<I", cells - 1), (12, "<I", cells + 1),
        (12, "<I", 2**32 - 1), (16 + 4, "<I", 0), (16 + 4, "<I", 2), (layers - 4, "<I", 1), (layers, "<I", 0),
        (layers, "<I", 2**32 - 1), (first, "<i", 30), (first, "<i", -1), (first + 4, "<Q", 0),
        (first + 4, "<Q", 2**64 - 1),
    ):  # fmt: skip
        forged = state.copy()
        struct.pack_into(code, forged, at, number)
        with pytest.raises(CacheFileError):
            parse(forged)
        refused(engine, forged)


def test_a_file_of_a_saved_sequence_is_no_state(engine: LlamaCppEngine, state: State) -> None:
    file = build_file(FileState(np.arange(3, dtype=np.int32), parse(state)))
    refused(engine, file)
    with pytest.raises(CacheFileError, match="is a file of a saved sequence"):
        parse(file)


def test_a_state_is_refused_where_there_are_not_enough_cells(
    tiny_llama: Engines, state: State, engine: LlamaCppEngine, content: PromptOf
) -> None:
    # llama.cpp makes contexts in steps of 256 cells; a state of 300 has no room in one.
    small = tiny_llama("llama", "f16", context=130, **WIDE)
    cache = engine.prefill(content(engine, "x" * 300))
    assert small._context.restore(engine._translation.state(cache), 0)
    assert columns(small, 0) == 0
    with pytest.raises(ContextOverflow, match="needs 301 columns; the context of 'tiny' has 130"):
        small.logits(content(small, "y"), cache)


def test_a_cache_that_llama_cpp_refuses_is_refused_with_its_words(
    engine: LlamaCppEngine, content: PromptOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, question = engine.prefill(content(engine, SOURCE)), content(engine, OTHER)
    before = engine.logits(question)
    whole = engine._translation.state(cache)
    monkeypatch.setattr(type(engine._translation), "state", lambda *_: whole[:-1])
    with pytest.raises(IncompatibleCache, match=r"llama\.cpp did not take the cache: .") as error:
        engine.logits(question, cache)
    assert "Capture it again" in error.value.hint
    assert columns(engine, 0) == 0
    assert torch.equal(engine.logits(question), before)


def test_a_sequence_that_is_empty_is_not_taken_for_a_cache(engine: LlamaCppEngine) -> None:
    with pytest.raises(CacheFileError, match="has no cells: the sequence was empty"):
        engine.take(3)


def test_a_full_context_refuses_more_tokens_and_forgets_nothing(engine: LlamaCppEngine, state: State) -> None:
    context = engine._context
    assert context.restore(state, 0) is None
    zeros = np.zeros(100, np.int32)
    for sequence in range(1, 5):
        context.decode(zeros, np.arange(100, dtype=np.int32), zeros + sequence, np.zeros(100, bool))
    with pytest.raises(ContextOverflow, match="not enough free cells for 100 more tokens in a context of 512"):
        context.decode(zeros, np.arange(100, dtype=np.int32), zeros + 5, np.zeros(100, bool))
    assert build(parse(context.save(0))).tobytes() == state.tobytes()
    context.drop(1)
    assert columns(engine, 1) == 0
    context.decode(zeros[:50], np.arange(50, dtype=np.int32), zeros[:50] + 9, np.zeros(50, bool))


def test_a_fork_sees_what_it_was_forked_from_and_outlives_it(engine: LlamaCppEngine, state: State) -> None:
    context = engine._context
    assert context.restore(state, 0) is None
    context.fork(0, 4)
    context.drop(0)
    assert columns(engine, 0) == 0
    assert build(parse(context.save(4))).tobytes() == state.tobytes()


def test_columns_of_two_sequences_do_not_mix(engine: LlamaCppEngine, state: State) -> None:
    cache = KVCache.build(engine._translation.columns(parse(state)), engine.spec)
    engine._context.clear()
    engine.put(cache, 0)
    engine.put(cache.slice(0, 5), 1)
    assert [len(engine.take(sequence)[0].positions) for sequence in (0, 1)] == [len(SOURCE), 5]
    engine.put(cache.slice(5, 9), 0)  # In place of what was there.
    assert engine.take(0)[0].positions.tolist() == [5, 6, 7, 8]
    assert columns(engine, 1) == 5
