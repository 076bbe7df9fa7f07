"""Committed runs: finding the newest of an experiment, and linking to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
# Sweeps that ask cells of an earlier one anew: `claims-second` more questions than its pilots had, the two of countries
# with room for a sentence where answers had been cut short. Of cells with one name the last one's stands.
ANEW = {"claims": ("claims-second", "claims-countries"), "crossmodel": ("crossmodel-countries",)}


class Asked(NamedTuple):
    """A sweep with the cells that later sweeps asked anew in the place of its own."""

    runs: list[tuple[Path, dict[str, Any]]]

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """The metrics of each cell."""
        return {key: of for _, metrics in self.runs for key, of in metrics["cells"].items()}

    @property
    def left(self) -> list[str]:
        """The cells that are not finished yet."""
        return [key for _, metrics in self.runs for key in metrics.get("unfinished", ())]

    @property
    def links(self) -> str:
        """Markdown links to the runs, each with what it has not finished."""
        from unspoken.lab.verdict import listed

        return listed([f"{link(folder)}{unfinished(metrics)}" for folder, metrics in self.runs])


def asked(experiment: str) -> Asked:
    """Return the newest sweep of a name and of those that ask its cells anew; without runs if none is there."""
    return Asked([run for run in map(newest_sweep, (experiment, *ANEW.get(experiment, ()))) if run is not None])


def newest(
    experiment: str, *, full: bool = False, engine: str | None = "transformers", **fields: Any
) -> tuple[Path, dict[str, Any]]:
    """Return the folder and metrics of the newest committed run of an experiment with an engine."""
    runs = sorted((ROOT / "results" / experiment).glob("*/metrics.json"))
    wanted = fields | {"engine": engine} | ({"pilot": False} if full else {})
    found = [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in runs]
    chosen = [run for run in found if all(run[1].get(key) == value for key, value in wanted.items())]
    if not chosen:
        raise SystemExit(f"There is no committed run of {experiment} with {wanted} in results/.")
    return chosen[-1]


def newest_sweep(experiment: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the folder and metrics of the newest finished sweep of a name; None if there is none yet.

    Where no sweep is finished, it is the newest of which cells are; `unfinished` then names the others.
    """
    runs = sorted((ROOT / "results" / experiment).glob("*/metrics.json"))
    found = [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in runs]
    finished = next((run for run in reversed(found) if run[1].get("cells")), None)
    return finished or _newest_begun(experiment)


def committed_sweep(experiment: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder and metrics of the newest sweep of a name, of which some cell has to be committed."""
    run = newest_sweep(experiment)
    if run is None:
        raise SystemExit(f"There is no committed run of {experiment} in results/.")
    return run


def unfinished(metrics: dict[str, Any]) -> str:
    """Return which cells of a sweep are not finished, as the end of a sentence; nothing if all are."""
    left = metrics.get("unfinished")
    return f"; not finished yet: {', '.join(left)}" if left else ""


def _newest_begun(experiment: str) -> tuple[Path, dict[str, Any]] | None:
    from unspoken.lab.sweeprun import open_sweep

    for path in sorted((ROOT / "results" / experiment).glob("*/cells"), reverse=True):
        sweep = open_sweep(path.parent)
        if sweep is not None and (found := sweep.found()):
            return path.parent, {"cells": found, "unfinished": list(sweep.unfinished())}
    return None


def link(folder: Path) -> str:
    """Return a Markdown link to a run folder."""
    path = folder.relative_to(ROOT)
    return f"[{path}]({path})"


def from_docs(text: str) -> str:
    """Return a text for a page in docs/, from where results/ is one folder further up."""
    return text.replace("](results/", "](../results/").replace("](docs/", "](")
