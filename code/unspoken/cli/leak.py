"""`unspoken leak`: read the text out of a cache file, as anybody can who has the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from unspoken.cachefile.header import peek
from unspoken.cli.common import as_json, loading_options, note, print_json, quick_start

WARNING = (
    "This text was read from the numbers of layer 0, not from token ids: whoever has this file and the model can do "
    "the same. Treat the file as you treat the text."
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", default="smollm2-135m", show_default=True, help="Name, folder, .gguf file or hub id.")
@click.option("--engine", default="transformers", show_default=True, help="What runs the model.")
@loading_options
@as_json
def leak(file: Path, model: str, engine: str, loading: dict[str, Any], as_json: bool) -> None:
    """Show what the cache FILE gives away: its text, read from layer 0, with or without token ids in it.

    It compares each column with that of every token of the vocabulary. Only layer 0 is read; a file without it is not
    safe, but needs guessing the text.
    """
    header = peek(file)
    with quick_start():
        note(f"Loading {model} ...")
        from unspoken.api import open_model
        from unspoken.cachefile import read_cache
        from unspoken.engines.protocol import Loading
        from unspoken.manifest import require_compatible
        from unspoken.trust.leak import leak as read_out

        held = [layer.index for layer in header.manifest.cache.layers]
        cache = read_cache(file, layers=[0] if 0 in held else None, header=header)
        opened = open_model(model, engine, Loading(**loading))
    require_compatible(cache.spec, opened.spec)
    note("Comparing with every token of the vocabulary ...")
    found = read_out(cache, opened)
    if as_json:
        print_json({"file": str(file), "columns": len(found.token_ids)} | asdict(found))
        return
    for line in found.text.splitlines():
        # All of it, unlike `printable`: what a file gives away is not cut short. It must not steer a terminal either.
        click.echo("".join(letter if letter.isprintable() else " " for letter in line))
    checked = (
        "the file names no token ids"
        if found.recovered is None
        else f"{found.recovered:.1%} are the ids the file names"
    )
    click.echo(
        f"[{len(found.token_ids)} tokens from the {found.by} of layer 0 in {found.seconds:.1f} s; {checked}]", err=True
    )
    click.echo(WARNING, err=True)
