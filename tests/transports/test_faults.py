"""Whatever happens to a store or on the way to it: an error within a bounded time, and never a wrong cache."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import zmq

from unspoken.cache import KVCache
from unspoken.errors import CacheFileError, TransportFailed
from unspoken.transports import lmcache_server as server
from unspoken.transports.distributed import Distributed
from unspoken.transports.lmcache_client import Address, Server

from .conftest import LINUX_ONLY, free_address
from .faults import FAULTS, BadLine
from .samples import read, same

pytestmark = [LINUX_ONLY, pytest.mark.timeout(900)]

CHUNK = 16
SECONDS, HEALTHY_SECONDS = 0.5, 10.0
# A put asks a server a dozen times; each may wait as long as it is allowed to, and once more while it closes.
BOUND = 40 * SECONDS
LINE_FAULTS, KILLS = 190, 10


class Stand:
    """A server that is killed and started again, behind two bad lines."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.real = folder, free_address()
        server.start("main", folder, server.Limits(self.real, 0.25, CHUNK))
        self.lines = [BadLine(port, seed) for seed, port in enumerate((self.real.port, self.real.http_port))]
        self.address = Address("127.0.0.1", *(line.port for line in self.lines))

    def kill(self) -> None:
        """End the server as a power cut would."""
        found = server.running("main", self.folder)
        if found is not None:
            psutil.Process(found.pid).kill()
            psutil.Process(found.pid).wait()

    def mend(self) -> bool:
        """Bring everything into working order; tell whether the server is a new one."""
        for line in self.lines:
            line.heal()
        found = server.running("main", self.folder)
        if found is not None:
            try:
                server.usage(found.address, HEALTHY_SECONDS)
            except TransportFailed:  # Nonsense of some kinds ends LMCache's part that takes caches.
                server.stop("main", self.folder)
            else:
                return False
        server.start("main", self.folder, server.Limits(self.real, 0.25, CHUNK))
        return True

    def close(self) -> None:
        """End everything."""
        for line in self.lines:
            line.close()
        server.stop("main", self.folder)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """One for all faults."""
    found = Stand(tmp_path_factory.mktemp("stand"))
    yield found
    found.close()


def connect(address: Address, tenant: str, seconds: float = SECONDS) -> Distributed:
    return Distributed.on(Server(address, seconds), tenant)


def put(address: Address, key: str, cache: KVCache, seconds: float = SECONDS) -> str:
    """Put a cache and tell what came of it."""
    try:
        with connect(address, "t", seconds) as store:
            store.put(key, cache)
    except (TransportFailed, CacheFileError) as error:
        return f"refused: {error}"
    return "done"


def got(address: Address, key: str, allowed: list[KVCache], seconds: float = SECONDS) -> str:
    """Get a cache, which is one of those that may be there, and tell what came of it."""
    try:
        with connect(address, "t", seconds) as store:
            found = store.get(key).cache
    except (TransportFailed, CacheFileError) as error:
        return f"refused: {error}"
    assert any(same(found, each) for each in allowed)
    return "done"


def test_two_hundred_faults_leave_nothing_wrong_behind(stand: Stand) -> None:
    draw = random.Random(20261128)
    told: Counter[str] = Counter()
    ended = 0
    kills = set(draw.sample(range(LINE_FAULTS + KILLS), KILLS))
    longest = 0.0
    for number in range(LINE_FAULTS + KILLS):
        key, old, new = f"k{number}", read(f"Old {number}."), read(f"What is new is {number}.")
        with connect(stand.address, "t", HEALTHY_SECONDS) as store:
            store.put(key, old)
        act = draw.choice(("put", "get"))
        timer = None
        if number in kills:
            fault = "kill"
            timer = threading.Timer(draw.uniform(0.0, 0.4), stand.kill)
            timer.start()
        else:
            fault = draw.choice(FAULTS)
            draw.choice(stand.lines).strike(fault, draw.randrange(draw.choice((4_000, 30_000))))
        began = time.monotonic()
        outcome = put(stand.address, key, new) if act == "put" else got(stand.address, key, [old])
        longest = max(longest, time.monotonic() - began)
        told[outcome.partition(":")[0]] += 1
        if timer is not None:
            timer.join()
        anew = stand.mend()
        ended += anew and fault != "kill"
        # Where the server lived on, one of the two is there, as a whole, and after a put that was told to be done the
        # new one. Where it did not, what was in its memory is lost, and that is told.
        allowed = [new] if (act, outcome) == ("put", "done") else [old, new] if act == "put" else [old]
        after = got(stand.real, key, allowed, HEALTHY_SECONDS)
        # What was sent last may reach a server only after it has been looked at.
        assert anew or after == "done" or stand.mend(), (number, fault, act, outcome, after)
    assert longest < BOUND
    assert told["refused"] > 50
    assert ended < LINE_FAULTS / 10


def test_a_key_can_be_used_again_after_a_put_that_failed(stand: Stand) -> None:
    stand.mend()
    for number in range(10):
        stand.lines[0].strike("cut", 300 * number)
        put(stand.address, "again", read(f"Failed {number}."))
        stand.mend()
        assert put(stand.real, "again", read(f"Fine {number}."), HEALTHY_SECONDS) == "done"
        assert got(stand.real, "again", [read(f"Fine {number}.")], HEALTHY_SECONDS) == "done"


def test_a_server_that_a_malformed_message_has_ended_is_told_and_can_be_started_anew(stand: Stand) -> None:
    stand.mend()
    context = zmq.Context()
    with context.socket(zmq.DEALER) as rude:
        rude.connect(f"tcp://127.0.0.1:{stand.real.port}")
        rude.send(b"too short")
        until = time.monotonic() + HEALTHY_SECONDS
        while put(stand.real, "never", read("Never."), SECONDS) == "done":
            assert time.monotonic() < until
    context.term()
    with pytest.raises(TransportFailed, match="takes no caches any more"):
        server.usage(stand.real, SECONDS)
    assert stand.mend()
    assert put(stand.real, "anew", read("Anew."), HEALTHY_SECONDS) == "done"


def test_something_else_that_listens_there_is_told(stand: Stand) -> None:
    stand.mend()
    # The ports the wrong way round: what speaks ZeroMQ is asked over HTTP, and the other way.
    swapped = Address("127.0.0.1", stand.real.http_port, stand.real.port)
    began = time.monotonic()
    with pytest.raises(TransportFailed, match="cannot be used"):
        connect(swapped, "t")
    with pytest.raises(TransportFailed):
        connect(replace(stand.real, port=stand.real.http_port), "t")
    assert time.monotonic() - began < BOUND
