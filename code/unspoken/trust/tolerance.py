"""How far honest columns may be from the same columns computed again, measured.

A column's error is the length of the difference of its keys (or its values) from those computed again, divided by
their length, or by the median length in that layer where that is larger: columns that a model hardly uses have short
values, and a group of numbers that share a scale does them no justice. A layer is judged by the largest error of a
column, and by the median of all, which moves when many columns were changed by little.

Measured were 12,508 columns: two models (SmolLM2-135M, Qwen2.5-Coder-0.5B), 16 texts of English, German, Japanese,
Russian, code and digits, up to 400 tokens each; for each codec with one computation, and for each pair of computations
with no codec in between. Together they add like the sides of a right angle. `examples/spot_check.py` measures some of
it again, and `docs/trust.md` shows what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from unspoken.cache import KVCache
from unspoken.engines.protocol import Engine
from unspoken.layout import PACKED

MARGIN = 2.0
"""What passes is this many times what was measured."""
ENOUGH = 16
"""A median of fewer columns is not judged."""


class Error(NamedTuple):
    """An error of a layer's columns: the largest, and the median."""

    largest: float
    median: float


CODING: Mapping[str, Error] = {
    "float32": Error(0.0, 0.0),
    "float16": Error(3.5e-4, 2.3e-4),
    "bfloat16": Error(2.9e-3, 2.1e-3),
    "int8": Error(0.0111, 0.0086),
    "q8_0": Error(8.2e-3, 5.8e-3),
    "int4": Error(0.106, 0.083),
    "q4_0": Error(0.129, 0.092),
}
"""What a wire form does to a layer's columns, at any depth: the most measured."""

COMPUTING: Mapping[str, tuple[Error, Error, Error]] = {
    "float32": (Error(1e-4, 1e-4), Error(2e-4, 2e-4), Error(4e-4, 4e-4)),
    "float16": (Error(1.0e-3, 4.8e-4), Error(2.7e-3, 1.1e-3), Error(0.025, 2.9e-3)),
    "bfloat16": (Error(8.0e-3, 4.6e-3), Error(0.045, 0.018), Error(0.175, 0.031)),
    "ggml": (Error(0.027, 0.0155), Error(0.055, 0.0285), Error(0.20, 0.0525)),
}
"""How far two computations are apart, by the coarser of them: in layer 0, in layers 1 and 2, and later.

`float32` holds at positions up to 20,000. `ggml` is llama.cpp with weights of 4 and 8 bits and cells of f16; a cache
computed on cells of 8 or 4 bits may be further off above layer 0, and nothing in it tells.
"""


def tolerance(cache: KVCache, engine: Engine, layer: int, columns: int) -> Error:
    """Return the errors that pass for a layer of a cache which an engine computes again.

    What a cache was packed as, and who computed it, is told by the cache itself, and a forger may claim the coarsest.
    A receiver who wants to see small changes has to insist on a fine wire form.

    Args:
        cache: What is judged.
        engine: What computes again.
        layer: Which layer.
        columns: How many columns are compared.
    """
    coding = [CODING[form] for form in wire_forms(cache) | own_cells(engine)]
    computing = [COMPUTING[name][(layer > 0) + (layer > 2)] for name in _computations(cache, engine)]
    largest, median = (
        MARGIN * math.hypot(max(error[which] for error in coding), max(error[which] for error in computing))
        for which in (0, 1)
    )
    return Error(largest, median if columns >= ENOUGH else largest)


def wire_forms(cache: KVCache) -> frozenset[str]:
    """Return the forms a cache's numbers have gone through, by what it says of itself."""
    told = {cache.manifest.dtype}
    for step in cache.manifest.lineage:
        told |= {str(step.args.get(name)) for op, name in (("cast", "dtype"), ("pack", "codec")) if step.op == op}
        if step.op == "cast" and step.args.get("dtype") == "float32":
            told.add("bfloat16")  # What was widened was narrower before: this, at the coarsest.
    return frozenset(told) & frozenset(CODING)


def own_cells(engine: Engine) -> frozenset[str]:
    """Return what an engine packs its own columns as while it computes: q8_0 or q4_0, or nothing."""
    return frozenset({engine.precision.removeprefix("ggml-")}) & frozenset(PACKED)


def _computations(cache: KVCache, engine: Engine) -> set[str]:
    """Return keys of `COMPUTING`: that of the engine, and what the cache may have been computed in."""
    # Numbers packed in few bits, or as bfloat16, may well come from a model that runs in bfloat16.
    found = {form if form in COMPUTING else "bfloat16" for form in wire_forms(cache)}
    if "llamacpp" in cache.manifest.engines() or engine.precision.startswith("ggml"):
        found.add("ggml")
    else:
        found.add(engine.precision if engine.precision in COMPUTING else "bfloat16")
    return found
