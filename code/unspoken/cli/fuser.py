"""`unspoken fuser`: train, inspect and evaluate maps from one model's cache to another's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unspoken.cli.common import as_json, human_bytes, note, print_json, quick_start
from unspoken.cli.progress import progress
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
    from unspoken.cachefile.header import printable
    from unspoken.fusers.folder import described

    told = described(name)
    if as_json:
        print_json(told)
        return
    settings, fingerprints = told.pop("settings"), told.pop("fingerprints")
    lines = {key: human_bytes(value) if key.startswith("bytes") else value for key, value in told.items()}
    lines |= settings | {
        f"{role} {part}": value for role, parts in fingerprints.items() for part, value in parts.items()
    }
    for key, value in lines.items():
        click.echo(f"{key.replace('_', ' '):<26} {printable(str(value))}")


@fuser.command("eval")
@click.argument("name")
@click.option(
    "--texts",
    required=True,
    type=click.Path(path_type=Path),
    help="Texts it was not trained on: a text file, or JSON lines with a field `text`.",
)
@click.option("--passages", default=30, show_default=True, type=click.IntRange(min=2), help="The last so many of them.")
@click.option("--columns", default=500, show_default=True, type=click.IntRange(min=1), help="Columns time is taken on.")
@results_option
@as_json
def evaluate(name: str, texts: Path, passages: int, columns: int, results: Path, as_json: bool) -> None:
    """Measure the fuser NAME: how often the receiver says what it would have said had it read, and what it takes.

    For whether it carries what was understood, run an experiment with its arms, such as experiments/crossmodel.yaml.
    """
    from unspoken.train.texts import Passages

    found = Passages.of(texts, 700).passages[-passages:]
    note(f"Measuring {name} ...")
    with quick_start():
        from unspoken.train.evaluate import evaluate as measure

        folder, metrics = measure(name, found, columns, results)
    if as_json:
        print_json(metrics)
        return
    click.echo(
        f"says what it would have said after reading: {metrics['top1_agreement']:.1%} of {metrics['tokens']} tokens\n"
        f"with another text's columns: {metrics['top1_agreement_control']:.1%}, with none: "
        f"{metrics['top1_agreement_none']:.1%}\n"
        f"{metrics['columns']} columns: fused in {metrics['seconds_fuse']:.3f} s, read in "
        f"{metrics['seconds_prefill']:.3f} s ({metrics['fuse_to_prefill']:.2f} of it)\n"
        f"Run: {folder}"
    )


@contextmanager
def watchers() -> Iterator[Watchers]:
    """Show how far a training is: bars with the time left on a terminal, a line now and then anywhere else."""
    from unspoken.train import loop
    from unspoken.train.study import Watchers

    with progress() as show:

        def training(at: loop.Progress) -> None:
            losses = ", ".join(f"{name} {value:.2f}" for name, value in at.losses.items())
            show("steps", at.step, at.steps, f" ({losses})")

        yield Watchers(show, training)
