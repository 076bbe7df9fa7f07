"""`unspoken adopt`: a state that llama.cpp or llama-server saved becomes a cache file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from unspoken.cli.common import as_json, human_bytes, loading_options, opened, print_json
from unspoken.errors import StorageError


@click.command()
@click.argument("state", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@click.option("--model", required=True, help="The .gguf file (or its name) that made the state.")
@loading_options
@as_json
def adopt(state: Path, out: Path, model: str, loading: dict[str, Any], as_json: bool) -> None:
    """Turn STATE, a sequence that llama.cpp or a slot that llama-server saved, into a cache file to continue from.

    A state does not say which model made it: its first tokens are read again, and columns that are not the
    model's own are refused.
    """
    try:
        data = state.read_bytes()
    except OSError as error:
        raise StorageError(f"The state {state} cannot be read: {error.strerror}.", "Give an existing file.") from error
    if not out.parent.is_dir():
        raise StorageError(f"The folder {out.parent} does not exist.", "Make it first, or choose another --out.")
    loaded, _ = opened(model, "llamacpp", loading)
    from unspoken.cachefile import write_cache
    from unspoken.engines.llamacpp.adopt import adopt as adopted

    cache = adopted(loaded, data)  # type: ignore[arg-type]  # The engine was opened by its name.
    manifest = write_cache(cache, out)
    size = out.stat().st_size
    if as_json:
        print_json({"file": str(out), "bytes": size, "columns": cache.columns, "digest": manifest.digest})
        return
    click.echo(f"{out}: {cache.columns} columns of {cache.spec.name}, {human_bytes(size)}.")
    click.echo(f'Next: unspoken ask --engine llamacpp --model {model} --cache {out} "your question"')
