"""Run a sweep: cell by cell into one folder, by one process or several at once, resumable at any moment.

results/<sweep>/<UTC time>-<short id>/
    config.yaml        the sweep as it was run, every field of every cell written out
    env.json           machine, versions, when and how
    cells/<cell>/      one run folder for each cell, as an experiment of its own has it
    metrics.json       written last, by whichever process finishes the last cell
    report.html        all cells side by side, with links to their reports
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from unspoken.errors import ModelNotFound, StorageError, UsageError
from unspoken.lab import folders, provenance, record
from unspoken.lab.arms import needs_donor
from unspoken.lab.experiment import Experiment
from unspoken.lab.report import render_sweep
from unspoken.lab.runner import Watcher, check, load_task
from unspoken.lab.study import IDENTITY, Here, Host
from unspoken.lab.sweep import Cell, Sweep, sweep_of

DOZEN = 12


@dataclass(frozen=True)
class SweepStudy:
    """What a sweep has come to.

    Attributes:
        folder: The run folder.
        metrics: What `metrics.json` holds, or will hold once all cells are finished.
        unfinished: Keys of the cells that nobody has finished yet.
    """

    folder: Path
    metrics: dict[str, Any]
    unfinished: tuple[str, ...]


@dataclass(frozen=True)
class SweepFolder:
    """One sweep's run folder."""

    path: Path
    sweep: Sweep

    @staticmethod
    def open(results: Path, sweep: Sweep) -> SweepFolder:
        """Return the unfinished run of the same sweep, code and versions, or a new one.

        Raises:
            StorageError: If the folder cannot be written.
        """
        same = {"packages": provenance.packages(), "revision": provenance.revision()}
        folder = SweepFolder(folders.opened(results / sweep.name, [sweep.encoded().decode(), same]), sweep)
        with folders.writable(folder.path), folder.lock("begin"):
            folders.write(folder.path / "config.yaml", sweep.encoded())
            record.write_env(folder.path, {"machine": provenance.machine(), **same})
        return folder

    def cell(self, cell: Cell) -> Path:
        """Return a cell's run folder."""
        return self.path / "cells" / cell.folder

    def finished(self, cell: Cell) -> bool:
        """Tell whether a cell has its metrics."""
        return (self.cell(cell) / "metrics.json").exists()

    def found(self) -> dict[str, Any]:
        """Return what `metrics.json` of each finished cell holds, by the cell's key.

        Raises:
            UsageError: If one cannot be read, or is damaged.
        """
        return {cell.key: _metrics(self.cell(cell)) for cell in self.sweep.cells if self.finished(cell)}

    def unfinished(self) -> tuple[str, ...]:
        """Return the keys of the cells that are not finished."""
        return tuple(cell.key for cell in self.sweep.cells if not self.finished(cell))

    def lock(self, name: str) -> FileLock:
        """Return a lock that this process does not hold yet; a killed one gives its locks back.

        It lies beside the run folder and stays: to delete it would take it from a process that is about to lock it.
        """
        return FileLock(self.path.parent / f".{self.path.name}-{name}.lock")

    def begin(self, cell: Cell) -> Callable[[dict[str, Any], dict[str, Any]], record.RunFolder]:
        """Return what opens a cell's run folder, or refuses to go on with one that another model, say, began."""

        def opened(identity: dict[str, Any], env: dict[str, Any]) -> record.RunFolder:
            path = self.cell(cell)
            with folders.writable(path):
                path.mkdir(parents=True, exist_ok=True)
                if (path / "env.json").exists():
                    self._require_same(cell, record.RunFolder(path).env(), identity)
                return record.RunFolder.start(path, cell.experiment, env | {"run": f"{self.path.name}/{cell.folder}"})

        return opened

    def _require_same(self, cell: Cell, earlier: dict[str, Any], identity: dict[str, Any]) -> None:
        now = json.loads(json.dumps(identity))
        differing = [name for name in IDENTITY if earlier.get(name) != now[name]]
        if differing:
            raise UsageError(
                f"The cell {cell.key} in {self.cell(cell)} was begun with another {' and '.join(differing)}.",
                "Delete the cell's folder to run it anew, or give another --results.",
            )


def run_sweep(
    sweep: Sweep, results: Path, wanted: Sequence[str], watch: Watcher, host: Host | None = None
) -> SweepStudy:
    """Run the cells of a sweep that nobody has finished or is running, and close it if none is left.

    Args:
        sweep: What is run.
        results: The results folder.
        wanted: Texts that the keys of the cells to run contain; none for all.
        watch: Told how far it is.
        host: What runs them; by default this process.

    Raises:
        UnspokenError: If a model cannot be used, a cell cannot be run, or the folder cannot be written.
    """
    cells = sweep.matching(wanted)
    for cell in cells:
        check(cell.experiment)
    folder = SweepFolder.open(results, sweep)
    with closing(host or Here()) as running:
        for cell in _by_model(cells):
            _run_cell(folder, cell, running, watch)
    return close_sweep(folder)


def pilot(sweep: Sweep, wanted: Sequence[str] = ()) -> tuple[Sweep, tuple[str, ...]]:
    """Return a sweep with a dozen questions in each cell, of the cells whose data and models are here.

    It shows within minutes that all arms work and what a full run takes; its figures mean nothing. Also returned is
    why which cells were left out.

    Args:
        sweep: The whole sweep.
        wanted: Texts that the keys of the cells contain; none for all.

    Raises:
        UsageError: If no cell is left, or one cannot be run for another reason.
    """
    cells, left = [], []
    for cell in sweep.matching(wanted):
        small = msgspec.structs.replace(
            cell.experiment,
            name=f"{sweep.name}-pilot",
            items=min(DOZEN, cell.experiment.items),
            timed_items=min(1, cell.experiment.timed_items),
        )
        try:
            small = _with_donors(small)
            check(small)
        except (StorageError, ModelNotFound) as error:
            left.append(f"{cell.key} is left out: {error.problem}")
        except UsageError as error:
            raise UsageError(f"The cell {cell.key} cannot be run: {error.problem}", error.hint) from error
        else:
            cells.append(msgspec.structs.replace(cell, experiment=small))
    if not cells:
        raise UsageError(f"No cell of the sweep '{sweep.name}' can be run here. {left[0]}", "See data/README.md.")
    return Sweep(f"{sweep.name}-pilot", tuple(cells)), tuple(left)


def _with_donors(small: Experiment) -> Experiment:
    """Return an experiment that asks about two sources, if an arm takes another's cache."""
    if not any(map(needs_donor, small.arms)):
        return small
    _, sources = load_task(small)
    if len(sources) > 1:
        return small
    return msgspec.structs.replace(small, items=len(sources[0].items) + 1)


def close_sweep(folder: SweepFolder) -> SweepStudy:
    """Write metrics and report of a sweep whose cells are all finished; tell which are not."""
    left = folder.unfinished()
    found = {"experiment": folder.sweep.name, "cells": folder.found()}
    if not left:
        with folders.writable(folder.path), folder.lock("finish"):
            folders.write(folder.path / "report.html", render_sweep(folder.sweep, found, _env(folder.path)).encode())
            folders.write_json(folder.path / "metrics.json", found)
    return SweepStudy(folder.path, found, left)


def open_sweep(path: Path) -> SweepFolder | None:
    """Return the sweep's run folder at a path, for reading; None if it is that of a single experiment.

    Raises:
        UsageError: If its configuration is damaged.
    """
    config = path / "config.yaml"
    try:
        data = msgspec.yaml.decode(config.read_bytes()) if config.is_file() else {}
    except (msgspec.DecodeError, ValueError):
        return None  # Told by whoever reads it as a single experiment's.
    if not isinstance(data, dict) or "cells" not in data:
        return None
    return SweepFolder(path, sweep_of(data, config))


def _run_cell(folder: SweepFolder, cell: Cell, host: Host, watch: Watcher) -> None:
    """Run a cell, unless it is finished or another process is at it."""
    try:
        held = folder.lock(cell.folder).acquire(blocking=False)
    except Timeout:
        return
    with held:
        if folder.finished(cell):
            return
        watch(0, 1, f"{cell.key}, on {cell.experiment.model}")
        begin = folder.begin(cell)
        host.run(cell.experiment, begin, lambda done, total, what: watch(done, total, f"{cell.key} {what}"))


def _by_model(cells: Sequence[Cell]) -> list[Cell]:
    """Return cells so that those of one model follow one another."""
    models = [_model(cell) for cell in cells]
    return sorted(cells, key=lambda each: models.index(_model(each)))


def _model(cell: Cell) -> tuple[object, ...]:
    return cell.experiment.model, cell.experiment.engine, cell.experiment.loading


def _metrics(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The metrics of the cell in {path} are damaged: {error}.", f"Make them again: unspoken report {path}."
        ) from error
    return found


def _env(path: Path) -> dict[str, Any]:
    return record.RunFolder(path).env()
