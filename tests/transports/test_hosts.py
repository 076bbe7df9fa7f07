"""Two hosts: network namespaces of the test's own, with nothing between them but a cable."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from unspoken.transports import tensorpickle

from .conftest import LINUX_ONLY

pytestmark = LINUX_ONLY
HERE, THERE = "10.77.31.1", "10.77.31.2"
SENDER = """
import sys, torch
from pathlib import Path
from tests.transports.samples import MILL, read
from unspoken.engines.fake import FakeEngine
from unspoken.session import Agent
from unspoken.transports import open_transport
from unspoken.transports.lmcache_client import Address
from unspoken.transports.lmcache_server import Limits, start, stop
folder = Path(sys.argv[1])
found = start("main", folder, Limits(Address(sys.argv[2], 15555, 18081), 0.1, 16))
with open_transport(f"lmcache:{found.address}") as store:
    store.put("moved", read(MILL))
    store.put("whole", Agent("lyra", FakeEngine()).read(MILL * 3).cache)
print("ready", flush=True)
sys.stdin.read()
stop("main", folder)
"""
RECEIVER = """
import os, sys
from tests.transports.samples import MILL, read, same, same_columns
from unspoken.channels.carried import completed
from unspoken.engines.fake import FakeEngine
from unspoken.errors import TransportFailed
from unspoken.session import Agent
from unspoken.transports import open_transport
assert not [each for each in os.listdir("/dev/shm") if "lmcache" in each], "the memory of the other host is seen"
with open_transport(f"lmcache:{sys.argv[1]}:15555:18081") as store:
    assert same(store.get("moved").cache, read(MILL))
    found = store.get("whole")
    assert found.missing
    assert same_columns(completed(found, FakeEngine()), Agent("lyra", FakeEngine()).read(MILL * 3).cache)
    store.put("back", read("Bob has left."))
    assert same(store.get("back").cache, read("Bob has left."))
try:
    open_transport(f"lmcache:{sys.argv[1]}:15556:18082")
except TransportFailed as error:
    print(error.problem)
print("done")
"""


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "mount"))):
        pytest.skip("network namespaces take root and iproute2")
    names = (f"unspoken-a{os.getpid()}", f"unspoken-b{os.getpid()}")
    wires = (f"ua{os.getpid() % 10_000}", f"ub{os.getpid() % 10_000}")
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", wires[0], "type", "veth", "peer", "name", wires[1])
        for name, wire, address in zip(names, wires, (HERE, THERE), strict=True):
            _run("ip", "link", "set", wire, "netns", name)
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", wire)
            for link in (wire, "lo"):
                _run("ip", "-n", name, "link", "set", link, "up")
        _run("unshare", "--mount", "mount", "-t", "tmpfs", "none", "/dev/shm")  # noqa: S108
    except subprocess.CalledProcessError as error:
        _remove(names)
        pytest.skip(f"this machine makes no network namespaces: {error.stderr.decode().strip()}")
    yield names
    _remove(names)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _remove(names: tuple[str, str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _on(host: str, code: str, *arguments: str) -> list[str]:
    """Return the command that runs Python on a host, which has shared memory of its own."""
    program = 'mount -t tmpfs none /dev/shm && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", program, "sh", sys.executable, "-c", code, *arguments]
    return ["ip", "netns", "exec", host, *inside]


def test_a_cache_gets_from_one_host_to_another(hosts: tuple[str, str], tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'code'}"}
    with subprocess.Popen(
        _on(hosts[0], SENDER, str(tmp_path), HERE), env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as sender:
        assert sender.stdout is not None
        assert sender.stdin is not None
        try:
            assert sender.stdout.readline() == b"ready\n"
            got = subprocess.run(_on(hosts[1], RECEIVER, HERE), env=env, capture_output=True, timeout=120, check=False)
        finally:
            sender.stdin.close()
        assert got.returncode == 0, got.stderr.decode()
        told, done = got.stdout.decode().splitlines()
        assert "cannot be used" in told
        assert done == "done"


def test_only_tensors_come_out_of_what_hosts_send() -> None:
    sent = [torch.arange(6).reshape(2, 3).to(kind) for kind in (torch.uint8, torch.float32, torch.bfloat16)]
    for one, other in zip(tensorpickle.loads(tensorpickle.dumps(sent)), sent, strict=True):
        assert torch.equal(one, other)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    nested = pickle.dumps(torch.zeros(1).untyped_storage()).replace(b"_load_from_bytes", b"_load_from_bytez")
    for bad in (pickle.dumps([Evil()]), nested, b"", b"\x80\x04."):
        with pytest.raises((pickle.UnpicklingError, EOFError, IndexError)):
            tensorpickle.loads(bad)
    storage = pickle.dumps(torch.storage._load_from_bytes)
    assert tensorpickle.loads(storage) is not torch.storage._load_from_bytes
