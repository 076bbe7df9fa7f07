"""Killed at ten random moments and gone on with each time, a run has the bytes of one that nobody disturbed."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9"),
    pytest.mark.timeout(600),
]
ITEMS, ARMS, KILLS = 96, ("none", "full-text", "kv", "kv-deranged", "kv-zero"), 10
YAML = f"""
name: killed
engine: fake
items: {ITEMS}
seed: 3
timed_items: 0
batch_sources: 1
arms: [{", ".join(ARMS)}]
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Begin the run, or go on with it, in a process of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.yaml").write_text(YAML)
    # Without git, so that an edit of the code meanwhile does not make it another run.
    env = {"UNSPOKEN_HOME": str(folder / "home"), "GIT_DIR": os.devnull, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "unspoken", "run", "plan.yaml", "--json"]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finished(folder: Path) -> dict[str, bytes]:
    """Let the run end, and return what it has come to."""
    process = start(folder)
    _, told = process.communicate()
    assert process.returncode == 0, told
    (run,) = (path for path in (folder / "results" / "killed").iterdir() if path.is_dir())
    samples = gzip.decompress((run / "samples.jsonl.gz").read_bytes())
    return {"metrics": (run / "metrics.json").read_bytes(), "lines": b"%d" % samples.count(b"\n")}


def lines(folder: Path) -> int:
    """Return how many samples the run has written so far."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("results/killed/*/samples.jsonl"))


def test_ten_kills_change_no_byte_of_the_metrics(tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    draw, total = random.Random(20261128), ITEMS * len(ARMS)
    for at in sorted(draw.sample(range(1, total - 1), KILLS)):
        process = start(disturbed)
        while lines(disturbed) < at and process.poll() is None:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))  # In the middle of a batch, or while it is written.
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    found = finished(disturbed)
    assert found == finished(undisturbed)
    assert found["lines"] == b"%d" % total
