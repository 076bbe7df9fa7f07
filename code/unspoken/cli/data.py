"""`unspoken data`: bring an agent's memories along from other services, and see what it has."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from unspoken.cachefile.header import printable
from unspoken.cli.common import agent, as_json, model_options, opened, print_json, shelf
from unspoken.cli.progress import progress
from unspoken.errors import StorageError

if TYPE_CHECKING:
    from unspoken.session import Agent

memories_option = click.option(
    "--memories", type=click.Path(path_type=Path), help="Folder of memories.  [default: below UNSPOKEN_HOME]"
)


@click.group()
def data() -> None:
    """Bring an agent's memories along from other services, and see what it has."""


@data.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--agent", required=True, help="Whose memory it becomes.")
@memories_option
@as_json
def import_(path: Path, agent: str, memories: Path | None, as_json: bool) -> None:
    """Import PATH into an agent's memory: a file, a zip file or a folder.

    Markdown and plain text, JSON and JSONL records with a text, and conversations as ChatGPT and Claude export them
    (conversations.json) or as chat APIs and ShareGPT write them. What is there already is not taken twice, and an
    import that was ended goes on where it was. Only words, titles and times are taken: no accounts, identifiers or
    attachments.
    """
    from unspoken.memory.importer import Memory
    from unspoken.memory.sources import sources

    found, unreadable = sources(path)
    with Memory(_folder(memories), agent) as memory, progress() as show:
        for source in found:
            memory.add(source, partial(show, printable(source.name)))
        told = msgspec.to_builtins(memory.report()) | {"not_imported": unreadable, "memory": str(memory.pieces)}
    if as_json:
        print_json(told)
        return
    _show(agent, told)
    for name in unreadable:
        click.echo(f"Not imported, no such file is known: {printable(name)}", err=True)


@data.command()
@click.argument("agent")
@memories_option
@as_json
def show(agent: str, memories: Path | None, as_json: bool) -> None:
    """Show what is in the memory of AGENT, and what was left out when it was imported."""
    from unspoken.memory.importer import Memory

    folder = _folder(memories)
    if not (folder / f"{agent}.jsonl").exists():
        raise StorageError(
            f"There is no memory of '{agent}' in {folder}.", "Make one with `unspoken data import PATH --agent NAME`."
        )
    with Memory(folder, agent) as memory:
        told = msgspec.to_builtins(memory.report()) | {"memory": str(memory.pieces)}
    if as_json:
        print_json(told)
        return
    _show(agent, told)


@data.command()
@click.argument("card", type=click.Path(path_type=Path))
@model_options
@as_json
def cartridge(card: Path, model: str, engine: str, loading: dict[str, Any], as_json: bool) -> None:
    """Read what the agent of CARD remembers once, and keep the cache: from then on it is opened, not read.

    The card names a memory (`memory: lyra.jsonl`, from the card's folder). Every command that takes cards opens it.
    """
    from unspoken.session import read_card

    read_card(card)  # A bad card is told at once, not after the model has loaded.
    loaded, _ = opened(model, engine, loading)
    first, again = (agent("", str(card), loaded) for _ in range(2))
    kept = shelf().path(loaded, first.frame.before)
    began = kept.exists()
    seconds = [_timed(who) for who in (first, again)]
    told = {
        "agent": first.name,
        "tokens": first.prefix.columns,
        "bytes": kept.stat().st_size if kept.exists() else 0,
        "file": str(kept) if kept.exists() else None,
        "seconds_read": None if began else seconds[0],
        "seconds_opened": seconds[1],
    }
    if as_json:
        print_json(told)
        return
    read = "had been read before" if began else f"read in {seconds[0]:.2f} s"
    click.echo(
        f"{printable(first.name)}: {told['tokens']} tokens, {read}, opened in {1000 * seconds[1]:.0f} ms: "
        f"{told['file'] or 'too short to be kept'}"
    )


def _timed(who: Agent) -> float:
    """Return how long an agent needs to have its beginning in mind."""
    began = time.perf_counter()
    who.prefix  # noqa: B018 - made here
    return time.perf_counter() - began


def _folder(given: Path | None) -> Path:
    from unspoken.modelstore import home

    return given or home() / "memories"


def _show(agent: str, told: dict[str, object]) -> None:
    click.echo(
        f"{printable(agent)} has {told['pieces']} pieces, {told['letters']} letters, from {told['records']} records in "
        f"{told['files']} files: {told['memory']}"
    )
    click.echo(f"  {told['duplicates']} pieces were there already; {told['broken']} records could not be read")
    skipped = told["skipped"]
    if isinstance(skipped, dict):
        for why, times in skipped.items():
            click.echo(f"  left out: {times} x {printable(why)}")
