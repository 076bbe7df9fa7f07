"""Start and stop an LMCache server of the pinned release, within limits, for this machine alone by default."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from unspoken.errors import StorageError, TransportFailed, UsageError
from unspoken.transports.folder import SHARED_MEMORY
from unspoken.transports.lmcache_client import Address, require_answer, require_pinned
from unspoken.transports.protocol import require_key

START_SECONDS = 90.0
STOP_SECONDS = 10.0
ANEW = "Start it anew: `unspoken store down`, then `unspoken store up`."


@dataclass(frozen=True)
class Limits:
    """What a server is started with.

    Attributes:
        address: Where it listens; whoever reaches it may read, write and delete everything.
        memory_gb: Memory for caches, GiB, taken at the start.
        chunk: Tokens of a chunk. vLLM on a CPU needs a multiple of 32.
        tiers: Where caches go besides, as LMCache's L2 adapters; other servers with the same ones find them there.
    """

    address: Address = field(default_factory=Address)
    memory_gb: float = 2.0
    chunk: int = 32
    tiers: tuple[dict[str, Any], ...] = ()


class Running(msgspec.Struct, frozen=True):
    """What is kept about a server that was started.

    Attributes:
        pid: Its process.
        started: When that process began, seconds since 1970: a number may be given again.
        host, port, http_port: Where it listens.
        log: Its log file.
    """

    pid: int
    started: float
    host: str
    port: int
    http_port: int
    log: str

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(self.host, self.port, self.http_port)


def shared_folder(path: Path) -> dict[str, Any]:
    """Return the tier that is a folder, on a share say; made for its owner alone if it is not there.

    Raises:
        StorageError: If it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"The folder {path} cannot be made: {error.strerror}.", "Choose another.") from error
    return {"type": "fs", "base_path": str(path.resolve())}


def redis(where: str) -> dict[str, Any]:
    """Return the tier that is a Redis or Valkey server at `HOST:PORT`.

    Raises:
        UsageError: If that is no address.
    """
    host, _, port = where.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"'{where}' is no address of a Redis server.", "Write HOST:PORT.")
    return {"type": "resp", "host": host, "port": int(port), "num_workers": 2}


def start(name: str, folder: Path, limits: Limits) -> Running:
    """Start a server that goes on after this process, and return it once it answers.

    Args:
        name: What it is asked for by, from now on.
        folder: Where it is kept what runs, and the logs.
        limits: What it is started with.

    Raises:
        UsageError: If one of this name runs, a limit makes no sense, or LMCache is not installed.
        TransportFailed: If it does not start; the message has the end of its log.
        StorageError: If the folder cannot be written.
    """
    require_pinned()
    _check(limits)
    if running(name, folder) is not None:
        raise UsageError(
            f"A store named '{name}' runs already.", "Give another --name, or `unspoken store down` first."
        )
    for port in (limits.address.port, limits.address.http_port):
        _require_free(limits.address.host, port)
    log = folder / f"{name}.log"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(log, "wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                _command(limits), stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=_environment(),
                start_new_session=True, cwd=folder,
            )  # fmt: skip
    except OSError as error:
        raise StorageError(f"The folder {folder} cannot be used: {error.strerror}.", "Choose another home.") from error
    _wait_until_ready(process, limits.address, log)
    found = Running(process.pid, _began(process.pid) or 0.0, *_parts(limits.address), str(log))
    (folder / f"{name}.json").write_bytes(msgspec.json.encode(found))
    return found


def running(name: str, folder: Path) -> Running | None:
    """Return the server of a name if it runs.

    Raises:
        StorageError: If what is kept about it is damaged.
    """
    path = folder / f"{require_key(name)}.json"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Running)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(
            f"{path} cannot be read: {error}.", "Delete it; end the server by hand if it runs."
        ) from error
    began = _began(found.pid)
    return found if began is not None and abs(began - found.started) < 1 else None


def names(folder: Path) -> tuple[str, ...]:
    """Return the names of all servers that were started and not stopped."""
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


def stop(name: str, folder: Path) -> None:
    """End a server; what it had in memory only is gone.

    Raises:
        TransportFailed: If none of this name runs.
    """
    import psutil

    found = running(name, folder)
    if found is not None:
        process = psutil.Process(found.pid)
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
    (folder / f"{name}.json").unlink(missing_ok=True)
    if found is None:
        raise TransportFailed(f"No store named '{name}' runs.", "See `unspoken store status`.")


def usage(address: Address, seconds: float = 5.0) -> dict[str, Any]:
    """Return what a server says of itself: objects, bytes used and there, tiers, health.

    Raises:
        TransportFailed: If it does not answer, answers nonsense, or takes no caches any more.
    """
    try:
        answer = httpx.get(f"{address.http}/status", timeout=seconds)
        answer.raise_for_status()
        about = answer.json()
        memory = about["storage_manager"]["l1_manager"]
        found = {
            "healthy": bool(about["is_healthy"]),
            "chunk": int(about["chunk_size"]),
            "objects": int(memory["total_object_count"]),
            "bytes_used": int(memory["memory_used_bytes"]),
            "bytes": int(memory["memory_total_bytes"]),
            "tiers": int(about["storage_manager"]["num_l2_adapters"]),
        }
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise TransportFailed(
            f"The LMCache server at {address} does not tell its state ({type(error).__name__}).", ANEW
        ) from error
    try:
        require_answer(address, seconds)
    except TransportFailed as error:
        raise TransportFailed(f"The LMCache server at {address} takes no caches any more.", ANEW) from error
    return found


def _command(limits: Limits) -> Sequence[str]:
    address = limits.address
    program = Path(sys.executable).with_name("lmcache")
    options = {
        "--host": address.host,
        "--port": address.port,
        "--http-host": address.host,
        "--http-port": address.http_port,
        "--chunk-size": limits.chunk,
        "--l1-size-gb": limits.memory_gb,
        "--eviction-policy": "LRU",
        # What came from a tier stays in memory; by default it would be fetched anew each time.
        "--l2-prefetch-policy": "retain",
        "--supported-transfer-mode": "auto",
        # With shared memory it answers nobody on another machine; without, tensors go by the network, to all.
        "--shm-name": f"unspoken-{os.getuid()}-{secrets.token_hex(4)}" if limits.address.local else "",
    }
    tiers = [part for tier in limits.tiers for part in ("--l2-adapter", json.dumps(tier))]
    return [str(program), "server", *(str(part) for option in options.items() for part in option), *tiers]


def _environment() -> dict[str, str]:
    return os.environ | {"LMCACHE_TRACK_USAGE": "false", "DO_NOT_TRACK": "1", "LMCACHE_LOG_LEVEL": "WARNING"}


def _check(limits: Limits) -> None:
    if limits.chunk < 1 or 2048 % limits.chunk:
        raise UsageError(f"A chunk of {limits.chunk} tokens cannot be kept.", "Give a power of 2 up to 2048: 32, say.")
    if not limits.memory_gb > 0:
        raise UsageError(f"A memory of {limits.memory_gb} GiB holds nothing.", "Give 2, say.")
    # With less shared memory than it asks for, it would go on without, and move everything ten times as slowly.
    free = shutil.disk_usage(SHARED_MEMORY).free / 2**30 if SHARED_MEMORY.is_dir() else 0.0
    if limits.address.local and free < limits.memory_gb:
        raise UsageError(
            f"The store shall have {limits.memory_gb:g} GiB of shared memory, and {free:.1f} are free.",
            "Give less --memory, or make /dev/shm larger.",
        )


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"{host}:{port} cannot be listened at: {error}.", "Give another --port or --http-port."
            ) from error


def _wait_until_ready(process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            if httpx.get(f"{address.http}/status", timeout=1.0).status_code == 200:
                return
        except httpx.HTTPError:  # Not yet.
            time.sleep(0.1)
    process.kill()
    process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise TransportFailed(f"The store did not start: {lines[-1] if lines else 'it said nothing'}", f"See {log}.")


def _began(pid: int) -> float | None:
    """Return when a process began; None if there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _parts(address: Address) -> tuple[str, int, int]:
    return address.host, address.port, address.http_port
