"""Two runs side by side: what differs in how they were made, and in what came of them, arm by arm.

Where at least half of the questions are the same, the comparison is made question by question, over those. Where they
are not, the two averages are compared, each with the spread between its own texts, which takes many more questions to
see the same difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from unspoken.errors import UsageError
from unspoken.lab.record import Sample, open_finished
from unspoken.lab.statistics import ClusterBootstrap, Interval, holm, mcnemar, spread
from unspoken.lab.twins import paired

RECORDED = ("engine", "model", "senders", "packages", "machine", "revision", "prompts")
FEWEST = 2


class Run(msgspec.Struct, frozen=True):
    """A finished run, as it lies in its folder.

    Attributes:
        path: The folder.
        config: Every field of its experiment.
        env: What was recorded about machine, versions and model.
        arms: Samples by arm and item, those run alone for their time left out; a pair of twins is one item.
    """

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    arms: dict[str, dict[str, Sample]]


def open_run(path: Path) -> Run:
    """Return the run in a folder.

    Raises:
        UsageError: If there is none, it is a sweep of several, unfinished, or damaged.
    """
    if (path / "cells").is_dir():
        cells = ", ".join(sorted(each.name for each in (path / "cells").iterdir()))
        raise UsageError(f"{path} is a sweep of several runs.", f"Give one of its cells, {path}/cells/NAME: {cells}.")
    folder = open_finished(path)
    if not (path / "metrics.json").exists():
        raise UsageError(f"The run in {path} is not finished.", "Go on with it first: `unspoken run`.")
    experiment, samples, env = folder.contents()
    arms: dict[str, dict[str, Sample]] = {arm: {} for arm in experiment.arms}
    for sample in paired(samples):
        if not sample.alone:
            arms[sample.arm][sample.item] = sample
    return Run(path, msgspec.to_builtins(experiment), env, arms)


def compare(left: Run, right: Run) -> dict[str, Any]:
    """Return what differs between two runs: how they were made, and each arm that both have.

    Arms have `left`, `right`, their `difference` (right less left, with its 95 % interval) and, where the questions are
    the same, the p-value of the exact McNemar test, adjusted over the arms.

    Raises:
        UsageError: If they have no arm in common.
    """
    common = [arm for arm in left.arms if arm in right.arms]
    if not common:
        raise UsageError(
            f"The runs have no arm in common: {', '.join(left.arms)}; {', '.join(right.arms)}.",
            "Compare runs of one kind.",
        )
    shared = _shared(left, right, common)
    alike = len(shared) >= max(FEWEST, min(len(_items(left)), len(_items(right))) / 2)
    arms = {arm: (_alike if alike else _apart)(left, right, arm, shared) for arm in common}
    if alike:
        adjusted = holm({arm: of["p"] for arm, of in arms.items()})
        arms = {arm: of | {"p_holm": adjusted[arm]} for arm, of in arms.items()}
    return {
        "left": str(left.path),
        "right": str(right.path),
        "paired": alike,
        "items": len(shared) if alike else [len(_items(left)), len(_items(right))],
        "differs": _differs(left, right),
        "arms": arms,
        "only_left": [arm for arm in left.arms if arm not in right.arms],
        "only_right": [arm for arm in right.arms if arm not in left.arms],
    }


def _items(run: Run) -> set[str]:
    return set.intersection(*(set(of) for of in run.arms.values()))


def _shared(left: Run, right: Run, common: list[str]) -> list[str]:
    """Return the items that both runs asked in every common arm, in the same words and with the same answer."""
    mine, other = left.arms[common[0]], right.arms[common[0]]
    asked = [set(run.arms[arm]) for run in (left, right) for arm in common]
    alike = {item for item in set.intersection(*asked) if _asked(mine[item]) == _asked(other[item])}
    return sorted(alike)


def _asked(sample: Sample) -> tuple[str, str, str]:
    return sample.source, sample.question, sample.gold


def _alike(left: Run, right: Run, arm: str, shared: list[str]) -> dict[str, Any]:
    one, other = ([run.arms[arm][item] for item in shared] for run in (left, right))
    bootstrap = ClusterBootstrap([sample.source for sample in one], int(left.config["seed"]))
    moved = bootstrap.interval([b.judged - a.judged for a, b in zip(one, other, strict=True)])
    return {
        "left": float(np.mean([sample.judged for sample in one])),
        "right": float(np.mean([sample.judged for sample in other])),
        "difference": msgspec.to_builtins(moved),
        "p": mcnemar([sample.correct for sample in one], [sample.correct for sample in other]),
    }


def _apart(left: Run, right: Run, arm: str, _: list[str]) -> dict[str, Any]:
    means, draws = [], []
    for number, run in enumerate((left, right)):
        rows = list(run.arms[arm].values())
        # Another seed for each: the two are apart, and their draws must not go together, whatever their own seeds.
        bootstrap = ClusterBootstrap([sample.source for sample in rows], (int(run.config["seed"]), number))
        means.append(float(np.mean([sample.judged for sample in rows])))
        draws.append(bootstrap.means([sample.judged for sample in rows]))
    moved: Interval = spread(means[1] - means[0], draws[1] - draws[0])
    return {"left": means[0], "right": means[1], "difference": msgspec.to_builtins(moved), "p": None}


def _differs(left: Run, right: Run) -> dict[str, list[Any]]:
    """Return every recorded value in which the two runs differ, by its dotted name."""
    # Flat first: the experiment names a model, and so does the record, which knows more of it.
    one, other = (_flat(run.config) | _flat({name: run.env.get(name) for name in RECORDED}) for run in (left, right))
    names = dict.fromkeys((*one, *other))
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found
