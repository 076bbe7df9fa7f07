"""What every transport has to do, and what folders have to do besides."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unspoken.cache import KVCache
from unspoken.cachefile import Header
from unspoken.engines.fake import FakeEngine
from unspoken.errors import CacheFileError, SealRefused, StorageError, TransportFailed, UsageError
from unspoken.session import Agent
from unspoken.transports import Transport, open_transport
from unspoken.transports.folder import SHARED_MEMORY
from unspoken.trust.keys import create_key, load_key
from unspoken.trust.seals import signer, verify_seal
from unspoken.trust.store import TrustStore

BAD_KEYS = ("", ".", "..", "../up", "a/b", "a\\b", "/abs", ".hidden", "a\0b", "ü", "a" * 129, "a b", "a\n")


@pytest.fixture(params=["memory", "shm", "file"])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Transport]:
    """Each transport, with nothing in it that a test has not put there."""
    address = {"file": f"file:{tmp_path / 'store'}", "shm": f"shm:test-{os.getpid()}"}.get(request.param, request.param)
    if request.param == "shm" and not SHARED_MEMORY.is_dir():
        pytest.skip("this machine has no shared memory")
    found = open_transport(address)
    assert isinstance(found, Transport)
    yield found
    for left in ("k", "other"):
        try:
            found.delete(left)
        except TransportFailed:
            continue
    path = getattr(found, "path", None)
    found.close()
    if request.param == "shm":
        path.rmdir()


@pytest.fixture
def cache() -> KVCache:
    """What an agent has in mind that has read something."""
    return read("The old mill is run by Anna.")


def read(text: str) -> KVCache:
    return Agent("lyra", FakeEngine()).read(text).cache


def same(left: KVCache, right: KVCache) -> bool:
    assert left.manifest == right.manifest
    return all(
        torch.equal(getattr(one, part), getattr(other, part))
        for one, other in zip(left.layers, right.layers, strict=True)
        for part in ("keys", "values", "positions")
    )


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


def _put(address: str, text: str) -> None:
    with_ = open_transport(address)
    with_.put("k", read(text))
    with_.close()


def test_another_process_gets_it(tmp_path: Path) -> None:
    address = f"file:{tmp_path}"
    putting = multiprocessing.get_context("spawn").Process(target=_put, args=(address, "The old mill is run by Anna."))
    putting.start()
    putting.join()
    assert putting.exitcode == 0
    assert same(open_transport(address).get("k").cache, read("The old mill is run by Anna."))


def test_what_lies_in_memory_ends_with_it(cache: KVCache) -> None:
    transport = open_transport("memory")
    transport.put("k", cache)
    path = transport.path  # type: ignore[attr-defined]
    assert path.is_dir()
    transport.close()
    assert not path.exists()


def test_whoever_is_killed_while_putting_leaves_the_old_one(tmp_path: Path, cache: KVCache) -> None:
    transport = open_transport(f"file:{tmp_path}")
    transport.put("k", cache)
    script = (
        "import os, signal, sys\n"
        "from unspoken.cachefile import writer\n"
        "own = writer._write_at\n"
        "def killed(*args):\n"
        "    own(*args)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "writer._write_at = killed\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from unspoken.engines.fake import FakeEngine\n"
        "from unspoken.session import Agent\n"
        "from unspoken.transports import open_transport\n"
        "open_transport(sys.argv[1]).put('k', Agent('lyra', FakeEngine()).read('Bob has left.').cache)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, f"file:{tmp_path}", ""], check=False)
    assert done.returncode == -signal.SIGKILL
    assert same(transport.get("k").cache, cache)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_told_and_never_a_cache(tmp_path: Path, cache: KVCache, data: st.DataObject) -> None:
    transport = open_transport(f"file:{tmp_path}")
    transport.put("k", cache)
    file = tmp_path / "k.kv.safetensors"
    whole = bytearray(file.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(whole)
    try:
        found = transport.get("k").cache
    except (CacheFileError, TransportFailed):
        return
    # A changed label may pass where nothing is sealed; a changed number may not.
    assert all(
        torch.equal(getattr(one, part), getattr(other, part))
        for one, other in zip(found.layers, cache.layers, strict=True)
        for part in ("keys", "values", "positions")
    )


def test_no_room_is_told_and_leaves_what_was_there(
    tmp_path: Path, cache: KVCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unspoken.cachefile import writer

    transport = open_transport(f"file:{tmp_path}")
    transport.put("k", cache)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write_at", full)
    with pytest.raises(StorageError, match="No space left"):
        transport.put("k", read("Bob has left."))
    monkeypatch.undo()
    assert same(transport.get("k").cache, cache)
    assert [each.name for each in tmp_path.iterdir()] == ["k.kv.safetensors"]


def test_somebody_elses_folder_in_shared_memory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspoken.transports.folder.SHARED_MEMORY", tmp_path)
    mine = tmp_path / f"unspoken-{os.getuid()}"
    mine.mkdir(mode=0o755)
    mine.chmod(0o755)
    with pytest.raises(TransportFailed, match="is not yours alone"):
        open_transport("shm")
    mine.chmod(0o700)
    assert isinstance(open_transport("shm"), Transport)
    mine.rename(tmp_path / "away")
    mine.symlink_to(tmp_path / "away")
    with pytest.raises(TransportFailed, match="is not yours alone"):
        open_transport("shm")
    monkeypatch.setattr("unspoken.transports.folder.SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(TransportFailed, match="no shared memory"):
        open_transport("shm")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("telepathy", "no transport named 'telepathy'"),
        ("file:", "no folder in the address"),
        ("memory:here", "names a place"),
        ("shm:../x", "is no key"),
        ("", "no transport named ''"),
    ],
)
def test_an_address_that_leads_nowhere_is_told(address: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_transport(address)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TransportFailed, match="cannot be used"):
        open_transport(f"file:{tmp_path / 'file' / 'folder'}")
