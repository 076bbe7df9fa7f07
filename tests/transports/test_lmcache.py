"""Caches in a real LMCache server: by tokens, as bytes, for one tenant, and what the pin is for."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import torch

from unspoken.cache import KVCache, KVLayer
from unspoken.channels.carried import completed, take_up
from unspoken.engines.fake import FakeEngine
from unspoken.errors import CacheFileError, StorageError, TransportFailed, UsageError
from unspoken.session import Agent
from unspoken.transports import keylog, open_transport
from unspoken.transports import lmcache_client as client
from unspoken.transports import lmcache_server as server
from unspoken.transports.distributed import Distributed
from unspoken.transports.lmcache_client import Address, Server
from unspoken.transports.parting import addressed

from .conftest import LINUX_ONLY, free_address
from .samples import MILL, eventually, read, same, same_columns

pytestmark = LINUX_ONLY
CHUNK = 16


@pytest.fixture
def store(lmcache: Address, tmp_path: Path) -> Iterator[Distributed]:
    """A tenant of its own on the server."""
    with Distributed.on(Server(lmcache), tmp_path.name) as found:
        yield found


@pytest.fixture
def whole() -> KVCache:
    """A plain reading, from the first position on."""
    return Agent("lyra", FakeEngine()).read(f"{MILL} The new one stands still.").cache


def changed(cache: KVCache) -> KVCache:
    """Return a cache that says it is a plain reading, with another number in it."""
    layers = [KVLayer(each.index, each.keys.clone(), each.values, each.positions) for each in cache.layers]
    layers[-1].keys[0, 0, 0] += 1
    return KVCache(tuple(layers), cache.manifest)


def test_what_one_process_puts_another_gets(store: Distributed, lmcache: Address, tmp_path: Path) -> None:
    address = f"lmcache:{tmp_path.name}@{lmcache}"
    putting = multiprocessing.get_context("spawn").Process(target=_put, args=(address,))
    putting.start()
    putting.join()
    assert putting.exitcode == 0
    assert same(store.get("k").cache, read(MILL))


def _put(address: str) -> None:
    with open_transport(address) as transport:
        transport.put("k", read(MILL))


def test_a_plain_reading_is_kept_by_its_tokens_and_its_tail_is_read_again(store: Distributed, whole: KVCache) -> None:
    columns = whole.columns // CHUNK * CHUNK
    assert 0 < columns < whole.columns
    assert addressed(whole, None, CHUNK) == columns
    store.put("k", whole)
    found = store.get("k")
    assert same_columns(found.cache, whole.slice(0, columns))
    assert found.missing == (whole.manifest.token_ids or ())[columns:]
    assert same_columns(completed(found, FakeEngine()), whole)
    # Put once more under another key, there is one more header, and the columns are those that were there.
    with httpx.Client(base_url=store.server.address.http) as asking:
        before = asking.get("/status").json()["storage_manager"]["l1_manager"]["total_object_count"]
        store.put("other", whole)
        after = asking.get("/status").json()["storage_manager"]["l1_manager"]["total_object_count"]
    assert after - before == 2
    assert same_columns(store.get("other").cache, found.cache)


def test_a_receiver_of_a_parted_cache_is_told_what_it_read(
    store: Distributed, whole: KVCache, lmcache: Address, tmp_path: Path
) -> None:
    store.put("k", whole)
    taken = take_up(Agent("vera", FakeEngine()), f"lmcache:{tmp_path.name}@{lmcache}", "k")
    left = whole.columns % CHUNK
    assert taken.lost is None
    assert taken.delivery.tokens_prefilled >= left
    assert taken.delivery.bytes_moved == store.get("k").bytes_moved


def test_what_is_no_plain_reading_is_kept_whole(store: Distributed, whole: KVCache) -> None:
    others = {
        "moved": read(MILL),
        "cut": whole.slice(0, 32),
        "without tokens": whole.without_tokens(),
        "elsewhere": KVCache(
            tuple(replace(layer, positions=layer.positions + 1) for layer in whole.layers), whole.manifest
        ),
    }
    for name, cache in others.items():
        assert addressed(cache, None, CHUNK) == 0, name
        store.put("k", cache)
        found = store.get("k")
        assert same_columns(found.cache, cache), name
        assert found.missing == ()
    assert addressed(whole, "int8", CHUNK) == 0


def test_columns_that_claim_anothers_tokens_stand_beside_them(store: Distributed, whole: KVCache) -> None:
    store.put("k", whole)
    forged = changed(whole)
    assert addressed(forged, None, CHUNK)
    store.put("other", forged)
    assert same_columns(store.get("other").cache, forged)
    assert same_columns(store.get("k").cache, whole.slice(0, whole.columns // CHUNK * CHUNK))


def test_columns_that_somebody_else_left_under_the_tokens_are_told(store: Distributed, whole: KVCache) -> None:
    """Who may write to a store may write there what the digests of the header do not know."""
    store.put("k", whole)
    info, tenant = whole.manifest, store.tenant
    ids = (info.token_ids or ())[: whole.columns // CHUNK * CHUNK]
    room = next(iter(store._columns.values()))
    rows = room.get(ids, tenant)
    assert rows is not None
    engine = "-".join(info.engines())
    name = f"unspoken-{info.spec.weights}-{info.spec.architecture}-{engine}-{info.dtype}"
    store.server.delete(name, ids, tenant)
    with pytest.raises(TransportFailed, match="has lost some of what was put"):
        store.get("k")
    room.put(ids, rows + 1, tenant)
    with pytest.raises(CacheFileError, match="does not match its digest"):
        store.get("k")


def test_another_tenant_gets_nothing(store: Distributed, whole: KVCache, lmcache: Address) -> None:
    store.put("k", whole)
    store.put("other", read(MILL))
    with open_transport(f"lmcache:somebody-else@{lmcache}") as theirs:
        for key in ("k", "other"):
            with pytest.raises(TransportFailed, match="There is nothing"):
                theirs.get(key)
        assert isinstance(theirs, Distributed)
        assert theirs._room(whole.manifest).get(whole.manifest.token_ids or (), theirs.tenant) is None
        assert theirs._room(whole.manifest).get(whole.manifest.token_ids or (), store.tenant) is not None


def test_a_log_says_what_happened_in_order_and_ends(store: Distributed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keylog, "RECORDS", 3)
    store.put("k", read("one"))
    store.delete("k")
    store.put("k", read("two"))
    with pytest.raises(TransportFailed, match="is as often as it goes"):
        store.put("k", read("three"))
    assert same(store.get("k").cache, read("two"))


def test_two_who_put_at_once_both_stand_in_the_log(store: Distributed, monkeypatch: pytest.MonkeyPatch) -> None:
    log = keylog.KeyLog(store.small)
    put, theirs = client.Space.put, keylog.Record("them", 1, "d", 1)

    def first(self: client.Space, *args: Any) -> None:
        monkeypatch.setattr(client.Space, "put", put)
        log.append("k", theirs)
        put(self, *args)

    monkeypatch.setattr(client.Space, "put", first)
    ours = keylog.Record("us", 1, "d", 1)
    log.append("k", ours)
    assert log._all("k") == [theirs, ours]


def test_what_a_store_says_of_a_key_may_be_nonsense(store: Distributed) -> None:
    small = store.small
    ids = small.ids("log/k", 1)
    small.space.put(ids, torch.full((2, 1, CHUNK, small.size // 2 // CHUNK), 7, dtype=torch.uint8), small.salt)
    with pytest.raises(CacheFileError, match="is damaged"):
        store.get("k")
    huge = keylog.Record("n", 1 << 60, "0", 1 << 60)
    keylog.KeyLog(small).append("other", huge)
    with pytest.raises(TransportFailed, match="has lost some"):
        store.get("other")


def test_a_store_without_room_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    found = server.start("small", tmp_path, server.Limits(free_address(), 0.03, CHUNK))
    try:
        with open_transport(f"lmcache:{found.address}") as store:
            store.put("k", read(MILL))
            large = read("x" * 3000)
            layers = tuple(
                KVLayer(at, *(torch.rand(2, 400_000, 8) for _ in range(2)), torch.arange(400_000, dtype=torch.int32))
                for at in range(2)
            )
            huge = KVCache.build(layers, large.spec)
            with pytest.raises(TransportFailed, match="there may be no room"):
                store.put("k", huge)
            try:
                assert same(store.get("k").cache, read(MILL))
            except TransportFailed as error:  # It may have made room for what it could not keep after all.
                assert "There is nothing" in error.problem or "has lost" in error.problem  # noqa: PT017
            store.put("k", read(MILL))
            assert same(store.get("k").cache, read(MILL))
    finally:
        server.stop("small", tmp_path)


def test_only_the_pinned_release_is_spoken_to(lmcache: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.version("lmcache") == client.PIN
    monkeypatch.setattr(client, "PIN", "0.9.9")
    with pytest.raises(UsageError, match=r"LMCache 0\.9\.9 is needed, found: 0\.5\.6"):
        open_transport(f"lmcache:{lmcache}")
    monkeypatch.setattr(client, "version", lambda _: "0.9.9")
    with pytest.raises(TransportFailed, match=r"is release 0\.5\.6.*expected 0\.9\.9"):
        open_transport(f"lmcache:{lmcache}")


def test_what_is_used_of_the_pinned_release_is_there(lmcache: Address) -> None:
    """The contract: a newer release that passes this and the rest of these tests may be pinned."""
    from lmcache.sdk.context import LMCacheSDKContext

    dummy = {f"layer.{at}": torch.zeros(1, 2, 1, CHUNK, 8) for at in range(2)}
    made = client._registered(Server(lmcache), "contract", dummy, 1, 8)
    try:
        assert isinstance(made, LMCacheSDKContext)
        rows = torch.rand(2, 2, 3 * CHUNK + 1, 8)
        ids = list(range(rows.shape[2]))
        assert made.store(rows, ids, "t")
        assert torch.equal(made.retrieve(ids, "t"), rows[:, :, : 3 * CHUNK])
        assert torch.equal(made.retrieve([*ids[: 2 * CHUNK], *ids], "t"), rows[:, :, : 2 * CHUNK])
        assert made.retrieve([1, *ids], "t") is None
        assert made.retrieve(ids, "u") is None
        assert not made.store(rows + 1, ids, "t")
        assert torch.equal(made.retrieve(ids, "t"), rows[:, :, : 3 * CHUNK])
        keys = client._object_keys(CHUNK, "contract", ids, "t")
        assert len(keys) == 3
    finally:
        made.close()


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("localhost", "is no address"),
        ("localhost:1:2:3", "is no address"),
        ("a@b@c:1:2", "is no address"),
        ("../x@127.0.0.1:1:2", "is no key"),
        ("@127.0.0.1:1:2", "is no key"),
    ],
)
def test_what_is_no_address_is_told(where: str, told: str, lmcache: Address) -> None:
    where = where.replace("127.0.0.1:1:2", str(lmcache))
    with pytest.raises(UsageError, match=told):
        open_transport(f"lmcache:{where}")


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(TransportFailed, match="cannot be used"):
        open_transport(f"lmcache:{free_address()}")


def test_a_store_is_started_once_and_ended(tmp_path: Path) -> None:
    limits = server.Limits(free_address(), 0.1, CHUNK)
    found = server.start("main", tmp_path, limits)
    assert server.names(tmp_path) == ("main",)
    assert server.running("main", tmp_path) == found
    assert server.usage(found.address)["chunk"] == CHUNK
    with pytest.raises(UsageError, match="runs already"):
        server.start("main", tmp_path, limits)
    with pytest.raises(UsageError, match="cannot be listened at"):
        server.start("second", tmp_path, limits)
    os.kill(found.pid, signal.SIGKILL)
    assert eventually(lambda: server.running("main", tmp_path) is None)
    with pytest.raises(TransportFailed, match="does not tell its state"):
        server.usage(found.address)
    with pytest.raises(TransportFailed, match="No store named 'main' runs"):
        server.stop("main", tmp_path)
    assert server.names(tmp_path) == ()


def test_a_process_that_only_has_the_number_of_a_server_is_left_alone(tmp_path: Path) -> None:
    mine = server.Running(os.getpid(), 1.0, "127.0.0.1", 1, 2, "log")
    (tmp_path / "main.json").write_bytes(msgspec.json.encode(mine))
    assert server.running("main", tmp_path) is None
    (tmp_path / "main.json").write_text("{")
    with pytest.raises(StorageError, match="cannot be read"):
        server.running("main", tmp_path)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (server.Limits(chunk=48), "A chunk of 48 tokens"),
        (server.Limits(chunk=0), "A chunk of 0 tokens"),
        (server.Limits(memory_gb=0.0), "holds nothing"),
        (server.Limits(memory_gb=float("nan")), "holds nothing"),
        (server.Limits(memory_gb=1e6), "GiB of shared memory, and"),
        (server.Limits(Address("127.0.0.1", 70_000, 1)), "cannot be listened at"),
        (server.Limits(Address("no.such.host.invalid", 7000, 1)), "cannot be listened at"),
    ],
)
def test_limits_that_make_no_sense_are_told(limits: server.Limits, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        server.start("main", tmp_path, limits)


def test_a_server_that_does_not_start_tells_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_command", lambda _: [sys.executable, "-c", "raise SystemExit('no luck')"])
    with pytest.raises(TransportFailed, match="did not start: no luck"):
        server.start("main", tmp_path, server.Limits(free_address(), 0.1))
    assert server.names(tmp_path) == ()


def test_tiers_are_what_the_server_is_told() -> None:
    assert server.redis("cache:6379") == {"type": "resp", "host": "cache", "port": 6379, "num_workers": 2}
    with pytest.raises(UsageError, match="no address of a Redis"):
        server.redis("cache")
    command = server._command(server.Limits(tiers=(server.redis("cache:6379"),)))
    assert json.loads(command[command.index("--l2-adapter") + 1])["type"] == "resp"
