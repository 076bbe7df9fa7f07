"""The doors of the package: a model that has passed the gate, by name or brought along."""

from __future__ import annotations

from typing import Any

from torch import nn

from unspoken.cache import DTYPES
from unspoken.engines import ENGINES
from unspoken.engines.gate import GateResult, ensure
from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError
from unspoken.modelstore import home, resolve


def load_model(
    name: str = "smollm2-135m", *, engine: str = "transformers", dtype: str = "float32", device: str = "cpu"
) -> Engine:
    """Load a model that may hand over and receive caches.

    Args:
        name: A folder, a .gguf file, a name of the catalogue, or a hub id.
        engine: A registered engine.
        dtype: Element type to compute in: "float32", "bfloat16" or "float16".
        device: "cpu", or a device of torch; the latter is written but untested.

    Raises:
        ModelNotFound: If the name leads nowhere.
        UnsupportedModel: If caches of this kind of model cannot be moved.
        GateFailed: If they can, but do not survive it.
    """
    return load_gated(name, engine=engine, dtype=dtype, device=device)[0]


def load_gated(
    name: str, *, engine: str = "transformers", dtype: str = "float32", device: str = "cpu"
) -> tuple[Engine, GateResult]:
    """Load a model as `load_model` does and return what the gate measured, too."""
    opened = open_model(name, engine=engine, dtype=dtype, device=device)
    return opened, ensure(opened, home() / "gates")


def open_model(name: str, *, engine: str = "transformers", dtype: str = "float32", device: str = "cpu") -> Engine:
    """Load a model without the gate: enough to describe it, not to inject into it."""
    if dtype not in DTYPES:
        raise UsageError(f"There is no element type '{dtype}'.", f"Choose one of {', '.join(DTYPES)}.")
    load = ENGINES.load(engine)
    if engine == "fake":
        fake: Engine = load(None, name, dtype, device)
        return fake
    files = resolve(name)
    opened: Engine = load(files.folder, files.name, dtype, device)
    return opened


def from_transformers(model: nn.Module, tokenizer: Any, name: str | None = None) -> Engine:
    """Wrap a transformers model and tokenizer that you have loaded yourself.

    Raises:
        UnsupportedModel: If caches of this kind of model cannot be moved.
        GateFailed: If they can, but do not survive it.
    """
    from unspoken.engines.transformers import TransformersEngine

    opened = TransformersEngine(model, tokenizer, name)
    ensure(opened, home() / "gates")
    return opened
