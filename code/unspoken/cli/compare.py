"""`unspoken compare`: two runs side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unspoken.cli.common import as_json, print_json

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@click.argument("left", type=click.Path(path_type=Path))
@click.argument("right", type=click.Path(path_type=Path))
@as_json
def compare(left: Path, right: Path, as_json: bool) -> None:
    """Compare the runs in the folders LEFT and RIGHT: how they were made, and each arm that both have.

    Question by question where both asked the same ones. A cell of a sweep is the folder cells/NAME in it.
    """
    from unspoken.lab.compare import compare as compared
    from unspoken.lab.compare import open_run

    found = compared(open_run(left), open_run(right))
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    for name, (one, other) in found["differs"].items():
        click.echo(f"{name}: {_shown(one)} | {_shown(other)}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_table(found))
    if found["paired"]:
        click.echo(f"Both asked the same {found['items']} questions; p by the exact McNemar test, adjusted (Holm).")
    else:
        click.echo("They asked different questions: only averages can be compared, and there is no p-value.")
    for side in ("left", "right"):
        if found[f"only_{side}"]:
            click.echo(f"Only in {found[side]}: {', '.join(found[f'only_{side}'])}")


def _table(found: dict[str, Any]) -> Table:
    from rich.table import Table

    from unspoken.lab.tables import bracket, percent, points, probability

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("arm", "left, %", "right, %", "right less left, points", "p"):
        table.add_column(title, justify="left" if title == "arm" else "right")
    for arm, of in found["arms"].items():
        moved = of["difference"]
        shown = points(moved["mean"]) + bracket(moved, points)
        table.add_row(arm, percent(of["left"]), percent(of["right"]), shown, probability(of.get("p_holm")))
    return table


def _shown(value: Any) -> str:
    return "not set" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
