"""The fuzzer runs for a short time, and would tell of what it is there to find; `make fuzz` runs it for longer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris, which guides the fuzzer, has no wheel for this system")

ROOT = Path(__file__).parents[2]
# A number of inputs and not of seconds, of which there may be few for a process beside many others.
RUNS = 4000
# Faults put into what is fuzzed, and what the fuzzer then says.
FAULTS = {
    "a seal that nobody verifies": (
        "from unspoken.trust.seals import Trusted;fuzzed.verify_seal = lambda *_, **__: Trusted('lyra', None)",
        "a header was accepted that nobody has sealed",
    ),
    "memory without bounds": ("fuzzed.read_cache = lambda *_, **__: bytearray(2 << 30)", "MemoryError"),
    "an error of another kind": ("fuzzed.peek = lambda path: {}[path.read_bytes()[9:]]", "KeyError"),
}


def _run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys, tests.security.fuzz_parser as fuzzed\n{code}\nfuzzed.main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), f"-runs={RUNS}"], cwd=ROOT, capture_output=True, text=True
    )


def test_some_thousand_inputs_find_nothing_and_get_everywhere(tmp_path: Path) -> None:
    done = _run("", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not [*(tmp_path / "findings").iterdir()]
    runs = re.search(r"^Done (\d+) runs in", done.stderr, re.MULTILINE)
    assert runs is not None
    assert int(runs[1]) == RUNS
    covered = [int(found) for found in re.findall(r" cov: (\d+) ", done.stderr)]
    assert covered[-1] > covered[0]  # More than the honest files lead to.
    seen = json.loads((tmp_path / "seen.json").read_text())
    for what in ("header", "tensors", "seal"):
        assert seen[f"{what} accepted"] > 0
        assert seen[f"{what} refused"] > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_would_be_found(fault: str, tmp_path: Path) -> None:
    code, told = FAULTS[fault]
    done = _run(code, tmp_path)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr
    (found,) = (tmp_path / "findings").iterdir()
    assert found.stat().st_size > 0


def test_what_the_fuzzer_begins_with_are_honest_files(tmp_path: Path) -> None:
    from .fuzz_parser import SIGNED, assembled, seeds
    from .tampering import CODECS, World

    world = World(tmp_path, sizes=(5,))
    made = [*seeds(world)]
    honest = {each.raw for each in world.attacked}
    assert {assembled(data) for data in made} <= honest  # Put together, digested and sealed as the package does.
    assert sum(data[:1] == SIGNED for data in made) == len(CODECS)
    assert len(made) == 3 * len(CODECS)
