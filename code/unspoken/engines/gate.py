"""The gate: measure, before the first injection, that a model's cache survives being split, moved and stored.

A pair of engine and model that fails is refused with its numbers. The result is remembered per weights
fingerprint, engine version, element type and device, so that only the first use pays for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from unspoken import __version__
from unspoken.cache import KVCache, KVLayer
from unspoken.cachefile import read_cache, write_cache
from unspoken.engines.memory import recalled, remember
from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.errors import GateFailed
from unspoken.manifest import Step
from unspoken.spec import fingerprint
from unspoken.transforms.cast import Cast
from unspoken.transforms.rope import Move

# What rounding alone may do, by the coarsest type an engine computes in: the largest difference of a logit, and the
# mean divergence of the next token's distribution, in nats. float32 is the bound of the design. The others are what
# rounding did to SmolLM2 on CPUs, with room (docs/log.md); a real error, such as keys in the wrong order, changes
# logits by 25 and the divergence by 0.8. llama.cpp rounds its angles coarsely and quantised weights make it round
# activations to 8 bits, which is why it has bounds of its own.
BOUNDS: Mapping[str, float] = {
    "float32": 1e-4, "float16": 0.1, "bfloat16": 1.0,
    "ggml-f32": 0.1, "ggml-f16": 0.2, "ggml-bf16": 1.0, "ggml-q8_0": 2.0, "ggml-q4_0": 15.0, "ggml-quantised": 2.5,
}  # fmt: skip
DIVERGENCES: Mapping[str, float] = {
    "float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2,
    "ggml-f32": 1e-4, "ggml-f16": 1e-3, "ggml-bf16": 1e-2, "ggml-q8_0": 1e-2, "ggml-q4_0": 0.3, "ggml-quantised": 0.03,
}  # fmt: skip
MOVED_BY = 37
SOURCE = (
    "Notes of the keeper, third week. The lamp was cleaned on Monday and the northern window repaired. "
    "Two boats passed at dawn; one of them carried timber for the new pier."
)
QUESTION = "What did one of the boats carry, and where was it meant to go?"


class GateResult(msgspec.Struct, frozen=True):
    """What the gate measured.

    Attributes:
        passed: Whether every check is within the bound.
        bound: Largest difference of a logit that passes.
        checks: The largest difference found by each check: `continue`, `moved`, `stored`, `causal`.
        divergence: The largest mean divergence of the next token's distribution that a check found, in nats.
        divergence_bound: The largest that passes.
    """

    passed: bool
    bound: float
    checks: dict[str, float]
    divergence: float
    divergence_bound: float


def measure(engine: Engine) -> GateResult:
    """Run the four checks of the gate.

    1. `continue`: reading a source, then a question on its cache, equals reading both together.
    2. `moved`: columns moved by some positions equal columns read at those positions, as the question sees them.
    3. `stored`: the first check again, with the cache written to a file and read back.
    4. `causal`: changing the last token of the question leaves the logits of earlier tokens as they were.

    The divergence found has to be at most a third of what a mistake does in the same model: keys whose coordinates
    stand in another order.
    """
    source, question = _prompt(engine, SOURCE), _prompt(engine, QUESTION)
    joint = engine.logits(source + question)[len(source.token_ids) :]
    cache = engine.prefill(source)
    moved, there = Move(MOVED_BY)(cache), engine.prefill(source, start=MOVED_BY)
    with tempfile.TemporaryDirectory(prefix="unspoken-gate-") as folder:
        path = Path(folder) / "gate.kv.safetensors"
        write_cache(cache, path)
        stored = engine.logits(question, read_cache(path))
    changed_ids = (*question.token_ids[:-1], question.token_ids[0])
    changed = engine.logits(Prompt((Piece("content", changed_ids),)), cache)
    pairs = {
        "continue": (engine.logits(question, cache), joint),
        "moved": (engine.logits(question, moved), engine.logits(question, there)),
        "stored": (stored, joint),
        "causal": (changed[:-1], joint[:-1]),
    }
    mistaken = _divergence(engine.logits(question, _mistaken(cache)), pairs["continue"][0])
    return _judged(pairs, engine.precision, mistaken)


def measure_pair(sender: Engine, receiver: Engine) -> GateResult:
    """Measure whether a receiver goes on from another engine's cache as from its own.

    The sender reads a source; the receiver reads a question on top of that cache, and again on top of the same
    cache moved. Both are compared with the receiver's own reading of source and question; the bound is that of
    the coarser engine.

    Raises:
        IncompatibleCache: If the two do not run the same model.
    """
    source, question = _prompt(sender, SOURCE), _prompt(receiver, QUESTION)
    theirs, ours = sender.prefill(source), receiver.prefill(source)
    theirs = Cast(receiver.dtype)(theirs)
    move = Move(MOVED_BY)
    pairs = {
        "continue": (receiver.logits(question, theirs), receiver.logits(question, ours)),
        "moved": (receiver.logits(question, move(theirs)), receiver.logits(question, move(ours))),
    }
    mistaken = _divergence(receiver.logits(question, _mistaken(ours)), pairs["continue"][1])
    return _judged(pairs, max(sender.precision, receiver.precision, key=_bounds), mistaken)


def _mistaken(cache: KVCache) -> KVCache:
    """Return a cache with the coordinates of its keys in the order that an engine would have by mistake."""

    def change(layer: KVLayer) -> tuple[Tensor, Tensor, Tensor]:
        heads, seq, head_dim = layer.keys.shape
        keys = layer.keys.reshape(heads, seq, 2, head_dim // 2).transpose(2, 3).reshape(heads, seq, head_dim)
        return keys.contiguous(), layer.values, layer.positions

    return cache.rebuilt(Step("gate.mistake"), change)


def _judged(pairs: Mapping[str, tuple[Tensor, Tensor]], precision: str, mistaken: float) -> GateResult:
    """Judge what was measured.

    Args:
        pairs: For each check the logits found, and those expected.
        precision: The coarsest type that computes.
        mistaken: The divergence that a real mistake causes in this model.
    """
    bound, divergence_bound = _bounds(precision)
    # What passes must be far from a mistake, too; a model with small logits would stay below any fixed bound.
    divergence_bound = min(divergence_bound, max(mistaken / 3, DIVERGENCES["float32"]))
    checks = {name: _apart(found, expected) for name, (found, expected) in pairs.items()}
    divergence = max(_divergence(found, expected) for found, expected in pairs.values())
    passed = all(value <= bound for value in checks.values()) and divergence <= divergence_bound
    return GateResult(passed, bound, checks, divergence, divergence_bound)


def _bounds(precision: str) -> tuple[float, float]:
    known = precision if precision in BOUNDS else "bfloat16"
    return BOUNDS[known], DIVERGENCES[known]


def ensure(engine: Engine, memory: Path | None) -> GateResult:
    """Return the remembered result for an engine and model, or measure and remember it.

    Args:
        engine: The engine with its model.
        memory: Folder of remembered results; None remembers nothing.

    Raises:
        GateFailed: If any check is over the bound, with the numbers.
    """
    path = None if memory is None else memory / f"{_key(engine)}.json"
    known = recalled(path, GateResult)
    result = known or measure(engine)
    if not result.passed:
        raise _failed(
            f"Caches of '{engine.spec.name}' do not survive a hand-over with the {engine.name} engine", result
        )
    if known is None:
        remember(path, result)
    return result


def ensure_pair(
    made_by: str, receiver: Engine, opened: Callable[[], Engine], memory: Path | None = None
) -> GateResult | None:
    """Return the result for caches of one engine in another: known, remembered or measured; None for one engine.

    Args:
        made_by: Name of the engine that makes the caches.
        receiver: The engine that goes on from them.
        opened: Returns the engine that makes them, with the same model; called only if it has to be measured.
        memory: Folder of remembered results; None remembers nothing beyond this process.

    Raises:
        GateFailed: If the receiver does not go on as from its own cache, with the numbers.
        IncompatibleCache: If the two do not run the same model.
    """
    if made_by == receiver.name:
        return None
    name = _pair(made_by, receiver)
    path = None if memory is None else memory / f"{fingerprint(name)}.json"
    known = _PAIRS.get(name) or recalled(path, GateResult)
    result = known or measure_pair(opened(), receiver)
    if not result.passed:
        what = f"The {receiver.name} engine does not go on from caches of '{receiver.spec.name}' made by {made_by}"
        raise _failed(what, result)
    _PAIRS[name] = result
    if known is None:
        remember(path, result)
    return result


def require_pair(made_by: str, receiver: Engine) -> None:
    """Refuse a cache of another engine unless the pair is known in this process to have passed.

    Raises:
        GateFailed: If it is not.
    """
    if made_by != receiver.name and _pair(made_by, receiver) not in _PAIRS:
        raise GateFailed(
            f"Whether {receiver.name} goes on from caches of '{receiver.spec.name}' made by {made_by} is not known.",
            "Measure it first with `unspoken.engines.gate.ensure_pair`; `unspoken ask` does so by itself.",
        )


def _pair(made_by: str, receiver: Engine) -> str:
    return f"{made_by} to {_key(receiver)}"


# Passed pairs of this process: a session hands over many times and measures once.
_PAIRS: dict[str, GateResult] = {}


def _failed(what: str, result: GateResult) -> GateFailed:
    numbers = ", ".join(f"{name} {value:.2e}" for name, value in result.checks.items())
    return GateFailed(
        f"{what}: logits differ by {numbers}, at most {result.bound:.0e} is allowed; the divergence is "
        f"{result.divergence:.1e}, at most {result.divergence_bound:.0e} is allowed.",
        "Use another model or engine, or a finer type: float32, --kv-type f16.",
    )


def _key(engine: Engine) -> str:
    spec = engine.spec
    computes = (engine.name, engine.version, engine.dtype, engine.precision)
    return fingerprint("\n".join((__version__, *computes, spec.weights, spec.architecture, spec.tokenizer)))


def _prompt(engine: Engine, text: str) -> Prompt:
    return Prompt((Piece("content", engine.encode(text)),))


def _apart(left: Tensor, right: Tensor) -> float:
    difference = (left - right).abs().max()
    return float(difference) if torch.isfinite(difference) else float("inf")


def _divergence(found: Tensor, expected: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of the next token's distributions, in nats."""
    there, here = expected.log_softmax(dim=-1), found.log_softmax(dim=-1)
    mean = (there.exp() * (there - here)).sum(dim=-1).mean()
    return max(float(mean), 0.0) if torch.isfinite(mean) else float("inf")
