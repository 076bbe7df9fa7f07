"""A sound cache file, and the place where every bad one made of it stands.

Nothing of the package is imported before a fixture runs, so that `--jaxtyping-packages` can hook in first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from unspoken.cache import KVCache

pytest.register_assert_rewrite(f"{__package__}.forging")  # A failure in there shows its values, as one in a test does.


@pytest.fixture(scope="session")
def original() -> KVCache:
    """The cache behind the good file."""
    from unspoken.engines.fake import FakeEngine
    from unspoken.engines.protocol import Piece, Prompt

    from .forging import TEXT

    engine = FakeEngine()
    return engine.prefill(Prompt((Piece("content", engine.encode(TEXT)),))).labelled(sender="lyra")


@pytest.fixture(scope="session")
def good(original: KVCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file."""
    from unspoken.cachefile import write_cache

    path = tmp_path_factory.mktemp("good") / "good.kv.safetensors"
    write_cache(original, path)
    return path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every bad file stands."""
    return tmp_path_factory.mktemp("bad") / "bad.kv.safetensors"
