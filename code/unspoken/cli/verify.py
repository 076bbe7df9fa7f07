"""`unspoken verify`: is a cache file sound, who vouches for it, does it fit a model, is it what its tokens make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from unspoken.cachefile.header import peek, printable
from unspoken.cli import recompute as again
from unspoken.cli.common import as_json, note, print_json, quick_start, require_whole
from unspoken.cli.trusting import judged, ledger, seal_facts, told
from unspoken.errors import UsageError
from unspoken.manifest import Mismatch, compare, require_compatible

if TYPE_CHECKING:
    from unspoken.cache import KVCache
    from unspoken.engines.protocol import Engine
    from unspoken.spec import ModelSpec


@click.command()
@click.argument("file")
@click.option(
    "--for",
    "model",
    help="Name, folder, .gguf file or hub id of the model that shall read it.  [with --recompute: smollm2-135m]",
)
@click.option("--engine", default="transformers", show_default=True, help="What runs the model.")
@click.option("--trusted", is_flag=True, help="Refuse the file unless a trusted sender has sealed it.")
@click.option("--session", help="With --trusted: what it has to be sealed for.")
@click.option("--from", "sender", help="With --trusted: who has to have sealed it.")
@click.option("--once", is_flag=True, help="With --trusted: refuse the file the next time it comes.")
@again.recompute_options
@as_json
def verify(
    file: str,
    model: str | None,
    engine: str,
    trusted: bool,
    session: str | None,
    sender: str | None,
    once: bool,
    recompute: again.Recompute | None,
    as_json: bool,
) -> None:
    """Check the cache FILE: its digests, its seal (--trusted), every difference to a model (--for), its columns.

    A seal does not tell that columns are what the token ids beside them make; --recompute does.

    Exit code 0 if the file can be used, 2 if it is damaged, lacks layers, another model made it, its seal is refused,
    or its columns are not what its tokens make. The seal is judged first, before anything else of the file is touched.
    """
    if recompute is not None and model is None:
        model = "smollm2-135m"
    require_something(model, trusted, session, sender, once)
    header = judged(file, session, sender, ledger() if once else None) if trusted else peek(file)
    with quick_start():
        from unspoken.cachefile import read_cache

        cache = read_cache(file, header=header)
        reader = None if model is None else loaded(model, engine)
    facts: dict[str, Any] = {"sound": True}
    lines = [f"{file}: sound, {len(cache.layers)} layers of {cache.columns} columns, all digests match."]
    if trusted and header.seal is not None:
        facts["seal"] = seal_facts(header.seal)
        lines.append(printable(f"Sealed by {told(header.seal)}: trusted."))
    if reader is not None:
        found = differences(cache, reader.spec)
        facts["mismatches"] = [msgspec.to_builtins(each) for each in found]
        lines += compared(found, reader.spec)
    honest = None if reader is None or recompute is None else again.recomputed(cache, reader, recompute)
    if honest is not None:
        facts["recomputed"] = honest.facts
        lines += honest.lines
    show(facts, lines, as_json)
    if reader is not None:
        require_compatible(cache.spec, reader.spec)
    if honest is not None:
        honest.require()
    require_whole(cache)


def require_something(model: str | None, trusted: bool, session: str | None, sender: str | None, once: bool) -> None:
    """Refuse options that ask for nothing, or that mean something with --trusted only.

    Raises:
        UsageError: If --trusted is missing; click's if nothing was asked for.
    """
    if not trusted and (once or session is not None or sender is not None):
        raise UsageError("--session, --from and --once are about a file's seal.", "Give --trusted as well.")
    if model is None and not trusted:
        raise click.UsageError("There is nothing to verify the file for: give --for MODEL, --trusted, or both.")


def loaded(model: str, engine: str) -> Engine:
    """Return a model, without the gate."""
    note(f"Loading {model} ...")
    from unspoken.api import open_model

    return open_model(model, engine)


def differences(cache: KVCache, spec: ModelSpec) -> list[Mismatch]:
    """Return every difference between a cache and what a model would have made."""
    found = compare(cache.spec, spec)
    if len(cache.layers) != cache.spec.layers:
        found.append(Mismatch("layers held", "fatal", str(len(cache.layers)), str(cache.spec.layers)))
    return found


def compared(found: list[Mismatch], spec: ModelSpec) -> list[str]:
    """Return the differences to a model as lines of text."""
    if not found:
        return [f"  no difference to {spec.name}: it can be used."]
    return [
        printable(f"{each.severity:<6} {each.field}: the cache has {each.found}, the model {each.expected}")
        for each in found
    ]


def show(facts: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        print_json(facts)
        return
    for line in lines:
        click.echo(line)
