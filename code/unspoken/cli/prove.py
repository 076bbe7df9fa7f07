"""`unspoken prove` and what it shares with `run`: an experiment with a progress bar, a table and a verdict."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unspoken.cli.common import as_json, loading_options, note, print_json, quick_start

if TYPE_CHECKING:
    from unspoken.lab.experiment import Experiment
    from unspoken.lab.study import Host

results_option = click.option(
    "--results",
    default="results",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Results folder.",
)


@click.command()
@click.option("--full", is_flag=True, help="624 items instead of a pilot of 48: about an hour on two cores.")
@click.option("--items", type=click.IntRange(min=2), help="Another number of items.")
@click.option("--arms", help="Arms to run, separated by commas; by default all twelve.")
@click.option("--seed", type=click.IntRange(min=0), help="Another draw of facts.")
@click.option("--model", help="Name, folder, .gguf file or hub id.")
@click.option("--engine", help="What runs the model.")
@loading_options
@results_option
@as_json
def prove(full: bool, items: int | None, arms: str | None, seed: int | None, model: str | None, engine: str | None,
          loading: dict[str, Any], results: Path, as_json: bool) -> None:  # fmt: skip
    """Prove, with controls, that understanding moves through a cache.

    One agent reads facts that nobody can know; the other is asked for them, having got the facts in twelve
    ways: as text, as cache, as somebody else's cache, as noise, not at all. Killed at any moment and started
    again, it goes on where it was.
    """
    from unspoken.lab.experiment import FULL_ITEMS, Experiment

    given: dict[str, Any] = {"items": items, "seed": seed, "model": model, "engine": engine, **loading}
    if full:
        given |= {"items": items or FULL_ITEMS, "timed_items": 16}
    if arms is not None:
        given["arms"] = tuple(name.strip() for name in arms.split(",") if name.strip())
    conduct(Experiment(**{key: value for key, value in given.items() if value is not None}), results, as_json)


def conduct(experiment: Experiment, results: Path, as_json: bool, host: Host | None = None) -> None:
    """Run an experiment and show what came of it."""
    note(f"Loading {experiment.model} and checking its gate ...")
    with quick_start():
        from unspoken.lab.study import run_study
    with progress() as watch:
        study = run_study(experiment, results, watch, host)
    show_results(study.metrics, study.folder, as_json)


def show_results(metrics: dict[str, Any], folder: Path | None, as_json: bool) -> None:
    """Print a run's metrics as a table with its verdict and, if it has a folder, its report; or as JSON."""
    if as_json:
        print_json(metrics)
        return
    from rich.console import Console

    from unspoken.lab.tables import terminal
    from unspoken.lab.verdict import judge

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(terminal(metrics))
    for sentence in judge(metrics).sentences:
        console.print(sentence, highlight=False)
    if folder is not None:
        click.echo(f"\nReport: {folder / 'report.html'}")


@contextmanager
def progress() -> Iterator[Any]:
    """Show a bar with the time left on a terminal, and a line now and then anywhere else."""
    if not sys.stderr.isatty():
        yield _quiet_watch
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=300) as bar:
        job = bar.add_task("starting")
        yield lambda done, total, what: bar.update(job, completed=done, total=total, description=what or "starting")


def _quiet_watch(done: int, total: int, what: str) -> None:
    click.echo(f"{done}/{total} {what}", err=True)
