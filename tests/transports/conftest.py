"""Stores that tests share, and what they put there."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from unspoken.cache import KVCache
from unspoken.errors import TransportFailed
from unspoken.transports import Transport, open_transport
from unspoken.transports.folder import SHARED_MEMORY
from unspoken.transports.lmcache_client import Address
from unspoken.transports.lmcache_server import Limits, start, stop

from .samples import MILL, read

LINUX, WHY = sys.platform == "linux", "LMCache runs on Linux alone"
LINUX_ONLY = pytest.mark.skipif(not LINUX, reason=WHY)
KEYS = ("k", "other")


def free_address() -> Address:
    """Return an address where nobody listens."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", one.getsockname()[1], other.getsockname()[1])


@pytest.fixture(scope="session")
def lmcache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A real server."""
    if not LINUX:
        pytest.skip(WHY)
    folder, address = tmp_path_factory.mktemp("stores"), free_address()
    start("main", folder, Limits(address, memory_gb=0.5, chunk=16))
    yield address
    stop("main", folder)


@pytest.fixture(params=["memory", "shm", "file", "lmcache"])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Transport]:
    """Each transport, with nothing under the keys that tests use."""
    if request.param == "shm" and not SHARED_MEMORY.is_dir():
        pytest.skip("this machine has no shared memory")
    address = request.param
    if request.param == "lmcache":  # A tenant for each test: what is put there stays until the server ends.
        address = f"lmcache:{tmp_path.name}@{request.getfixturevalue('lmcache')}"
    elif request.param != "memory":
        address = {"file": f"file:{tmp_path / 'store'}", "shm": f"shm:test-{os.getpid()}"}[request.param]
    found = open_transport(address)
    assert isinstance(found, Transport)
    yield found
    for left in KEYS:
        try:
            found.delete(left)
        except TransportFailed:
            continue
    path = getattr(found, "path", None)
    found.close()
    if request.param == "shm" and path is not None:
        path.rmdir()


@pytest.fixture
def cache() -> KVCache:
    """What an agent has in mind that has read something."""
    return read(MILL)
