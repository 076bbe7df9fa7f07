"""Let agents hand over what they understood as KV-cache instead of text.

    from unspoken import Agent, Session, load_model
    model = load_model("smollm2-135m")
    lyra, vera = Agent("lyra", model), Agent("vera", model)
    talk = Session(lyra, vera, channel="kv")
    reply = talk.ask("vera", "Who runs the northern station?", about=report_read_by_lyra)

Importing this package loads neither torch nor transformers; using it does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from unspoken.api import from_transformers, load_model, park_model
    from unspoken.cache import KVCache, KVLayer
    from unspoken.cachefile import peek, read_cache, write_cache
    from unspoken.channels.protocol import Delivery
    from unspoken.engines.fake import FakeEngine
    from unspoken.engines.parked import Slot
    from unspoken.errors import UnspokenError
    from unspoken.session import Agent, Reply, Session

_HOMES = {
    "Agent": "unspoken.session",
    "Delivery": "unspoken.channels.protocol",
    "FakeEngine": "unspoken.engines.fake",
    "KVCache": "unspoken.cache",
    "KVLayer": "unspoken.cache",
    "Reply": "unspoken.session",
    "Session": "unspoken.session",
    "Slot": "unspoken.engines.parked",
    "UnspokenError": "unspoken.errors",
    "from_transformers": "unspoken.api",
    "load_model": "unspoken.api",
    "park_model": "unspoken.api",
    "peek": "unspoken.cachefile",
    "read_cache": "unspoken.cachefile",
    "write_cache": "unspoken.cachefile",
}
__all__ = [
    "Agent",
    "Delivery",
    "FakeEngine",
    "KVCache",
    "KVLayer",
    "Reply",
    "Session",
    "Slot",
    "UnspokenError",
    "__version__",
    "from_transformers",
    "load_model",
    "park_model",
    "peek",
    "read_cache",
    "write_cache",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unspoken' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
