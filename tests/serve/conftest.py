"""A real server on a port of its own, on the fake engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

if TYPE_CHECKING:
    from unspoken.serve.service import Service

Running = Callable[..., "Server"]


class Server:
    """A server that runs.

    Attributes:
        url: Where.
        service: What it serves.
    """

    def __init__(self, service: Service) -> None:
        import uvicorn

        from unspoken.serve.app import build

        self.service = service
        config = uvicorn.Config(
            build(service), host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """End it."""
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Running]:
    """Start a server; it ends with the test."""
    from unspoken.engines.fake import FakeEngine
    from unspoken.serve.service import Service
    from unspoken.serve.settings import Settings
    from unspoken.trust.store import TrustStore

    running: list[Server] = []

    def start(engine: Any = None, recognise: Any = None, **settings: Any) -> Server:
        kept = replace(Settings(), **settings)
        folder = tmp_path / f"caches{len(running)}"
        service = Service(engine or FakeEngine(), kept, folder, TrustStore(tmp_path / "keys"), recognise)
        running.append(Server(service))
        return running[-1]

    yield start
    for server in running:
        server.stop()
