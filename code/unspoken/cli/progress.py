"""How far long work is: bars with the time left on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import click

LINES = 50
Show = Callable[..., None]
"""Is told what is being done, how much of it is done and how much there is, and what else is worth knowing."""


def progress() -> AbstractContextManager[Show]:
    """Show how far things are, as fits where the error stream goes."""
    return bars() if sys.stderr.isatty() else lines()


@contextmanager
def bars() -> Iterator[Show]:
    """Show a bar for each thing that is told of."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        known: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int, more: str = "") -> None:
            if what not in known:
                known[what] = progress.add_task(what, total=total)
            progress.update(known[what], completed=done, description=what + more)

        yield show


@contextmanager
def lines() -> Iterator[Show]:
    """Print a line whenever another fiftieth of what is told of is done, however large the steps it is told in."""
    shown: dict[str, int] = {}

    def show(what: str, done: int, total: int, more: str = "") -> None:
        share = done * LINES // max(total, 1)
        if share > shown.get(what, -1):
            click.echo(f"{what}: {done} of {total}{more}", err=True)
            shown[what] = share

    yield show
