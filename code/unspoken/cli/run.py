"""`unspoken run`: an experiment, or a sweep of several, from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unspoken.cli.common import as_json, note, print_json, quick_start
from unspoken.cli.prove import conduct, progress, results_option, show_results
from unspoken.errors import UsageError

if TYPE_CHECKING:
    from unspoken.lab.study import Host
    from unspoken.lab.sweep import Sweep
    from unspoken.lab.sweeprun import SweepStudy


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--cells", multiple=True, help="Run only the cells of a sweep with this in their name; may be repeated.")
@click.option("--pilot", is_flag=True, help="Ask a dozen questions, in each cell whose data and models are here.")
@click.option("--ray", help="Run on the workers of a Ray cluster: HOST:PORT, auto, or local to start one here.")
@click.option("--workers", type=click.IntRange(min=1), help="How many, with --ray; each has a model.  [default: 2]")
@results_option
@as_json
def run(experiment: Path, cells: tuple[str, ...], pilot: bool, ray: str | None, workers: int | None, results: Path,
        as_json: bool) -> None:  # fmt: skip
    """Run the EXPERIMENT of a YAML file (see experiments/); an unfinished run of it is gone on with.

    A file with `cells` is a sweep: several experiments in one run folder. Two processes may run it at the same time,
    each with other cells. With --ray, batches of questions go to workers on any number of machines.
    """
    from unspoken.lab.sweep import Cell, Sweep, load_plan

    plan = load_plan(experiment)
    if cells and not isinstance(plan, Sweep):
        raise UsageError(f"{experiment} is one experiment and has no cells.", "Leave --cells out.")
    if ray is None and workers is not None:
        raise UsageError("Workers are those of a cluster.", "Give --ray local, say, with --workers.")
    host = None if ray is None else _cluster(ray, workers or 2)
    if pilot:
        plan, cells = _piloted(plan if isinstance(plan, Sweep) else Sweep(plan.name, (Cell(plan),)), cells), ()
    if isinstance(plan, Sweep):
        conduct_sweep(plan, results, cells, as_json, host)
    else:
        conduct(plan, results, as_json, host)


def conduct_sweep(
    sweep: Sweep, results: Path, wanted: tuple[str, ...], as_json: bool, host: Host | None = None
) -> None:
    """Run cells of a sweep and show what came of it."""
    note(f"Checking {len(sweep.matching(wanted))} cells ...")
    with quick_start():
        from unspoken.lab.sweeprun import run_sweep
    with progress() as watch:
        study = run_sweep(sweep, results, wanted, watch, host)
    show_sweep(study, as_json)


def show_sweep(study: SweepStudy, as_json: bool) -> None:
    """Print the metrics of a sweep's finished cells as tables with their verdicts, or as JSON."""
    if as_json:
        print_json(study.metrics)
    else:
        for key, metrics in study.metrics["cells"].items():
            click.echo(f"\n{key}\n")
            show_results(metrics, None, as_json)
        _show_claim(study)
    if study.unfinished:
        click.echo(f"\nNot finished yet, or run by another process: {', '.join(study.unfinished)}", err=True)
    elif not as_json:
        click.echo(f"\nReport: {study.folder / 'report.html'}")


def _show_claim(study: SweepStudy) -> None:
    """Print what the cells say of the founding claim together, if any of them tests it."""
    from unspoken.lab.founding import founding, has_claims

    cells = study.metrics["cells"]
    if has_claims(cells):
        click.echo(f"\n{' '.join(founding(cells, study.unfinished).sentences)}")


def _piloted(sweep: Sweep, wanted: tuple[str, ...]) -> Sweep:
    """Return the small version of a sweep's cells that are wanted, and say which of them are not in it."""
    with quick_start():
        from unspoken.lab.sweeprun import pilot
    small, left = pilot(sweep, wanted)
    for each in left:
        click.echo(each, err=True)
    return small


def _cluster(address: str, workers: int) -> Host:
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UsageError("Clusters need Ray.", 'Install it: pip install "unspoken[ray]".') from error
    note(f"Starting {workers} workers ...")
    from unspoken.lab.cluster import Cluster

    return Cluster(address, workers)
