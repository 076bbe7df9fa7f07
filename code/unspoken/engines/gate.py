"""The gate: measure, before the first injection, that a model's cache survives being split, moved and stored.

A pair of engine and model that fails is refused with its numbers. The result is remembered per weights
fingerprint, engine version, element type and device, so that only the first use pays for it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from unspoken import __version__
from unspoken.cachefile import read_cache, write_cache
from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.errors import GateFailed
from unspoken.spec import fingerprint
from unspoken.transforms.rope import Move

# Largest difference of a logit. float32 is the bound of the design; the others are what rounding alone does to
# SmolLM2 on a CPU, with room (docs/log.md), and still far below what any real error causes.
BOUNDS: Mapping[str, float] = {"float32": 1e-4, "float16": 0.1, "bfloat16": 1.0}
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
    """

    passed: bool
    bound: float
    checks: dict[str, float]


def measure(engine: Engine) -> GateResult:
    """Run the four checks of the gate.

    1. `continue`: reading a source, then a question on its cache, equals reading both together.
    2. `moved`: columns moved by some positions equal columns read at those positions, as the question sees them.
    3. `stored`: the first check again, with the cache written to a file and read back.
    4. `causal`: changing the last token of the question leaves the logits of earlier tokens as they were.
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
    checks = {
        "continue": _apart(engine.logits(question, cache), joint),
        "moved": _apart(engine.logits(question, moved), engine.logits(question, there)),
        "stored": _apart(stored, joint),
        "causal": _apart(changed[:-1], joint[:-1]),
    }
    bound = BOUNDS.get(engine.dtype, BOUNDS["bfloat16"])
    return GateResult(all(value <= bound for value in checks.values()), bound, checks)


def ensure(engine: Engine, memory: Path | None) -> GateResult:
    """Return the remembered result for an engine and model, or measure and remember it.

    Args:
        engine: The engine with its model.
        memory: Folder of remembered results; None remembers nothing.

    Raises:
        GateFailed: If any check is over the bound, with the numbers.
    """
    path = None if memory is None else memory / f"{_key(engine)}.json"
    known = _recalled(path)
    result = known or measure(engine)
    if not result.passed:
        numbers = ", ".join(f"{name} {value:.2e}" for name, value in result.checks.items())
        raise GateFailed(
            f"Caches of '{engine.spec.name}' do not survive a hand-over with the {engine.name} engine: logits differ "
            f"by {numbers}, at most {result.bound:.0e} is allowed.",
            "Use another model or engine, or float32.",
        )
    if path is not None and known is None:
        _remember(path, result)
    return result


def _key(engine: Engine) -> str:
    spec = engine.spec
    parts = (__version__, engine.name, engine.version, engine.dtype, spec.weights, spec.architecture, spec.tokenizer)
    return fingerprint("\n".join(parts))


def _recalled(path: Path | None) -> GateResult | None:
    if path is None or not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=GateResult)
    except (OSError, msgspec.DecodeError):
        return None  # An unreadable memory is no reason to fail: the gate is simply measured again.


def _remember(path: Path, result: GateResult) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_bytes(msgspec.json.encode(result))
        os.replace(part, path)
    except OSError:
        return  # A cache folder that cannot be written costs time at the next start, nothing else.


def _prompt(engine: Engine, text: str) -> Prompt:
    return Prompt((Piece("content", engine.encode(text)),))


def _apart(left: Tensor, right: Tensor) -> float:
    difference = (left - right).abs().max()
    return float(difference) if torch.isfinite(difference) else float("inf")
