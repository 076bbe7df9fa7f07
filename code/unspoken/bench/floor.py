"""What a hand-over through a cache file costs more than saving and loading the same bytes with safetensors.

Each export and each import runs in a process of its own, as in a real hand-over: a process that has done it
before has memory at hand that a fresh one must first get from the system, which costs more than the hashing
that is measured here.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.cachefile.reader import read_cache
from unspoken.cachefile.writer import write_cache
from unspoken.spec import ModelSpec
from unspoken.transforms.cast import Cast


def floor_ratio(spec: ModelSpec, columns: int, wire: str, repeats: int) -> dict[str, float]:
    """Return the seconds of both ways, export and import together, and their ratio: medians over some rounds.

    Both cast a float32 cache to the wire's type, write it to a new file, read that and cast it back. Ours also
    hashes, checks and describes what it writes, and verifies all of that when reading.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unspoken.bench.floor"])
    took: dict[str, list[float]] = {"ours": [], "floor": []}
    with tempfile.TemporaryDirectory(prefix="unspoken-bench-") as folder:
        for round_number in range(repeats):
            for way in took:
                path = Path(folder) / f"{way}-{round_number}"
                took[way].append(
                    sum(_alone(context, step, way, spec, columns, wire, path) for step in ("export", "import"))
                )
                path.unlink()
    ours, floor = median(took["ours"]), median(took["floor"])
    ratio = median(a / b for a, b in zip(took["ours"], took["floor"], strict=True))
    return {"seconds_ours": ours, "seconds_floor": floor, "ratio": ratio}


def random_cache(spec: ModelSpec, columns: int) -> KVCache:
    """Return a float32 cache of random numbers, position-free, with token ids: shaped like a real segment."""
    generator = torch.Generator().manual_seed(columns)
    shape, positions = (spec.kv_heads, columns, spec.head_dim), torch.arange(columns, dtype=torch.int32)
    layers = [
        KVLayer(index, torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), positions)
        for index in range(spec.layers)
    ]
    return KVCache.build(layers, spec, rope="removed", token_ids=range(columns))


def _alone(
    context: multiprocessing.context.ForkServerContext,
    step: str, way: str, spec: ModelSpec, columns: int, wire: str, path: Path,
) -> float:  # fmt: skip
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_timed, args=(there, step, way, spec, columns, wire, path))
    child.start()
    seconds = float(here.recv())
    child.join()
    return seconds


def _timed(answer: Connection, step: str, way: str, spec: ModelSpec, columns: int, wire: str, path: Path) -> None:
    cache = random_cache(spec, columns) if step == "export" else None
    began = time.perf_counter()
    if cache is not None:
        _export(way, cache, wire, path)
        seconds = time.perf_counter() - began
    else:
        held = _import(way, path)
        seconds = time.perf_counter() - began
        del held  # Giving memory back is no part of the hand-over.
    answer.send(seconds)


def _export(way: str, cache: KVCache, wire: str, path: Path) -> None:
    if way == "ours":
        write_cache(Cast(wire)(cache), path)
        return
    target = DTYPES[wire]
    tensors = {f"layers.{layer.index}.positions": layer.positions.clone() for layer in cache.layers}
    for layer in cache.layers:
        tensors[f"layers.{layer.index}.keys"] = layer.keys.to(target)
        tensors[f"layers.{layer.index}.values"] = layer.values.to(target)
    save_file(tensors, path)


def _import(way: str, path: Path) -> object:
    if way == "ours":
        return Cast("float32")(read_cache(path))
    return {name: tensor.to(torch.float32) for name, tensor in load_file(path).items()}
