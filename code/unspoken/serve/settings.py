"""What a server may use, and whom it serves."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from unspoken.errors import UsageError
from unspoken.serve import vault

MB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """How a server runs.

    Attributes:
        host, port: Where it listens.
        tokens: File of tokens; None lets everybody in, which is allowed on the loopback interface alone.
        require_seals: Whether uploads have to be sealed by a known sender.
        waiting: Most completions that wait; more are refused with 429.
        together: Most completions that are answered in one batch.
        request_seconds: Longest that a completion may take, waiting included.
        body_bytes: Largest request, uploads aside.
        upload_bytes: Largest upload.
        uploads: Most uploads at once.
        memory_bytes: Most bytes of columns remembered of conversations' beginnings.
        kept: What each agent may keep.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    tokens: Path | None = None
    require_seals: bool = False
    waiting: int = 32
    together: int = 8
    request_seconds: float = 120.0
    body_bytes: int = 4 * MB
    upload_bytes: int = 512 * MB
    uploads: int = 4
    memory_bytes: int = 512 * MB
    kept: vault.Limits = field(default_factory=vault.Limits)

    def __post_init__(self) -> None:
        if self.tokens is None and not _is_loopback(self.host):
            raise UsageError(
                f"The server would let everybody on the network at {self.host} read what its agents keep.",
                "Give --tokens FILE (see `unspoken token`), or listen on 127.0.0.1.",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
