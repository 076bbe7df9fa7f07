"""`unspoken bench`: performance figures, each a ratio of things measured in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from unspoken.cli.common import as_json, model_options, note, opened, print_json
from unspoken.cli.prove import results_option


@click.group()
def bench() -> None:
    """Measure hand-overs on this machine."""


@bench.command()
@click.option(
    "--tokens", default="256,800,2048,2700", show_default=True, help="Lengths of the document, separated by commas."
)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Rounds; the median counts.")
@click.option("--wire", help="Element type in the file.  [default: the engine's, bfloat16 for float32]")
@model_options
@results_option
@as_json
def handoff(
    tokens: str,
    repeats: int,
    wire: str | None,
    model: str,
    engine: str,
    loading: dict[str, Any],
    results: Path,
    as_json: bool,
) -> None:
    """Capture, export, load, inject and first token, against prefilling the text and against raw safetensors."""
    from unspoken.errors import UsageError

    lengths = [part.strip() for part in tokens.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in lengths):
        raise UsageError(f"--tokens is '{tokens}'.", "Give lengths of 1 or more, separated by commas: 256,800.")
    loaded, gate = opened(model, engine, loading)
    from unspoken.bench.handoff import measure, table
    from unspoken.bench.record import keep

    wire = wire or ("bfloat16" if loaded.dtype == "float32" else loaded.dtype)
    found = measure(loaded, [int(part) for part in lengths], repeats, wire, note)
    folder = keep("bench-handoff", found, loaded, gate, results)
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    Console(width=150).print(table(found))
    click.echo(f"Kept in {folder}")
