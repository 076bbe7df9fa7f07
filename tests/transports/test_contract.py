"""What every transport has to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.cache import KVCache
from unspoken.cachefile import Header
from unspoken.errors import SealRefused, TransportFailed, UsageError
from unspoken.transports import Transport
from unspoken.trust.keys import create_key, load_key
from unspoken.trust.seals import signer, verify_seal
from unspoken.trust.store import TrustStore

from .samples import read, same

BAD_KEYS = ("", ".", "..", "../up", "a/b", "a\\b", "/abs", ".hidden", "a\0b", "ü", "a" * 129, "a b", "a\n")


def test_what_was_put_is_what_comes(transport: Transport, cache: KVCache) -> None:
    manifest = transport.put("k", cache)
    found = transport.get("k")
    assert found.header.manifest == manifest
    assert found.bytes_moved >= cache.bytes_held()
    assert same(found.cache, cache)
    assert found.missing == ()
    assert found.header.seal is None
    transport.put("other", read("x"))
    assert same(transport.get("k").cache, cache)


def test_what_is_packed_comes_unpacked(transport: Transport, cache: KVCache) -> None:
    transport.put("k", cache, "int8")
    found = transport.get("k")
    assert found.bytes_moved < cache.bytes_held() / 2
    assert found.header.manifest.cache.dtype == "int8"
    for one, other in zip(found.cache.layers, cache.layers, strict=True):
        assert torch.allclose(one.keys, other.keys, atol=0.02)


def test_what_is_put_again_stands_in_its_place_and_who_has_the_old_keeps_it(
    transport: Transport, cache: KVCache
) -> None:
    transport.put("k", cache)
    old = transport.get("k")
    newer = read("Bob has left.")
    transport.put("k", newer)
    assert same(transport.get("k").cache, newer)
    assert same(old.cache, cache)
    transport.delete("k")
    assert same(old.cache, cache)


def test_what_is_deleted_or_was_never_put_is_not_there(transport: Transport, cache: KVCache) -> None:
    transport.put("k", cache)
    transport.delete("k")
    for act in (transport.get, transport.delete):
        with pytest.raises(TransportFailed, match="There is nothing under 'k'"):
            act("k")


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_is_never_a_path(transport: Transport, cache: KVCache, key: str) -> None:
    acts: list[Callable[[], Any]] = [
        lambda: transport.put(key, cache),
        lambda: transport.get(key),
        lambda: transport.delete(key),
    ]
    for act in acts:
        with pytest.raises(UsageError, match="is no key"):
            act()


def test_a_seal_is_judged_before_a_column_is_read(transport: Transport, cache: KVCache, tmp_path: Path) -> None:
    create_key("lyra", tmp_path / "keys")
    store = TrustStore(tmp_path / "trust")

    def judge(header: Header) -> None:
        verify_seal(header, store, now=1_800_000_000, session="tea")

    key = load_key("lyra", tmp_path / "keys")
    sign = signer(key, sender="lyra", session="tea", seconds_to_live=60, now=1_800_000_000)
    transport.put("k", cache, sign=sign)
    with pytest.raises(SealRefused, match="nobody known has"):
        transport.get("k", judge)
    store.add("lyra", key.public.key)
    assert same(transport.get("k", judge).cache, cache)
    transport.put("k", cache)
    with pytest.raises(SealRefused, match="is not sealed"):
        transport.get("k", judge)
