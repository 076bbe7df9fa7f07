"""`unspoken store up`, `status`, `down`: the store that many machines share."""

from __future__ import annotations

from pathlib import Path

import click

from unspoken.cli.common import as_json, human_bytes, note, print_json
from unspoken.errors import TransportFailed
from unspoken.modelstore import home

name_option = click.option("--name", default="main", show_default=True, help="What the store is called here.")


@click.command()
@name_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens. It asks nobody who they are.")
@click.option("--port", type=click.IntRange(1, 65535), default=15555, show_default=True, help="For caches.")
@click.option("--http-port", type=click.IntRange(1, 65535), default=18081, show_default=True, help="For the rest.")
@click.option("--memory", type=float, default=2.0, show_default=True, help="Shared memory for caches, GiB.")
@click.option("--chunk", type=int, default=32, show_default=True, help="Tokens that are kept together.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep caches in this folder as well; "
              "stores with the same one share them.")  # fmt: skip
@click.option("--redis", help="Keep caches on this Redis or Valkey server as well: HOST:PORT.")
@as_json
def up(name: str, host: str, port: int, http_port: int, memory: float, chunk: int, folder: Path | None,
       redis: str | None, as_json: bool) -> None:  # fmt: skip
    """Start a store that outlives this command: an LMCache server.

    Whoever reaches its ports may read, change and delete what is in it, and run programs as you: open them to machines
    you trust, if to any.
    """
    from unspoken.transports import lmcache_server as server
    from unspoken.transports.lmcache_client import Address

    tiers = [server.shared_folder(folder)] if folder is not None else []
    tiers += [server.redis(redis)] if redis is not None else []
    limits = server.Limits(Address(host, port, http_port), memory, chunk, tuple(tiers))
    if not limits.address.local:
        note(f"Whoever can reach {host} may read and change all caches in this store, and run programs as you.")
    note("Starting ...")
    found = server.start(name, stores(), limits)
    if as_json:
        print_json({"name": name, "address": f"lmcache:{found.address}", "pid": found.pid, "log": found.log})
        return
    click.echo(f"The store '{name}' runs: process {found.pid}, log {found.log}")
    click.echo(f"Its address: lmcache:{found.address}")


@click.command()
@as_json
def status(as_json: bool) -> None:
    """Tell which stores were started here, and how full they are."""
    from unspoken.transports import lmcache_server as server

    told = []
    for name in server.names(stores()):
        found = server.running(name, stores())
        if found is None:
            told.append({"name": name, "running": False})
            continue
        try:
            about = server.usage(found.address)
        except TransportFailed as error:
            about = {"healthy": False, "problem": error.problem}
        told.append({"name": name, "running": True, "address": f"lmcache:{found.address}", "pid": found.pid, **about})
    if as_json:
        print_json(told)
        return
    for each in told or [{}]:
        click.echo(_line(each))


@click.command()
@name_option
def down(name: str) -> None:
    """End a store; caches that are in its memory only are gone."""
    from unspoken.transports import lmcache_server as server

    server.stop(name, stores())
    click.echo(f"The store '{name}' has ended.")


def stores() -> Path:
    """Return where it is kept which stores run."""
    return home() / "stores"


def _line(each: dict[str, object]) -> str:
    if not each:
        return "No store was started here. Start one: unspoken store up"
    if not each["running"]:
        return f"{each['name']}: has ended by itself, or the machine was restarted (`unspoken store down` forgets it)"
    if "problem" in each:
        return f"{each['name']}: process {each['pid']} runs, but: {each['problem']}"
    used, whole = (human_bytes(int(str(each[part]))) for part in ("bytes_used", "bytes"))
    return f"{each['name']}: {each['address']}, {each['objects']} objects, {used} of {whole}"
