"""`unspoken report`: metrics and report of a run, again, from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unspoken.cli.common import as_json
from unspoken.cli.prove import progress, show_results
from unspoken.cli.recognised import show_recognition
from unspoken.cli.run import show_sweep
from unspoken.errors import UsageError

if TYPE_CHECKING:
    from unspoken.lab.study import Study


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@as_json
def report(folder: Path, as_json: bool) -> None:
    """Rebuild metrics.json and report.html of the run in FOLDER; the same samples give the same bytes."""
    from unspoken.lab.recognition.evaluate import close_recognition, open_recognition
    from unspoken.lab.sweeprun import close_sweep, open_sweep

    recognition = open_recognition(folder)
    if recognition is not None:
        with progress() as watch:
            study = close_recognition(folder, recognition, watch)
        show_recognition(study.metrics, study.folder, as_json)
        return
    sweep = open_sweep(folder)
    if sweep is None:
        study = rebuilt(folder)
        show_results(study.metrics, study.folder, as_json)
        return
    if missing := [cell.key for cell in sweep.sweep.cells if not sweep.cell(cell).is_dir()]:
        raise UsageError(
            f"The sweep in {folder} is unfinished: it lacks {', '.join(missing)}.",
            "Run it again, it goes on; or name the folder of one cell, below cells/.",
        )
    for cell in sweep.sweep.cells:
        rebuilt(sweep.cell(cell))
    show_sweep(close_sweep(sweep), as_json)


def rebuilt(folder: Path) -> Study:
    """Compute metrics and report of a run from its folder and write them.

    Raises:
        UsageError: If there is no run in it, or it is damaged or unfinished.
    """
    from unspoken.lab.record import open_finished
    from unspoken.lab.study import close_study, expected

    opened = open_finished(folder)
    experiment, samples, _ = opened.contents()
    there, wanted = len({sample.cell for sample in samples}), expected(experiment, samples)
    if there < wanted:
        raise UsageError(
            f"The run in {folder} is unfinished: {there} of its samples are there, and it has {wanted} at least.",
            "Start it again; it goes on.",
        )
    return close_study(opened, experiment, samples)
