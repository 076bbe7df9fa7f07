"""What a run will take, worked out by hand from a made-up pilot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from unspoken.lab.estimate import estimates
from unspoken.lab.experiment import Experiment
from unspoken.lab.record import RunFolder
from unspoken.lab.sweep import Cell, Sweep

PLAN = Sweep("claims", (Cell(Experiment(name="claims", items=80, timed_items=6, arms=("kv", "text@8"), model="m")),))


@pytest.fixture
def pilot(build: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Write a pilot: each answer took a second by cache and three by text, two of eight were run alone as well."""

    def made(run: str, factor: float = 1.0, finished: bool = True) -> Path:
        found = build({"kv": "1" * 8, "text@8": "0" * 8, "none": "0" * 8},
                      totals={"kv": factor, "text@8": 3 * factor, "none": 100.0})  # fmt: skip
        path = tmp_path / "claims-pilot" / run / "cells" / PLAN.cells[0].folder
        path.mkdir(parents=True)
        folder = RunFolder.start(path, found.experiment, found.env)
        folder.append(found.samples)
        if finished:
            folder.finish(found.samples, found.metrics, "")
        return path

    return made


def test_seconds_go_with_the_questions_and_arms_that_are_asked(pilot: Callable[..., Path], tmp_path: Path) -> None:
    pilot("20260101T000000Z-a")
    (found,) = estimates(PLAN, tmp_path)
    # Half of an answer's 1 or 3 seconds is reading, which the two questions of each of four sources share: 8 times half
    # of 4 s, and 4 times that, are 24 s, and ten times as many are wanted; two alone are 8 s, six are wanted.
    assert found.seconds == pytest.approx(24 * 10 + 8 * 3)
    assert (found.items, found.arms) == (80, 2)


def test_the_newest_finished_pilot_counts(pilot: Callable[..., Path], tmp_path: Path) -> None:
    pilot("20260101T000000Z-a")
    pilot("20260102T000000Z-b", factor=2.0)
    pilot("20260103T000000Z-c", factor=3.0, finished=False)
    broken = pilot("20260104T000000Z-d", factor=4.0)
    (broken / "samples.jsonl.gz").write_bytes(b"nonsense")
    (found,) = estimates(PLAN, tmp_path)
    assert found.seconds == pytest.approx(2 * (24 * 10 + 8 * 3))
    assert found.pilot == str(Path("claims-pilot/20260102T000000Z-b/cells") / PLAN.cells[0].folder)


def test_without_a_pilot_of_all_arms_nothing_is_known(pilot: Callable[..., Path], tmp_path: Path) -> None:
    (unknown,) = estimates(PLAN, tmp_path)
    assert (unknown.seconds, unknown.pilot) == (None, None)
    pilot("20260101T000000Z-a")
    more = msgspec.structs.replace(PLAN.cells[0].experiment, arms=("kv", "text@8", "kv-zero"))
    (unknown,) = estimates(more, tmp_path)
    assert unknown.seconds is None
