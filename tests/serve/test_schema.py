"""Whatever is sent, as the server's description has it or not: it answers, and never with a failure of its own."""

from __future__ import annotations

import contextlib
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from unspoken.engines.fake import FakeEngine

schemathesis: Any = pytest.importorskip("schemathesis", reason="it is not installed")
OURS = {503, 507}  # Told on purpose: not in time, no room.


@pytest.fixture
def described(tmp_path: Path) -> Iterator[Any]:
    """The description of a server that is open to everybody."""
    from unspoken.serve.app import build
    from unspoken.serve.service import Service
    from unspoken.serve.settings import Settings
    from unspoken.trust.store import TrustStore

    service = Service(FakeEngine(), Settings(), tmp_path / "caches", TrustStore(tmp_path / "keys"))
    yield schemathesis.openapi.from_asgi("/openapi.json", build(service))
    service.close()


@pytest.mark.parametrize("kind", ["POSITIVE", "NEGATIVE"])
def test_no_request_makes_the_server_fail(described: Any, kind: str) -> None:
    mode = getattr(schemathesis.GenerationMode, kind)
    tried = set()
    for found in described.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        def send(case: Any) -> None:
            response = case.call()
            assert response.status_code < 500 or response.status_code in OURS, response.text
            if response.status_code >= 400:
                assert response.json()["error"]["message"]

        with contextlib.suppress(unittest.SkipTest, Unsatisfiable):  # A route that takes nothing has nothing wrong.
            send()
        tried.add(operation.label)
    assert "POST /v1/chat/completions" in tried
    assert len(tried) == 16
