"""A cache file, a sender with a key, and a receiver who knows that key and a second one.

Nothing of the package is imported before a fixture runs, so that `--jaxtyping-packages` can hook in first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from unspoken.cache import KVCache
    from unspoken.trust.keys import SigningKey
    from unspoken.trust.nonces import Ledger
    from unspoken.trust.store import TrustStore

pytest.register_assert_rewrite(f"{__package__}.sealing")  # A failure in there shows its values, as one in a test does.


@pytest.fixture(scope="session")
def original() -> KVCache:
    """The cache behind every file."""
    from unspoken.engines.fake import FakeEngine
    from unspoken.engines.protocol import Piece, Prompt

    engine = FakeEngine()
    text = engine.encode("The old mill is run by Anna")
    return engine.prefill(Prompt((Piece("content", text),))).labelled(sender="lyra")


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SigningKey]:
    """The keys of lyra and vera, whom the receiver knows, and of mallory, whom nobody does."""
    from unspoken.trust.keys import create_key, load_key

    folder = tmp_path_factory.mktemp("own")
    for name in ("lyra", "vera", "mallory"):
        create_key(name, folder)
    return {name: load_key(name, folder) for name in ("lyra", "vera", "mallory")}


@pytest.fixture(scope="session")
def store(own: dict[str, SigningKey], tmp_path_factory: pytest.TempPathFactory) -> TrustStore:
    """The receiver's known senders."""
    from unspoken.trust.store import TrustStore

    known = TrustStore(tmp_path_factory.mktemp("known"))
    for name in ("lyra", "vera"):
        known.add(name, own[name].public.key)
    return known


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """The receiver's nonces."""
    from unspoken.trust.nonces import Ledger

    return Ledger(tmp_path / "ledger")


@pytest.fixture
def plain(original: KVCache, tmp_path: Path) -> Path:
    """A file that nobody has sealed."""
    from unspoken.cachefile import write_cache

    path = tmp_path / "plain.kv.safetensors"
    write_cache(original, path)
    return path


@pytest.fixture
def sealed(plain: Path, own: dict[str, SigningKey]) -> Path:
    """The same, sealed by lyra at the moment `NOW` for an hour and the session `tea`."""
    from unspoken.trust.seals import seal_file

    from .sealing import NOW

    path = plain.with_name("sealed.kv.safetensors")
    seal_file(plain, own["lyra"], sender="lyra", session="tea", seconds_to_live=3600, out=path, now=NOW)
    return path
