"""The llama.cpp engine on tiny random models; whoever takes one of these fixtures is skipped without a library.

Nothing of the package is imported before a fixture runs, so that `--jaxtyping-packages` can hook in first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

    from unspoken.engines.llamacpp.engine import LlamaCppEngine
    from unspoken.engines.llamacpp.library import Library
    from unspoken.engines.transformers import TransformersEngine

# Kinds of tests/conftest.py that llama.cpp and transformers both know and that pass the gate.
KINDS = ("linear", "llama", "llama3", "qwen2", "qwen3")


@pytest.fixture(scope="session")
def libllama() -> Library:
    """The llama.cpp library; one that is there and cannot be used is an error, not a reason to skip."""
    from unspoken.engines.llamacpp.library import candidates, library

    if next(candidates(), None) is None:
        pytest.skip("there is no llama.cpp library: pip install 'unspoken[llamacpp]'")
    return library()


@pytest.fixture(scope="session")
def tiny_gguf(
    tiny_model: Callable[..., nn.Module], tiny_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Write the GGUF file of a tiny model of a kind; one for each kind, seed and changes of its configuration."""
    from .tiny import VOCABULARY, write_model

    folder = tmp_path_factory.mktemp("gguf")

    @cache
    def make(kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
        path = folder / f"{kind}-{seed}-{'-'.join(f'{name}={value}' for name, value in changes.items())}.gguf"
        return write_model(path, tiny_model(kind, seed, **(VOCABULARY | changes)), tiny_tokenizer())

    return make


@pytest.fixture(scope="session")
def tiny_llama(libllama: Library, tiny_gguf: Callable[..., Path]) -> Iterator[Callable[..., LlamaCppEngine]]:
    """Open the llama.cpp engine on a tiny model, by default with float32 cells; one for each kind and setting."""
    from unspoken.engines.llamacpp import load
    from unspoken.engines.protocol import Loading

    from .tiny import File

    opened: list[LlamaCppEngine] = []

    @cache
    def make(
        kind: str = "llama", kv_type: str = "f32", context: int | None = None, seed: int = 0, **changes: Any
    ) -> LlamaCppEngine:
        loading = Loading(kv_type=kv_type, context=context, threads=1)
        opened.append(load(File(tiny_gguf(kind, seed, **changes)), loading))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture(scope="session")
def tiny_hf(
    tiny_model: Callable[..., nn.Module], tiny_tokenizer: Callable[..., Any]
) -> Callable[..., TransformersEngine]:
    """The transformers engine on the same model as `tiny_llama` has: the oracle."""
    from unspoken.engines.transformers import TransformersEngine

    from .tiny import VOCABULARY

    @cache
    def make(kind: str = "llama", seed: int = 0, **changes: Any) -> TransformersEngine:
        return TransformersEngine(tiny_model(kind, seed, **(VOCABULARY | changes)), tiny_tokenizer(), "tiny")

    return make


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of model: a test that takes it runs for every kind."""
    return str(request.param)
