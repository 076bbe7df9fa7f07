"""Receiving: header, seal, nonce, then tensors, and of no file but the one whose seal was verified."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from unspoken.cache import KVCache
from unspoken.cachefile import Caps, peek, read_cache, read_packed, write_cache
from unspoken.cachefile.sealed import Seal
from unspoken.errors import CacheFileError, SealRefused, StorageError
from unspoken.trust.keys import SigningKey
from unspoken.trust.nonces import Ledger
from unspoken.trust.receiving import admit, receive
from unspoken.trust.seals import seal_file
from unspoken.trust.store import TrustStore

from .sealing import NOW

Keys = dict[str, SigningKey]


def test_an_honest_file_is_received_once(sealed: Path, store: TrustStore, ledger: Ledger, original: KVCache) -> None:
    cache, trusted = receive(sealed, store, ledger, now=NOW, session="tea", expected_sender="lyra")
    assert trusted.sender == "lyra"
    assert cache.manifest == original.manifest
    for mine, other in zip(cache.layers, original.layers, strict=True):
        for part in ("keys", "values", "positions"):
            assert torch.equal(getattr(mine, part), getattr(other, part))
    shutil.copy(sealed, sealed.with_name("copy.kv.safetensors"))
    for path in (sealed, sealed.with_name("copy.kv.safetensors")):
        with pytest.raises(SealRefused, match="it is replayed"):
            receive(path, store, ledger, now=NOW + 10)
    with pytest.raises(SealRefused, match="expired"):
        receive(sealed, store, ledger, now=NOW + 5000)


def test_the_same_file_sealed_again_is_received_again(
    sealed: Path, store: TrustStore, ledger: Ledger, own: Keys
) -> None:
    receive(sealed, store, ledger, now=NOW)
    seal_file(sealed, own["lyra"], sender="lyra", seconds_to_live=60, now=NOW)
    assert receive(sealed, store, ledger, now=NOW)[1].sender == "lyra"


def test_some_layers_can_be_received_alone(sealed: Path, store: TrustStore, original: KVCache) -> None:
    cache, _ = receive(sealed, store, layers=[1], now=NOW)
    assert [layer.index for layer in cache.layers] == [1]
    assert torch.equal(cache.layers[0].keys, original.layers[1].keys)


def test_a_refused_file_uses_up_no_nonce_and_no_tensor_is_touched(
    sealed: Path, plain: Path, store: TrustStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch, "from_file", lambda *_, **__: pytest.fail("the data was touched"))
        for path, now, session in ((plain, NOW, None), (sealed, NOW + 3600, None), (sealed, NOW, "coffee")):
            with pytest.raises(SealRefused):
                receive(path, store, ledger, now=now, session=session)
        with pytest.raises(CacheFileError, match="at most 10 and"):
            receive(sealed, store, ledger, now=NOW, caps=Caps(header_bytes=10))
        assert not ledger.path.exists()
    receive(sealed, store, ledger, now=NOW)


def test_a_replay_is_refused_before_any_tensor_is_touched(
    sealed: Path, store: TrustStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit(sealed, store, ledger, now=NOW)
    monkeypatch.setattr(torch, "from_file", lambda *_, **__: pytest.fail("the data was touched"))
    with pytest.raises(SealRefused, match="it is replayed"):
        receive(sealed, store, ledger, now=NOW)


def test_the_clock_of_the_machine_is_the_default(
    sealed: Path, store: TrustStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspoken.trust.receiving.time.time", lambda: NOW + 3599.9)
    assert admit(sealed, store).trusted.sender == "lyra"
    monkeypatch.setattr("unspoken.trust.receiving.time.time", lambda: NOW + 3600.1)
    with pytest.raises(SealRefused, match="expired"):
        admit(sealed, store)


@pytest.mark.parametrize("kind", ["longer", "shorter", "of the same size", "with a longer header", "gone"])
def test_a_file_that_is_exchanged_after_it_was_judged_is_refused(
    sealed: Path, store: TrustStore, original: KVCache, own: Keys, kind: str
) -> None:
    header = admit(sealed, store, now=NOW).header
    if kind == "gone":
        sealed.unlink()
    elif kind == "of the same size":
        raw = bytearray(sealed.read_bytes())
        raw[-1] ^= 1
        sealed.with_name("evil").write_bytes(raw)
        sealed.with_name("evil").replace(sealed)
    elif kind == "with a longer header":
        seal_file(sealed, own["lyra"], sender="lyra", session="x" * 200, seconds_to_live=60)
    else:
        write_cache(original.slice(0, 5) if kind == "shorter" else original.concat(original), sealed)
    for read in (read_cache, read_packed):
        with pytest.raises((CacheFileError, StorageError)):
            read(sealed, header=header)


def test_a_header_that_was_judged_reads_the_file_it_came_from(sealed: Path, original: KVCache) -> None:
    assert read_cache(sealed, header=peek(sealed)).manifest == original.manifest


def test_a_file_that_is_exchanged_while_it_is_received_is_refused(
    sealed: Path, store: TrustStore, ledger: Ledger, original: KVCache
) -> None:
    class Exchanging(Ledger):
        """The moment between the seal and the tensors."""

        def record(self, seal: Seal, now: int) -> None:
            write_cache(original.slice(0, 5), sealed)

    with pytest.raises((CacheFileError, StorageError)):
        receive(sealed, store, Exchanging(ledger.folder), now=NOW)
    assert read_cache(sealed).columns == 5  # By itself, what stands there now is sound.
