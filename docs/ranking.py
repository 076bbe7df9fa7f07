"""Every way of handing over side by side: what its content is worth, for how many bytes and seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from runs import link, newest_sweep

TASKS = {
    "private-facts": ("ranking", "frontier", "channels", "crossmodel"),
    "reading": ("frontier", "crossmodel"),
    "split-evidence@2": ("compose",),
}
"""The sweeps that each table takes its lines from: those on SmolLM2 in transformers."""
CELL = "smollm2-135m/transformers"


class Way(NamedTuple):
    """One arm in one run."""

    arm: str
    questions: int
    gain: dict[str, Any]
    p: float
    share: float | None
    bytes_moved: float
    seconds: float | None
    run: str


def ranking_table(task: str) -> str:
    """Return the ways that were run on a task, the most content first; p-values are adjusted over the whole table."""
    from unspoken.lab.statistics import holm
    from unspoken.lab.tables import bracket, points, probability, size
    from unspoken.lab.tables import seconds as shown_seconds

    best: dict[str, Way] = {}
    for way in _ways(task):
        if way.arm not in best or way.questions > best[way.arm].questions:
            best[way.arm] = way
    adjusted = holm({arm: way.p for arm, way in best.items()})
    lines = [
        "| way | questions | content gain, points [95 % interval] | Holm p | of what reading gains, % | bytes "
        "| total, s | run |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for way in sorted(best.values(), key=lambda each: -each.gain["mean"]):
        gain = f"{points(way.gain['mean'])}{bracket(way.gain, points)}"
        share = "-" if way.share is None else f"{100 * way.share:.0f}"
        lines.append(
            f"| `{way.arm}` | {way.questions} | {gain} | {probability(adjusted[way.arm])} | {share} "
            f"| {size(way.bytes_moved)} | {shown_seconds(way.seconds)} | {way.run} |"
        )
    return "\n".join(lines)


def _ways(task: str) -> Iterator[Way]:
    from unspoken.lab.arms import control_in
    from unspoken.lab.metrics import Table
    from unspoken.lab.record import RunFolder
    from unspoken.lab.statistics import mcnemar

    for experiment in TASKS[task]:
        found = newest_sweep(experiment)
        if found is None:
            continue
        folder, metrics = found
        of = metrics["cells"].get(f"{task}/{CELL}", {})
        held = RunFolder(folder / "cells" / f"{task}/{CELL}".replace("/", "-")).contents() if of else None
        if held is None:
            continue
        table = Table(held.samples, held.experiment.arms, held.experiment.seed)
        for arm, gain in of["gain"].items():
            p = mcnemar(table.correct(arm), table.correct(str(control_in(arm, of["arms"]))))
            reached = of["arms"][arm]
            share = (of["pgr"].get(arm) or {}).get("mean")
            where = link(folder).replace(f"[results/{experiment}/", f"[{experiment}/")
            yield Way(arm, of["items"], gain, p, share, reached["bytes"], reached["seconds_total"], where)
