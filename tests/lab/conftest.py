"""Made-up runs: rows of right and wrong answers, and everything the lab makes of them. No model is needed.

Nothing of the package is imported before a fixture runs, so that `--jaxtyping-packages` can hook in first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

if TYPE_CHECKING:
    from unspoken.lab.experiment import Experiment
    from unspoken.lab.record import Sample

ENV: dict[str, Any] = {
    "run": "20260102T030405Z-abcdef01",
    "starts": [{"utc": "2026-01-02T03:04:05Z", "command": "unspoken prove --items 8"}],
    "machine": {"cpu": "made up", "cores": 2, "memory_bytes": 8_000_000_000, "gpu": None},
    "packages": {"unspoken": "0.1.0"},
    "revision": {"commit": "c0ffee", "dirty_diff": ""},
    "model": {"name": "made-up", "weights": "feed"},
    "gate": {"passed": True, "bound": 1e-4, "checks": {"moved": 1e-5}},
    "task": {"name": "private-facts", "version": "1", "hash": "deadbeef", "chance": 1 / 6},
}
SIZES = {"none": 0, "full-text": 350, "kv-self": 0}


@dataclass(frozen=True)
class Run:
    """A made-up run."""

    experiment: Experiment
    samples: tuple[Sample, ...]
    env: Mapping[str, Any]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What the lab computes from it."""
        from unspoken.lab.metrics import compute

        return compute(self.experiment, self.samples, self.env)


def made(
    right: Mapping[str, str],
    *,
    per_source: int = 2,
    timed: int = 2,
    totals: Mapping[str, float] | None = None,
    failed: Mapping[str, int] | None = None,
    env: Mapping[str, Any] = ENV,
    **fields: Any,
) -> Run:
    """Build a run.

    Args:
        right: For each arm, a row of 1 (right) and 0 (wrong), one for each item.
        per_source: Items about one source.
        timed: Items run alone, the first ones.
        totals: Seconds in all, by arm; 1.0 where nothing is said. A quarter of it is the answer's.
        failed: For each arm, how many of its last items have no answer.
        env: The run's record.
        **fields: Of every sample.
    """
    from unspoken.lab.experiment import Experiment

    samples: list[Sample] = []
    for arm, row in right.items():
        lost = len(row) - (failed or {}).get(arm, 0)
        seconds = _stages((totals or {}).get(arm, 1.0))
        for at, mark in enumerate(row):
            sample = _sample(arm, at, at // per_source, mark == "1" and at < lost, seconds)
            sample = msgspec.structs.replace(sample, **fields)
            if at >= lost:
                sample = msgspec.structs.replace(sample, answer="", error="Too long.")
            samples.append(sample)
            if at < timed:
                samples.append(msgspec.structs.replace(sample, alone=True))
    count = len(next(iter(right.values())))
    experiment = Experiment(items=count, seed=7, arms=tuple(right), timed_items=timed)
    return Run(experiment, tuple(samples), env)


def _sample(arm: str, at: int, source: int, right: bool, seconds: dict[str, float]) -> Sample:
    from unspoken.lab.record import Sample

    return Sample(
        item=f"{source:02}-{at:03}",
        source=f"{source:02}",
        arm=arm,
        alone=False,
        question=f"Question {at}?",
        gold="pink",
        answer="pink" if right else "white",
        correct=right,
        contained=right,
        bytes_moved=SIZES.get(arm, 60 if arm.startswith("text") else 1_712_169),
        seconds=seconds,
        message="The inn is pink." if arm.startswith("text") else None,
    )


def _stages(total: float) -> dict[str, float]:
    from unspoken.lab.metrics import STAGES

    shares = dict.fromkeys(STAGES, 0.0) | {"capture": total / 2, "first_token": total / 4, "answer": total / 4}
    return shares | {"total": total}


@pytest.fixture(scope="session")
def build() -> Callable[..., Run]:
    """Return the builder of made-up runs."""
    return made


@pytest.fixture(scope="session")
def usual() -> Run:
    """Return a run of eight items with the arms that matter."""
    rows = {
        "none": "10001000",
        "full-text": "11111111",
        "text@8": "11110000",
        "kv": "11111100",
        "kv-deranged": "11000000",
    }
    return made(rows, totals={"text@8": 3.0})
