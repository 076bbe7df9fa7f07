"""`unspoken verify`: is a cache file sound, and what keeps it from being used with a model."""

from __future__ import annotations

import click
import msgspec

from unspoken.cachefile.header import peek, printable
from unspoken.cli.common import as_json, note, print_json, quick_start, require_whole
from unspoken.manifest import Mismatch, compare, require_compatible


@click.command()
@click.argument("file")
@click.option(
    "--for", "model", required=True, help="Name, folder, .gguf file or hub id of the model that shall read it."
)
@click.option("--engine", default="transformers", show_default=True, help="What runs the model.")
@as_json
def verify(file: str, model: str, engine: str, as_json: bool) -> None:
    """Check the cache FILE's digests and list every difference to a model.

    Exit code 0 if the file can be used, 2 if it is damaged, lacks layers, or another model made it.
    """
    peek(file)
    with quick_start():
        note(f"Loading {model} ...")
        from unspoken.api import open_model
        from unspoken.cachefile import read_cache

        cache = read_cache(file)
        spec = open_model(model, engine).spec
    found = compare(cache.spec, spec)
    if len(cache.layers) != cache.spec.layers:
        found.append(Mismatch("layers held", "fatal", str(len(cache.layers)), str(cache.spec.layers)))
    if as_json:
        print_json({"sound": True, "mismatches": [msgspec.to_builtins(each) for each in found]})
    else:
        click.echo(f"{file}: sound, {len(cache.layers)} layers of {cache.columns} columns, all digests match.")
        for each in found:
            click.echo(
                printable(f"{each.severity:<6} {each.field}: the cache has {each.found}, the model {each.expected}")
            )
        if not found:
            click.echo(f"  no difference to {spec.name}: it can be used.")
    require_compatible(cache.spec, spec)
    require_whole(cache)
