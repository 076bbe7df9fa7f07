"""`unspoken redact`: take a system prompt, a thought or some columns out of a cache file before it is passed on."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from unspoken.cachefile.header import peek
from unspoken.cli.common import as_json, human_bytes, print_json, quick_start
from unspoken.errors import StorageError, UsageError
from unspoken.manifest import SpanKind


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@click.option(
    "--span", "kinds", multiple=True, type=click.Choice(get_args(SpanKind)), help="Kind of columns that go; repeatable."
)
@click.option(
    "--columns",
    "ranges",
    multiple=True,
    metavar="FIRST-END",
    help="Columns that go, from 0, the last one not included, as `unspoken inspect` shows spans: 3-17; repeatable.",
)
@as_json
def redact(file: Path, out: Path, kinds: tuple[SpanKind, ...], ranges: tuple[str, ...], as_json: bool) -> None:
    """Remove columns of the cache FILE, with their tokens; the others keep their positions, and the file its wire type.

    Redacting is not forgetting: the columns that stay were computed while the others were in view, and whoever guesses
    what stood there can try the guess. A packed file is unpacked and packed again, and rounded once more. A seal does
    not outlive it.
    """
    runs = tuple(map(columns_of, ranges))
    if not kinds and not runs:
        raise UsageError("Nothing was named that shall go.", "Give --span system, --columns 3-17, or both.")
    if not out.parent.is_dir():
        raise StorageError(f"The folder {out.parent} does not exist.", "Make it first, or choose another --out.")
    header = peek(file)
    with quick_start():
        from unspoken.cachefile import read_cache, write_cache
        from unspoken.transforms.redact import Redact

        cache = read_cache(file, header=header)
    kept = Redact(kinds, runs)(cache)
    manifest = write_cache(kept, out, header.manifest.cache.dtype)
    facts = {
        "file": str(out),
        "bytes": out.stat().st_size,
        "columns": kept.columns,
        "removed": cache.columns - kept.columns,
        "dtype": manifest.cache.dtype,
        "was_sealed": header.seal is not None,
        "digest": manifest.digest,
    }
    if as_json:
        print_json(facts)
        return
    size = human_bytes(out.stat().st_size)
    click.echo(f"{out}: {kept.columns} columns as {manifest.cache.dtype}, {size}; {facts['removed']} removed.")
    click.echo("What stays was computed with what was removed in view: that can still be guessed and tried.")
    if header.seal is not None:
        click.echo(f"{file} is sealed; {out} is another file and is not. Next: unspoken seal {out}")


def columns_of(text: str) -> tuple[int, int]:
    """Return the columns that 3-17 means: 3 to 16, as the first one and the one after the last.

    Raises:
        UsageError: If it is no range.
    """
    start, _, stop = text.partition("-")
    if not (start.isdecimal() and stop.isdecimal() and len(text) < 24):
        raise UsageError(f"'{text}' is no range of columns.", "Write 3-17; give --columns again for another range.")
    return int(start), int(stop)
