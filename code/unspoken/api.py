"""The doors of the package: a model that has passed the gate, by name or brought along."""

from __future__ import annotations

from typing import Any

from torch import nn

from unspoken.cache import KVCache
from unspoken.engines import ENGINES
from unspoken.engines.gate import GateResult, ensure, ensure_pair
from unspoken.engines.parked import Parked, Slot
from unspoken.engines.protocol import Engine, Loading
from unspoken.modelstore import Source, home


def load_model(name: str = "smollm2-135m", *, engine: str = "transformers", **loading: Any) -> Engine:
    """Load a model that may hand over and receive caches.

    Args:
        name: A folder, a .gguf file, a name of the catalogue, or a hub id.
        engine: A registered engine.
        loading: How it is opened, see `unspoken.engines.protocol.Loading`: `dtype="bfloat16"`, `kv_type="q8_0"` ...

    Raises:
        ModelNotFound: If the name leads nowhere.
        UnsupportedModel: If caches of this kind of model cannot be moved.
        EngineUnavailable: If the engine's library is missing.
        GateFailed: If its caches can be moved, but do not survive it.
    """
    return load_gated(name, engine, Loading(**loading))[0]


def load_gated(name: str, engine: str, loading: Loading) -> tuple[Engine, GateResult]:
    """Load a model as `load_model` does and return what the gate measured, too."""
    opened = open_model(name, engine, loading)
    return opened, ensure(opened, home() / "gates")


def park_model(name: str = "smollm2-135m", *, slot: Slot, engine: str = "transformers", **loading: Any) -> Engine:
    """Load a model that gives way to the others of its slot, and is loaded again when it is used.

    With one slot for the agents of a small GPU, a session of several models needs room for the largest alone:

        slot = Slot()
        lyra = Agent("lyra", park_model("llama.gguf", slot=slot, engine="llamacpp", gpu_layers=-1))
        vera = Agent("vera", park_model("mistral.gguf", slot=slot, engine="llamacpp", gpu_layers=-1))

    Args:
        name: As for `load_model`.
        slot: Where it is loaded; at most one model of a slot is, at any time.
        engine: A registered engine.
        loading: How it is opened, as for `load_model`.

    Raises:
        UnspokenError: As `load_model` does.
    """
    return Parked(lambda: load_model(name, engine=engine, **loading), slot)


def open_model(name: str, engine: str = "transformers", loading: Loading = Loading()) -> Engine:  # noqa: B008 - frozen
    """Load a model without the gate: enough to describe it, not to inject into it."""
    opened: Engine = ENGINES.load(engine)(Source(name), loading)
    return opened


def open_to(cache: KVCache, model: str, receiver: Engine) -> None:
    """Measure, unless it is remembered, whether an engine goes on from the caches of the one that made this one.

    Args:
        cache: A cache that came from elsewhere.
        model: The model's name, for opening it in the other engine.
        receiver: The engine that shall go on from it.

    Raises:
        GateFailed: If it does not.
        UnspokenError: If the other engine cannot open the model here.
    """
    for made_by in sorted(cache.manifest.engines() - {receiver.name}):
        opened: list[Engine] = []

        def other(name: str = made_by, opened: list[Engine] = opened) -> Engine:
            opened.append(open_model(model, name))
            return opened[-1]

        try:
            ensure_pair(made_by, receiver, other, home() / "gates")
        finally:
            for each in opened:
                each.close()


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
