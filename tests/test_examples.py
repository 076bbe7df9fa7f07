"""The examples run as they stand."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECOND = ROOT / "models" / "qwen2.5-coder-0.5b-instruct.gguf"
"""Half a gigabyte that `make second-model` fetches; the tests run without it."""


def marked(example: Path) -> Any:
    """An example, left out if it needs the second model and that is not there."""
    missing = SECOND.name in example.read_text() and not SECOND.is_file()
    return pytest.param(example, id=example.stem, marks=pytest.mark.skipif(missing, reason="needs the second model"))


EXAMPLES = [marked(example) for example in sorted((ROOT / "examples").glob("*.py"))]


SERVED = "unspoken serve"
"""What an example says that needs a server; it takes the address as its argument."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the real model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, folder = f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("served")
    command = [sys.executable, "-m", "unspoken", "serve", "--port", str(port), "--caches", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{url}/health")  # noqa: S310 - an address of this test's own
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield url
        running.terminate()


@pytest.mark.model
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_and_says_something(example: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text, where = example.read_text(), []
    for library in ("langgraph", "smolagents", "lm_eval", "inspect_ai"):
        if library in text:
            pytest.importorskip(library, reason=f"{library} is not installed")
    if SERVED in text:
        pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
        where = [request.getfixturevalue("server")]
    done = subprocess.run(
        [sys.executable, str(example), *where], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if SERVED in text:
        assert "Marta" in done.stdout
