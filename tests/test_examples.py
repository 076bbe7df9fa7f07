"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
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


@pytest.mark.model
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_and_says_something(example: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
