"""Engines: the only modules that know how a model keeps its cache."""

from __future__ import annotations

from unspoken.registry import Registry

ENGINES = Registry(
    "engine",
    "unspoken.engines",
    {
        "transformers": "unspoken.engines.transformers:load",
        "llamacpp": "unspoken.engines.llamacpp:load",
        "fake": "unspoken.engines.fake:load",
    },
)
