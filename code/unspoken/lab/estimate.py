"""How long a run will take, from what a small one of the same cells has taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from unspoken.errors import UsageError
from unspoken.lab.experiment import Experiment
from unspoken.lab.record import RunFolder, Sample
from unspoken.lab.sweep import Cell, Sweep


class Estimate(msgspec.Struct, frozen=True):
    """What is known of a cell before it is run.

    Attributes:
        key: Task, model and engine.
        items: Questions.
        arms: How many ways each is asked.
        seconds: What it takes on the machine of the pilot; None if there is none.
        pilot: The folder of the pilot, from the results folder on.
    """

    key: str
    items: int
    arms: int
    seconds: float | None = None
    pilot: str | None = None


def cells_of(plan: Experiment | Sweep) -> tuple[Cell, ...]:
    """Return the cells of a sweep, or an experiment as the only one."""
    return plan.cells if isinstance(plan, Sweep) else (Cell(plan),)


def estimates(plan: Experiment | Sweep, results: Path) -> tuple[Estimate, ...]:
    """Return for each cell of a plan what it will take, by the newest finished pilot of the same cell and arms.

    A pilot is what `unspoken run PLAN --pilot` leaves in the results folder. The time of a sample goes with the number
    of questions; that of loading the model is left out.
    """
    return tuple(_estimate(plan.name, cell, results) for cell in cells_of(plan))


def _estimate(name: str, cell: Cell, results: Path) -> Estimate:
    known = Estimate(cell.key, cell.experiment.items, len(cell.experiment.arms))
    for path in sorted(results.glob(f"{name}-pilot/*/cells/{cell.folder}"), reverse=True):
        if not (path / "metrics.json").exists():
            continue
        try:
            small, samples, _ = RunFolder(path).contents()
        except UsageError:
            continue  # Damaged: an older one may do.
        if set(small.arms) >= set(cell.experiment.arms) and samples:
            seconds = _scaled(cell.experiment, samples)
            return msgspec.structs.replace(known, seconds=seconds, pilot=str(path.relative_to(results)))
    return known


def _scaled(experiment: Experiment, samples: Sequence[Sample]) -> float:
    """Return the seconds of so many questions, from those of a few."""
    wanted = [sample for sample in samples if sample.arm in experiment.arms]
    total = 0.0
    for alone, count in ((False, experiment.items), (True, experiment.timed_items)):
        some = [sample for sample in wanted if sample.alone == alone]
        asked = len({sample.item for sample in some})
        total += (_alone if alone else _together)(some) * count / max(1, asked)
    return total


def _alone(samples: Sequence[Sample]) -> float:
    return sum(sample.seconds.get("total", 0.0) for sample in samples)


def _together(samples: Sequence[Sample]) -> float:
    """Return the seconds of a batch, in which questions share readings and hand-overs.

    What was done once is recorded with each question that shared it, so that equal figures of one source are one.
    """
    answers = sum(_stages(sample, "first_token", "answer") for sample in samples)
    readings = {(sample.source, _stages(sample, "capture")) for sample in samples}
    handed = {(each.source, each.arm, _stages(each, "transform", "move", "inject")) for each in samples}
    return answers + sum(seconds for _, seconds in readings) + sum(seconds for *_, seconds in handed)


def _stages(sample: Sample, *stages: str) -> float:
    return sum(sample.seconds.get(stage, 0.0) for stage in stages)
