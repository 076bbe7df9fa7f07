"""`unspoken bench transports`: one cache between two processes, by every transport and by the barest means there are.

The barest are a plain file in shared memory, written and memory-mapped, and a socket on the loopback interface. They
move bytes and nothing else; transports also describe, hash and check what they move.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table

from unspoken.bench.floor import random_cache
from unspoken.cache import KVCache
from unspoken.errors import TransportFailed, UnspokenError
from unspoken.spec import ModelSpec, RopeSpec
from unspoken.transforms.cast import Cast
from unspoken.transports import Transport, open_transport
from unspoken.transports.folder import SHARED_MEMORY

# Of the shape of Llama 3.1 8B; nothing is computed with it.
LLAMA = ModelSpec(
    name="llama-3.1-8b",
    family="llama",
    layers=32,
    kv_heads=8,
    head_dim=128,
    vocabulary=128_256,
    context=131_072,
    rope=RopeSpec("default", "half", tuple(500_000.0 ** (-2 * at / 128) for at in range(64))),
    weights="0" * 32,
    architecture="0" * 32,
    tokenizer="0" * 32,
    chat_template="0" * 32,
)
KEY, PAGE = "bench", 4096
PLAIN, SOCKET = "plain", "socket"
Say = Callable[[str], None]


def measure(spec: ModelSpec, columns: int, addresses: Sequence[str], repeats: int, say: Say) -> dict[str, Any]:
    """Move a random float16 cache by each way in turn, round after round; return `{"bytes", "rows"}`.

    Each row has medians over the rounds, and the ratio of put and get together to those of the plain file in the same
    round. The process that gets is another one, and is there all the time; it touches every page of what it gets. A
    transport is opened once, by either, before the first round.

    Args:
        spec: The model whose cache it would be.
        columns: Tokens.
        addresses: Of the transports.
        repeats: Rounds.
        say: Told which round it is.

    Raises:
        TransportFailed: If a transport cannot be used, or there is no shared memory.
    """
    if not SHARED_MEMORY.is_dir():
        raise TransportFailed(f"There is no shared memory at {SHARED_MEMORY}.", "Measure on Linux.")
    moved = Cast("float16")(random_cache(spec, columns))
    with ExitStack() as held, _receiver() as other:
        opened = {each: held.enter_context(open_transport(each)) for each in addresses}
        ways: dict[str, Callable[[], tuple[float, float]]] = {
            PLAIN: lambda: _by_file(moved, other),
            SOCKET: lambda: _by_socket(moved, other),
            **{each: partial(_by_transport, each, transport, moved, other) for each, transport in opened.items()},
        }
        took: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(repeats + 1):
            say(f"round {number} of {repeats} ...")
            for way, move in ways.items():
                gc.collect()  # What one way leaves behind is not the next one's to clean up.
                found = move()
                if number:  # The first round only warms up.
                    took[way].append(found)
    rows = [_row(way, took[way], took[PLAIN]) for way in took]
    return {"bytes": moved.bytes_held(), "columns": columns, "repeats": repeats, "model": spec.name, "rows": rows}


def table(found: dict[str, Any]) -> Table:
    """Return the figures as a table for a terminal."""
    shown = Table(title=f"{found['bytes'] / 1e6:.1f} MB between two processes, median of {found['repeats']}")
    for name in ("by", "put ms", "get ms", "GB/s", "of plain, together"):
        shown.add_column(name, justify="left" if name == "by" else "right")
    for row in found["rows"]:
        together = row["seconds_put"] + row["seconds_get"]
        shown.add_row(
            row["transport"],
            f"{1e3 * row['seconds_put']:.1f}",
            f"{1e3 * row['seconds_get']:.1f}",
            f"{found['bytes'] / together / 1e9:.2f}",
            f"{row['ratio']:.2f}x",
        )
    return shown


def _row(way: str, took: Sequence[tuple[float, float]], plain: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {
        "transport": way,
        "seconds_put": median(put for put, _ in took),
        "seconds_get": median(get for _, get in took),
        "ratio": median(sum(mine) / sum(bare) for mine, bare in zip(took, plain, strict=True)),
    }


@contextmanager
def _receiver() -> Iterator[Connection]:
    """Start the other process; it gets what it is told to, and answers with the seconds that took."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_receive, args=(there,), daemon=True)
    child.start()
    there.close()
    try:
        yield here
    finally:
        with suppress(OSError):  # It may have ended by itself.
            here.send(None)
        here.close()
        child.join()


def _receive(orders: Connection) -> None:
    torch.set_num_threads(1)
    gets: dict[str, Callable[[Any], None]] = {
        "transport": _get_by_transport,
        "file": _get_by_file,
        "socket": _get_by_socket,
    }
    while (order := orders.recv()) is not None:
        how, where = order
        gc.collect()
        began = time.perf_counter()
        try:
            gets[how](where)
        except UnspokenError as error:
            orders.send(error.problem)
        else:
            orders.send(time.perf_counter() - began)


def _got(other: Connection) -> float:
    """Return how long the other process took to get what it was told to."""
    answer: float | str = other.recv()
    if isinstance(answer, str):
        raise TransportFailed(
            f"The other process did not get it: {answer}", "Give an address that leads to one place from both."
        )
    return answer


def _by_transport(address: str, transport: Transport, cache: KVCache, other: Connection) -> tuple[float, float]:
    began = time.perf_counter()
    transport.put(KEY, cache)
    put = time.perf_counter() - began
    try:
        other.send(("transport", address))
        return put, _got(other)
    finally:
        transport.delete(KEY)


def _get_by_transport(address: str) -> None:
    _touch(np.concatenate([each[::PAGE] for each in _raw(_open(address).get(KEY).cache)]))


@cache
def _open(address: str) -> Transport:
    """Return the other process's own end of a transport, opened in the first round, which does not count."""
    return open_transport(address)


def _by_file(cache: KVCache, other: Connection) -> tuple[float, float]:
    path = SHARED_MEMORY / f"unspoken-bench-{id(cache)}"
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for data in _raw(cache):
            file.write(data)
    put = time.perf_counter() - began
    other.send(("file", str(path)))
    get = _got(other)
    path.unlink()
    return put, get


def _get_by_file(path: str) -> None:
    with open(Path(path), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _touch(np.frombuffer(data[::PAGE], dtype=np.uint8))


def _by_socket(cache: KVCache, other: Connection) -> tuple[float, float]:
    """Send the bytes to the other, which listens; the time until it has them all is that of both."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        other.send(("socket", (listening.getsockname()[1], cache.bytes_held())))
        there, _ = listening.accept()
        with there:
            began = time.perf_counter()
            for data in _raw(cache):
                there.sendall(data)
            there.recv(1)
            put = time.perf_counter() - began
    _got(other)
    return put, 0.0


def _get_by_socket(where: tuple[int, int]) -> None:
    port, size = where
    buffer = memoryview(bytearray(size))
    with socket.create_connection(("127.0.0.1", port)) as there:
        while buffer:
            buffer = buffer[there.recv_into(buffer) :]
        there.sendall(b"x")


def _raw(cache: KVCache) -> list[Any]:
    """Return keys and values of each layer as bytes."""
    tensors = (part for layer in cache.layers for part in (layer.keys, layer.values))
    return [each.contiguous().reshape(-1).view(torch.uint8).numpy() for each in tensors]


def _touch(every_page: Any) -> None:
    if int(every_page.sum(dtype=np.int64)) == 0:
        raise TransportFailed("What came is empty.", "Look at what the store keeps.")
