"""`unspoken bench handoff`: what handing a cache over costs, and what it saves the receiver."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from unspoken.bench.floor import floor_ratio
from unspoken.cache import KVCache
from unspoken.cachefile import read_cache, write_cache
from unspoken.channels.kv import content_columns, received
from unspoken.channels.text import read_by
from unspoken.engines.protocol import Engine, Limits, Piece, Prompt, Stateful, Turn
from unspoken.errors import ContextOverflow
from unspoken.session import Agent
from unspoken.transforms.cast import Cast

TEXT = (
    "The keeper wrote down what came and went at the pier. A boat with timber arrived before noon and left with "
    "barrels of salt. Two visitors asked for the road to the mill and were shown the short way along the river. "
)
QUESTION = "What arrived?"
Say = Callable[[str], None]


def measure(engine: Engine, lengths: list[int], repeats: int, wire: str, say: Say) -> dict[str, Any]:
    """Measure hand-overs of documents of some lengths in tokens; return `{"engine", "wire", "rows"}`.

    Each row holds medians over rounds in which all ways are measured one after the other, and ratios taken
    within a round. `seconds_first_token_cache` includes loading the file; `seconds_first_token_text` is the same
    receiver reading the text itself. `seconds_resume` is the first token of somebody who has the whole cache at
    hand and reads only the last token again, `resume_ratio` what reading the document takes in comparison. For
    engines with memory of their own, `seconds_put` and `seconds_take` are what it takes to move the columns there
    and back, and `seconds_copy` what it takes to copy as many bytes once.

    Raises:
        ContextOverflow: If a length does not fit the model.
    """
    longest = max(lengths)
    if longest + 128 > engine.spec.context:
        raise ContextOverflow(
            f"A document of {longest} tokens with a question does not fit the context of {engine.spec.context}.",
            "Give shorter --tokens.",
        )
    rows = []
    for length in lengths:
        say(f"{length} tokens ...")
        rounds = [_round(engine, document(engine, length), wire) for _ in range(repeats)]
        row: dict[str, Any] = {key: median(each[key] for each in rounds) for key in rounds[0]}
        row["first_token_ratio"] = median(
            each["seconds_first_token_text"] / each["seconds_first_token_cache"] for each in rounds
        )
        floor = floor_ratio(engine.spec, length, wire, max(repeats, 7))
        row["resume_ratio"] = median(each["seconds_capture"] / each["seconds_resume"] for each in rounds)
        row |= {"tokens": length, "bytes": int(row["bytes"]), "floor_ratio": floor["ratio"], "floor": floor}
        rows.append(row)
    return {"engine": engine.name, "wire": wire, "model": engine.spec.name, "repeats": repeats, "rows": rows}


def table(found: dict[str, Any]) -> Table:
    """Return the figures as a table for a terminal."""
    shown = Table(title=f"Hand-over of {found['model']} caches as {found['wire']}, median of {found['repeats']}")
    for name in (
        "tokens", "MB", "read s", "export ms", "load ms", "first token: cache s", "text s", "ratio", "vs safetensors",
        "resume ratio", "take + put ms", "copy ms",
    ):  # fmt: skip
        shown.add_column(name, justify="right")
    for row in found["rows"]:
        shown.add_row(
            str(row["tokens"]),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['seconds_capture']:.2f}",
            f"{1e3 * row['seconds_export']:.0f}",
            f"{1e3 * row['seconds_load']:.0f}",
            f"{row['seconds_first_token_cache']:.3f}",
            f"{row['seconds_first_token_text']:.2f}",
            f"{row['first_token_ratio']:.1f}x",
            f"{row['floor_ratio']:.2f}x",
            f"{row['resume_ratio']:.0f}x",
            f"{1e3 * (row['seconds_take'] + row['seconds_put']):.0f}" if "seconds_put" in row else "-",
            f"{1e3 * row['seconds_copy']:.0f}" if "seconds_copy" in row else "-",
        )
    return shown


def document(engine: Engine, length: int) -> str:
    """Return a text of a number of tokens, give or take one where the last word is cut."""
    repeats = length // len(engine.encode(TEXT)) + 2
    return engine.decode(engine.encode(TEXT * repeats)[:length])


def _round(engine: Engine, document: str, wire: str) -> dict[str, float]:
    # New agents each round: nothing of the round before is kept but the weights.
    sender, receiver = Agent("lyra", engine), Agent("vera", engine)
    reading = sender.read(document)
    receiver.prefix  # noqa: B018 - made before the clock starts: an agent has its prompt read when a message comes
    with tempfile.TemporaryDirectory(prefix="unspoken-bench-") as folder:
        path = Path(folder) / "handoff.kv.safetensors"
        began = time.perf_counter()
        write_cache(Cast(wire)(content_columns(reading.cache)), path)
        exported = time.perf_counter()
        cache = read_cache(path)
        loaded = time.perf_counter()
        delivery = received(cache, receiver)
        injected = time.perf_counter()
        receiver.answer([QUESTION], [delivery], Limits(1))
        first = time.perf_counter()
        size = path.stat().st_size
    from_text = time.perf_counter()
    read = read_by(receiver, document, "full-text", {}, lossy=False)
    receiver.answer([QUESTION], [read], Limits(1))
    text = time.perf_counter() - from_text
    return {
        "bytes": float(size),
        "seconds_capture": reading.seconds,
        "seconds_export": exported - began,
        "seconds_load": loaded - exported,
        "seconds_inject": injected - loaded,
        "seconds_first_token_cache": first - exported,
        "seconds_first_token_text": text,
        **_resumed(engine, reading.cache),
        **_moved_in_and_out(engine, reading.cache),
    }


def _resumed(engine: Engine, cache: KVCache) -> dict[str, float]:
    """Time the next token of a whole cache; its last column is made again, because columns hold no logits."""
    last = Prompt((Piece("content", (cache.manifest.token_ids or ())[-1:]),))
    before = cache.slice(0, cache.columns - 1)
    began = time.perf_counter()
    engine.generate([Turn(last, before)], Limits(1))
    return {"seconds_resume": time.perf_counter() - began}


def _moved_in_and_out(engine: Engine, cache: KVCache) -> dict[str, float]:
    if not isinstance(engine, Stateful):
        return {}
    began = time.perf_counter()
    engine.put(cache)
    put = time.perf_counter()
    taken = engine.take()
    out = time.perf_counter()
    copied = [(layer.keys.clone(), layer.values.clone()) for layer in taken]
    end = time.perf_counter()
    del copied
    return {"seconds_put": put - began, "seconds_take": out - put, "seconds_copy": end - out}
