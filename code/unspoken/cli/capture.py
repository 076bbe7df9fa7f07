"""`unspoken capture`: an agent reads a document and its cache goes into a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from unspoken.cli.common import agent, as_json, human_bytes, model_options, opened, print_json, quick_start, read_text
from unspoken.errors import StorageError


@click.command()
@click.argument("document")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@click.option("--agent", "name", default="lyra", show_default=True, help="Name of the agent that reads.")
@click.option("--card", type=click.Path(), help="YAML card of the agent, instead of a name.")
@click.option(
    "--whole",
    is_flag=True,
    help="Keep the whole cache, exact and with the agent's own prompt, to continue from; by default only the "
    "content columns are kept, position-free, to insert.",
)
@click.option(
    "--wire",
    help="How keys and values lie in the file: float32, bfloat16, float16, int8, int4, q8_0 or q4_0; by default "
    "bfloat16, or the model's own type with --whole.",
)
@click.option("--keep-tokens/--no-tokens", default=True, help="Keep the document's token ids beside its columns.")
@model_options
@as_json
def capture(
    document: str,
    out: Path,
    name: str,
    card: str | None,
    whole: bool,
    wire: str | None,
    keep_tokens: bool,
    model: str,
    engine: str,
    loading: dict[str, Any],
    as_json: bool,
) -> None:
    """Let an agent read DOCUMENT (a text file, or - for standard input) and keep its cache in a file."""
    text = read_text(document)
    if not out.parent.is_dir():
        raise StorageError(f"The folder {out.parent} does not exist.", "Make it first, or choose another --out.")
    if wire is not None:
        with quick_start():
            from unspoken.cachefile import file_codec

            file_codec(wire)  # A name that does not exist is told at once, not after the model has loaded.
    loaded, _ = opened(model, engine, loading)
    from unspoken.cachefile import write_cache
    from unspoken.channels.kv import content_columns

    reading = agent(name, card, loaded).read(text)
    kept = reading.cache if whole else content_columns(reading.cache)
    if not keep_tokens:
        kept = kept.without_tokens()
    began = time.perf_counter()
    manifest = write_cache(kept, out, wire or (loaded.dtype if whole else "bfloat16"))
    facts = {
        "file": str(out),
        "bytes": out.stat().st_size,
        "columns": kept.columns,
        "dtype": manifest.cache.dtype,
        "mode": "continue" if whole else "insert",
        "seconds_read": reading.seconds,
        "seconds_write": time.perf_counter() - began,
        "digest": manifest.digest,
    }
    if as_json:
        print_json(facts)
        return
    size = human_bytes(out.stat().st_size)
    click.echo(
        f"{out}: {kept.columns} columns of {kept.spec.name} as {manifest.cache.dtype}, {size}, "
        f"read in {reading.seconds:.2f} s. Digest {manifest.digest[:16]}."
    )
    click.echo(f'Next: unspoken ask --cache {out} "your question"')
