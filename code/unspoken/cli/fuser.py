"""`unspoken fuser`: train, inspect and evaluate maps from one model's cache to another's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unspoken.cli.common import as_json, human_bytes, note, print_json, quick_start
from unspoken.cli.prove import results_option

if TYPE_CHECKING:
    from unspoken.train.study import Watchers


@click.group()
def fuser() -> None:
    """Train, inspect and measure maps from one model's cache to another's."""


@fuser.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--models", default="models", show_default=True, type=click.Path(path_type=Path), help="Where the fuser is put."
)
@results_option
@as_json
def train(config: Path, models: Path, results: Path, as_json: bool) -> None:
    """Train the fuser of CONFIG (see experiments/fusers/); an unfinished run of it is gone on with."""
    from unspoken.train.config import load_training

    training = load_training(config)
    note(f"Training {training.name} ...")
    with quick_start():
        from unspoken.train.study import run_training
    with watchers() as watch:
        done = run_training(training, results, models, watch)
    if as_json:
        print_json(done.metrics)
        return
    click.echo(f"Fuser: {done.fuser}\nRun: {done.run}")
    for name, value in done.metrics["last_losses"].items():
        click.echo(f"{name} loss: {value:.3f} nats (mean of the last steps)")


@fuser.command()
@click.argument("name")
@as_json
def inspect(name: str, as_json: bool) -> None:
    """Show what the fuser NAME is: a folder, a name below models/, or a repository on the hub."""
    from unspoken.fusers.folder import described

    told = described(name)
    if as_json:
        print_json(told)
        return
    for key, value in told.items():
        shown = human_bytes(value) if key.startswith("bytes") else value
        click.echo(f"{key.replace('_', ' '):<22} {shown}")


@contextmanager
def watchers() -> Iterator[Watchers]:
    """Show progress bars with the time that is left: one for each thing that is prepared, and one for the steps."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from unspoken.train import loop
    from unspoken.train.study import Watchers

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        known: dict[str, TaskID] = {}

        def preparing(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total)
            bars.update(known[what], completed=done)

        def training(at: loop.Progress) -> None:
            told = ", ".join(f"{name} {value:.2f}" for name, value in at.losses.items())
            preparing("steps", at.step, at.steps)
            bars.update(known["steps"], description=f"steps ({told})")

        yield Watchers(preparing, training)
