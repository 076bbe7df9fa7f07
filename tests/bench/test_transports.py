"""Moving a cache between two processes is measured by each way, and what cannot be measured is told."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from unspoken.bench.transports import LLAMA, PLAIN, SOCKET, measure, table
from unspoken.errors import TransportFailed
from unspoken.transports.folder import SHARED_MEMORY

pytestmark = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this machine has no shared memory")
SMALL = msgspec.structs.replace(LLAMA, layers=2)


def test_each_way_is_measured_against_the_plain_file(tmp_path: Path) -> None:
    addresses = [f"file:{tmp_path}", f"shm:test-bench-{os.getpid()}"]
    found = measure(SMALL, 20, addresses, 2, lambda _: None)
    assert found["bytes"] == 2 * 2 * 8 * 128 * 20 * 2
    assert [row["transport"] for row in found["rows"]] == [PLAIN, SOCKET, *addresses]
    assert all(row["seconds_put"] > 0 and row["ratio"] > 0 for row in found["rows"])
    assert found["rows"][0]["ratio"] == 1
    assert table(found).row_count == 4
    assert list(tmp_path.iterdir()) == []  # Nothing is left behind.
    (SHARED_MEMORY / f"unspoken-{os.getuid()}-test-bench-{os.getpid()}").rmdir()


def test_a_place_that_only_one_process_knows_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TransportFailed, match="The other process did not get it"):
        measure(SMALL, 20, ["memory"], 1, lambda _: None)
    assert "Traceback" not in capfd.readouterr().err
