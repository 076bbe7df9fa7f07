"""Transports: where caches wait, under keys, for whoever gets them.

An address names one: `memory`, `shm`, `shm:NAME`, `file:PATH`, `lmcache:[TENANT@][HOST:PORT:HTTP_PORT]`.
"""

from __future__ import annotations

from unspoken.registry import Registry
from unspoken.transports.protocol import Arrived, Judge, Sign, Transport, require_key

TRANSPORTS = Registry(
    "transport",
    "unspoken.transports",
    {
        "memory": "unspoken.transports.folder:within_process",
        "shm": "unspoken.transports.folder:shared_memory",
        "file": "unspoken.transports.folder:file_folder",
        "lmcache": "unspoken.transports.distributed:distributed",
    },
)

__all__ = ["TRANSPORTS", "Arrived", "Judge", "Sign", "Transport", "open_transport", "require_key"]


def open_transport(address: str) -> Transport:
    """Return the transport at an address.

    Raises:
        UsageError: If there is no such transport, or the address says something it cannot.
        TransportFailed: If it cannot be reached.
    """
    kind, _, where = address.partition(":")
    opened: Transport = TRANSPORTS.load(kind)(where)
    return opened
