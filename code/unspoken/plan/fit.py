"""How many bytes a model takes, and how much of it fits: arithmetic, so that it can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from unspoken.errors import UsageError
from unspoken.plan.shape import Shape, Weights
from unspoken.transforms.blocks import ELEMENT_TYPES

# Element types of a cache: values stored together, and the bytes they take; the finest first.
KV_TYPES = {
    kind.name: (kind.values_per_block, kind.bytes_per_block)
    for kind in sorted(ELEMENT_TYPES, key=lambda kind: -kind.bytes_per_block / kind.values_per_block)
}
# Tokens that go through the model in one piece, llama.cpp's default.
UBATCH = 512
# What a process takes before a model is opened, and for its vocabulary: 226 MB after importing this package with
# torch, 43 MB for llama.cpp's library and 20 MB for 49,152 tokens were measured on Linux, x86-64; rounded up.
PROCESS_BYTES = 300_000_000
# What a GPU's driver and matrix library keep for themselves. Not measured; other programs on it come on top.
GPU_BYTES = 400_000_000
# llama.cpp's own limit of sequences in one context (LLAMA_MAX_SEQ).
MOST_AGENTS = 256

Mode = Literal["parallel", "sequential"]


@dataclass(frozen=True)
class Budget:
    """The memory of a machine, in bytes; a machine without a GPU has 0 for it."""

    vram_bytes: int
    ram_bytes: int


@dataclass(frozen=True)
class Fit:
    """How a model with one element type of its caches lies in a machine's memory.

    Attributes:
        kv_type: Element type of keys and values.
        bytes_per_token: What one column takes in all layers.
        bytes_per_agent: What one agent's cache takes at the context.
        fits: Whether one agent at a time fits at all.
        gpu_layers: What to give llama.cpp: the layers on the GPU, and one more where everything is there.
        layers_on_gpu: Layers whose weights and caches lie on the GPU.
        layers_in_ram: Layers whose weights and caches lie in RAM.
        vram_bytes: GPU memory taken with the caches of the agents that are resident.
        ram_bytes: RAM taken by the same, parked caches not included.
        resident_bytes_cpu: RAM the model takes with one agent where there is no GPU: weights, cache, compute
            buffer and process.
        agents_at_once: Caches of the context that fit beside this one copy of the weights.
        longest_context: Columns that fit for one agent, at most what the model was made for.
        mode: `parallel` if all agents' caches are resident, `sequential` if one is and the others wait.
        parked_bytes: What the caches of the waiting agents take.
        parked_in: Where they wait: `RAM`, `files`, or nowhere if none waits.
    """

    kv_type: str
    bytes_per_token: int
    bytes_per_agent: int
    fits: bool
    gpu_layers: int
    layers_on_gpu: int
    layers_in_ram: int
    vram_bytes: int
    ram_bytes: int
    resident_bytes_cpu: int
    agents_at_once: int
    longest_context: int
    mode: Mode
    parked_bytes: int
    parked_in: str | None


def cache_bytes_per_token(shape: Shape, key_type: str, value_type: str | None = None) -> int:
    """Return the bytes of one column: layers times KV heads times head size times those of a key and a value.

    Args:
        shape: The model.
        key_type: Element type of keys, a name of `KV_TYPES`.
        value_type: Element type of values, if it is another.

    Raises:
        UsageError: If the type does not exist, or its blocks do not divide a head, which llama.cpp refuses.
    """
    total = 0
    for kind in (key_type, value_type or key_type):
        if kind not in kv_types(shape):
            raise UsageError(
                f"A cache of '{shape.name}' with heads of {shape.head_dim} cannot be kept as '{kind}'.",
                f"Use one of {', '.join(kv_types(shape))}.",
            )
        values, size = KV_TYPES[kind]
        total += shape.layers * shape.kv_heads * shape.head_dim // values * size
    return total


def kv_types(shape: Shape) -> tuple[str, ...]:
    """Return the element types a model's cache can have: blocks must not reach beyond a head."""
    return tuple(kind for kind, (values, _) in KV_TYPES.items() if shape.head_dim % values == 0)


def compute_buffer_bytes(shape: Shape, columns: int, ubatch: int = UBATCH) -> int:
    """Return an estimate of what llama.cpp sets aside for intermediate results, with flash attention on.

    It reserves for the worst case, `ubatch` tokens that all want logits, and reuses memory between steps, so the
    largest step counts, in float32:

    - at the end, the logits and about five vectors of the hidden size: input, residual and what norms leave;
    - inside a layer, gate, up and their product, of the feed-forward size, beside those five.

    The mask comes on top: a float16 for every token and column, and its copy in part. The counts of five and of
    three bytes were found by comparison with what llama.cpp b11549 reports on a CPU; `tests/plan/test_fit.py` has
    its figures, which this meets within 2 %.
    """
    widest = max(shape.vocabulary, 3 * shape.feed_forward) + 5 * shape.hidden
    return ubatch * (4 * widest + 3 * columns)


def vram_bytes(shape: Shape, weights: Weights, layers: int, columns: int, kv_type: str) -> int:
    """Return the GPU memory taken by the last layers of a model with their part of the caches.

    The output matrix counts from the first layer on: releases of llama.cpp differ in whether it is the first or
    the last thing to move to the GPU, and where it is not there, a long prompt copies it there for a while.
    """
    if layers == 0:
        return 0
    held = sum(weights.layer_bytes[shape.layers - layers :]) + weights.output_on_gpu_bytes
    cache = columns * cache_bytes_per_token(shape, kv_type) // shape.layers * layers
    return held + cache + compute_buffer_bytes(shape, columns) + GPU_BYTES


def ram_bytes(shape: Shape, weights: Weights, layers_on_gpu: int, columns: int, kv_type: str) -> int:
    """Return the RAM taken by what is not on the GPU: weights mapped from the file, caches, buffer and process."""
    left = shape.layers - layers_on_gpu
    held = weights.embedding_bytes + sum(weights.layer_bytes[:left]) + (weights.output_bytes if left else 0)
    cache = columns * cache_bytes_per_token(shape, kv_type) // shape.layers * left
    return held + cache + compute_buffer_bytes(shape, columns) + PROCESS_BYTES


def resident_bytes_cpu(shape: Shape, weights: Weights, columns: int, kv_type: str) -> int:
    """Return the RAM a model takes without a GPU, once a prompt has touched all of it.

    A second copy of quantised matrices, which llama.cpp can rearrange for speed (`use_extra_bufts`), is not
    counted: it would nearly double this.
    """
    return ram_bytes(shape, weights, 0, columns, kv_type)


def fit(shape: Shape, weights: Weights, budget: Budget, kv_type: str, context: int, agents: int) -> Fit:
    """Put as many layers on the GPU as one agent's cache leaves room for, then see how many agents fit as well."""
    layers = most_layers(shape, weights, budget, kv_type, context)
    fits = _fits(shape, weights, budget, layers, context, kv_type)
    per_token = cache_bytes_per_token(shape, kv_type)
    at_once = _largest(MOST_AGENTS, lambda count: _fits(shape, weights, budget, layers, count * context, kv_type))
    mode: Mode = "parallel" if at_once >= agents else "sequential"
    resident, waiting = (agents, 0) if mode == "parallel" else (1, agents - 1)
    ram = ram_bytes(shape, weights, layers, resident * context, kv_type)
    parked = waiting * context * per_token
    place = "RAM" if ram + parked <= budget.ram_bytes else "files"
    return Fit(
        kv_type=kv_type,
        bytes_per_token=per_token,
        bytes_per_agent=context * per_token,
        fits=fits,
        gpu_layers=layers + 1 if layers == shape.layers else layers,
        layers_on_gpu=layers,
        layers_in_ram=shape.layers - layers,
        vram_bytes=vram_bytes(shape, weights, layers, resident * context, kv_type),
        ram_bytes=ram,
        resident_bytes_cpu=resident_bytes_cpu(shape, weights, context, kv_type),
        agents_at_once=at_once,
        longest_context=_largest(
            shape.context, lambda columns: _fits(shape, weights, budget, layers, columns, kv_type)
        ),
        mode=mode,
        parked_bytes=parked,
        parked_in=place if parked else None,
    )


def most_layers(shape: Shape, weights: Weights, budget: Budget, kv_type: str, columns: int) -> int:
    """Return how many layers fit on the GPU with the caches of some columns."""
    return _largest(
        shape.layers, lambda layers: vram_bytes(shape, weights, layers, columns, kv_type) <= budget.vram_bytes
    )


def longest_context(shape: Shape, weights: Weights, budget: Budget, kv_type: str) -> int:
    """Return the columns that fit for one agent, with as few layers on the GPU as that takes; 0 if none does."""
    return _largest(
        shape.context,
        lambda columns: _fits(
            shape, weights, budget, most_layers(shape, weights, budget, kv_type, columns), columns, kv_type
        ),
    )


def _fits(shape: Shape, weights: Weights, budget: Budget, layers: int, columns: int, kv_type: str) -> bool:
    return (
        vram_bytes(shape, weights, layers, columns, kv_type) <= budget.vram_bytes
        and ram_bytes(shape, weights, layers, columns, kv_type) <= budget.ram_bytes
    )


def _largest(limit: int, holds: Callable[[int], bool]) -> int:
    """Return the largest number up to a limit for which something holds, if it holds for all below; else 0."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
