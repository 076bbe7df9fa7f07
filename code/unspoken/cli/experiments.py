"""`unspoken experiments`: what is in experiment files, before anything is run."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from unspoken.cli.common import as_json, print_json, quick_start
from unspoken.cli.prove import results_option
from unspoken.errors import UnspokenError


@click.group()
def experiments() -> None:
    """Check experiment files, and tell what they will take."""


@experiments.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@as_json
def validate(files: tuple[Path, ...], as_json: bool) -> None:
    """Check FILES: fields, arms, tasks, data and model files; nothing is loaded or run. Exit code 2 if one fails."""
    with quick_start():
        from unspoken.lab.estimate import cells_of
        from unspoken.lab.runner import check
        from unspoken.lab.sweep import load_plan
    told = []
    for file in files:
        try:
            cells = cells_of(load_plan(file))
        except UnspokenError as error:
            told.append({"file": str(file), "cell": None, "problem": error.problem, "hint": error.hint})
            continue
        for cell in cells:
            one: dict[str, str | None] = {"file": str(file), "cell": cell.key, "problem": None, "hint": None}
            try:
                check(cell.experiment)
            except UnspokenError as error:
                one |= {"problem": error.problem, "hint": error.hint}
            told.append(one)
    if as_json:
        print_json(told)
    for each in told if not as_json else ():
        name = each["file"] if each["cell"] is None else f"{each['file']} {each['cell']}"
        click.echo(f"{name}: {'sound' if each['problem'] is None else each['problem'] + ' ' + str(each['hint'])}")
    if any(each["problem"] for each in told):
        sys.exit(2)


@experiments.command()
@click.argument("file", type=click.Path(path_type=Path))
@results_option
@as_json
def estimate(file: Path, results: Path, as_json: bool) -> None:
    """Tell what the experiment in FILE will take, by the pilot of it in the results folder.

    Make one first: unspoken run FILE --pilot.
    """
    with quick_start():
        from unspoken.lab.estimate import estimates
        from unspoken.lab.sweep import load_plan
    found = estimates(load_plan(file), results)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    for each in found:
        took = "no pilot" if each.seconds is None else f"about {_hours(each.seconds)}"
        click.echo(f"{each.key}: {each.items} questions in {each.arms} arms, {took}")
    known = [each.seconds for each in found if each.seconds is not None]
    if known:
        click.echo(f"{len(known)} of {len(found)} cells: about {_hours(sum(known))}, on the machine of the pilot.")


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min" if seconds >= 60 else "a minute"
