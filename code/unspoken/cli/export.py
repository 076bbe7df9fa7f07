"""`unspoken export`: a run's table for a paper or another program."""

from __future__ import annotations

import json
from pathlib import Path

import click

from unspoken.errors import UsageError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--as", "form", type=click.Choice(["csv", "latex", "markdown"]), default="csv", show_default=True,
              help="CSV has every figure unrounded; the others are the short table.")  # fmt: skip
def export(folder: Path, form: str) -> None:
    """Print the table of the run or sweep in FOLDER."""
    from unspoken.lab.export import as_csv, as_latex, as_markdown

    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        cells = metrics.get("cells") or {"": metrics}
        arms = [of["arms"] for of in cells.values()]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UsageError(
            f"There is no finished run with arms in {folder} ({type(error).__name__}).", "See `unspoken results`."
        ) from error
    if not all(arms):
        raise UsageError(f"The run in {folder} has no arms.", "See `unspoken results`.")
    click.echo({"csv": as_csv, "latex": as_latex, "markdown": as_markdown}[form](metrics), nl=False)
