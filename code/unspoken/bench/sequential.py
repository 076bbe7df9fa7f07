"""`unspoken bench sequential`: two agents on one device, one after the other, and what memory that takes.

The sender is loaded, reads, its cache is saved, it is unloaded; the receiver is loaded, takes the cache in and
answers. The same session as any other, on parked engines (`unspoken.engines.parked`).
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from unspoken.bench.handoff import QUESTION, document
from unspoken.cachefile import read_cache, write_cache
from unspoken.channels.protocol import peak_rss_bytes
from unspoken.engines.protocol import Engine, Limits, Turn
from unspoken.session import Agent
from unspoken.transforms.cast import Cast

Say = Callable[[str], None]
GIB = 1 << 30


class Stages:
    """Seconds of each stage, and the memory that is resident after it.

    Args:
        say: Is told each stage as it begins.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self.seconds: dict[str, float] = {}
        self.resident_bytes: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done in the block."""
        self._say(f"{name.replace('_', ' ')} ...")
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began
        self.resident_bytes[name] = resident_bytes()


def measure(load: Callable[[], Engine], tokens: int, say: Say) -> dict[str, Any]:
    """Hand a document's cache from a sender to a receiver that are loaded one after the other.

    Args:
        load: Loads the model, as it would be for either agent.
        tokens: Length of the document.
        say: Is told what happens.

    Returns:
        Seconds by stage, resident bytes after each, the highest of the process, the cache's size, and whether the
        receiver's first logits are bit for bit those the sender would have gone on with.

    Raises:
        ContextOverflow: If the document does not fit the model or its context.
    """
    took = Stages(say)
    stage = took.stage
    with tempfile.TemporaryDirectory(prefix="unspoken-bench-") as folder:
        path = Path(folder) / "sequential.kv.safetensors"
        with stage("load_sender"):
            engine = load()
        sender = Agent("lyra", engine)
        text = document(engine, tokens)
        with stage("capture"):
            reading = sender.read(text)
        expected = _first(engine, Turn(sender.asked(QUESTION), reading.cache))
        with stage("save"):
            write_cache(reading.cache, path)
        columns, spec, name, version = reading.cache.columns, engine.spec, engine.name, engine.version
        with stage("free_sender"):
            engine.close()
            del engine, sender, reading
        with stage("load_receiver"):
            engine = load()
        with stage("inject"):
            cache = Cast(engine.dtype)(read_cache(path))
        receiver = Agent("lyra", engine)
        with stage("first_token"):
            found = _first(engine, Turn(receiver.asked(QUESTION), cache))
        size = path.stat().st_size
        engine.close()
    return {
        "engine": name,
        "version": version,
        "model": spec.name,
        "tokens": tokens,
        "columns": columns,
        "bytes": size,
        "seconds": took.seconds,
        "resident_bytes": took.resident_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
        "same_logits": bool(torch.equal(found, expected)),
    }


def planned_bytes(model: str, context: int, kv_type: str, columns: int) -> int:
    """Return what `unspoken plan` expects to be resident on the CPU, with one cache of some columns beside it."""
    from unspoken.plan.fit import cache_bytes_per_token, resident_bytes_cpu
    from unspoken.plan.source import find

    sizes = find(model)
    cache = columns * cache_bytes_per_token(sizes.shape, kv_type)
    return resident_bytes_cpu(sizes.shape, sizes.choices[0], context, kv_type) + cache


def table(found: dict[str, Any]) -> Table:
    """Return the figures as a table for a terminal."""
    shown = Table(title=f"Two agents one after the other on {found['model']}, {found['tokens']} tokens")
    for name in ("stage", "seconds", "resident after it, GiB"):
        shown.add_column(name, justify="left" if name == "stage" else "right")
    for name, seconds in found["seconds"].items():
        shown.add_row(name.replace("_", " "), f"{seconds:.2f}", f"{found['resident_bytes'][name] / GIB:.2f}")
    shown.add_row("highest", "", f"{found['peak_rss_bytes'] / GIB:.2f}")
    if "planned_bytes" in found:
        shown.add_row("planned", "", f"{found['planned_bytes'] / GIB:.2f}")
    return shown


def resident_bytes() -> int:
    """Return the process's resident memory now, pages of mapped files included; its highest where only that is told."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_rss_bytes()
    return pages * resource.getpagesize()


def _first(engine: Engine, turn: Turn) -> torch.Tensor:
    (made,) = engine.generate([turn], Limits(1))
    return made.first_logprobs
