"""`unspoken results`: all runs at a glance."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import msgspec

from unspoken.cli.common import as_json, print_json
from unspoken.cli.prove import results_option


@click.command()
@results_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with all runs here.")
@as_json
def results(results: Path, html: Path | None, as_json: bool) -> None:
    """List all runs in the results folder, newest first: what was asked, what came of it."""
    from unspoken.lab.index import index

    entries = index(results)
    if html is not None:
        from unspoken.lab.folders import writable, write
        from unspoken.lab.report import page

        prefix = Path(os.path.relpath(results, html.parent or ".")).as_posix()
        with writable(html.parent):
            write(html, page("index.html.j2", entries=entries, prefix="" if prefix == "." else f"{prefix}/").encode())
    if as_json:
        print_json(msgspec.to_builtins(entries))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("run", "cell", "questions", "moved?", "main figure"):
        table.add_column(title, justify="right" if title == "questions" else "left", overflow="fold")
    for each in entries:
        asked = "" if each.items is None else f"{each.items}{' (pilot)' if each.pilot else ''}"
        state = (each.verdict or "") if each.state == "finished" else each.state
        table.add_row(each.folder, each.cell, asked, state, each.told)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if html is not None:
        click.echo(f"Page: {html}")
