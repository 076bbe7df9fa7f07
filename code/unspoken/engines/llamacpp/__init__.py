"""llama.cpp as an engine: caches go in and out as saved states of one sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unspoken.engines.llamacpp.engine import LlamaCppEngine
    from unspoken.engines.protocol import Loading, Source


def load(source: Source, loading: Loading) -> LlamaCppEngine:
    """Open a GGUF file in llama.cpp.

    Raises:
        EngineUnavailable: If there is no llama.cpp library, or not one that can be used.
        ModelNotFound: If there is no GGUF file that it can open.
        UnsupportedModel: If a cache of this kind of model cannot be moved.
        ContextOverflow: If there is no memory for the context.
        UsageError: If a setting cannot work.
    """
    from unspoken.engines.llamacpp.engine import LlamaCppEngine
    from unspoken.engines.llamacpp.library import library
    from unspoken.engines.llamacpp.opened import open_file

    loading.refuse("llamacpp", "dtype", "device")
    found = library()
    path, name = source.gguf()
    return LlamaCppEngine(open_file(found, path, name, loading, source.memory))
