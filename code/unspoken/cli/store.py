"""`unspoken store`: leave caches where another process, or another machine, takes them up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unspoken.cachefile.header import Header, peek, printable
from unspoken.cli.common import as_json, human_bytes, print_json
from unspoken.cli.passphrases import KEY_VARIABLE, asked
from unspoken.cli.store_server import down, status, up
from unspoken.cli.trusting import keys_folder, lifetime, trust_store
from unspoken.errors import UsageError

if TYPE_CHECKING:
    from unspoken.transports import Judge, Sign

store_option = click.option(
    "--in", "address", default="shm", show_default=True, help="Where: shm, shm:NAME, file:FOLDER, lmcache:..."
)


@click.group()
def store() -> None:
    """Leave caches in a store, and get them from there; start one that many machines share."""


for command in (up, status, down):
    store.add_command(command)


@store.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("key")
@store_option
@click.option("--as", "name", help="Seal it there with the key of this name: the agent that made the file.")
@click.option("--session", default="", help="What it is sealed for; a receiver can insist on it.")
@click.option("--ttl", default="1h", show_default=True, help="For how long the seal shall be accepted: 45s, 30m, 1h.")
@as_json
def put(file: Path, key: str, address: str, name: str | None, session: str, ttl: str, as_json: bool) -> None:
    """Leave the cache of FILE in a store, under KEY, in the place of what was there."""
    header = peek(file)
    if name is None and (header.seal is not None or session):
        raise UsageError(
            f"The seal of {file} is for that file." if header.seal else "Nobody seals it for a session.",
            "Give --as NAME to seal what is left in the store.",
        )
    from unspoken.cachefile import read_cache
    from unspoken.transports import open_transport

    sign = None if name is None else _signer(name, session, lifetime(ttl))
    cache = read_cache(file, header=header)
    began = time.perf_counter()
    with open_transport(address) as transport:
        manifest = transport.put(key, cache, header.manifest.cache.dtype, sign)
    seconds = time.perf_counter() - began
    size = header.file_bytes - header.header_bytes
    if as_json:
        print_json({"key": key, "store": address, "bytes": size, "seconds": seconds, "digest": manifest.digest})
        return
    click.echo(f"{key}: {human_bytes(size)} left in {printable(address)} in {1000 * seconds:.0f} ms.")
    click.echo(f'Next, in another process: unspoken ask --from {address} --cache {key} "your question"')


@store.command()
@click.argument("key")
@store_option
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@click.option("--trusted", is_flag=True, help="Refuse what no trusted sender has sealed.")
@click.option("--session", help="Refuse what is sealed for another session.")
@as_json
def get(key: str, address: str, out: Path, trusted: bool, session: str | None, as_json: bool) -> None:
    """Get what was left under KEY, and write it to a file; its seal stays behind."""
    from unspoken.cachefile import write_cache
    from unspoken.transports import open_transport

    with open_transport(address) as transport:
        arrived = transport.get(key, judge(trusted, session))
        manifest = write_cache(arrived.cache, out, arrived.header.manifest.cache.dtype)
    facts: dict[str, Any] = {"file": str(out), "bytes": arrived.bytes_moved, "missing_tokens": len(arrived.missing)}
    if as_json:
        print_json(facts | {"digest": manifest.digest})
        return
    click.echo(f"{out}: {arrived.cache.columns} columns, {human_bytes(arrived.bytes_moved)}.")


@store.command()
@click.argument("key")
@store_option
def delete(key: str, address: str) -> None:
    """Forget what was left under KEY."""
    from unspoken.transports import open_transport

    with open_transport(address) as transport:
        transport.delete(key)


def judge(trusted: bool, session: str | None = None) -> Judge | None:
    """Return what refuses a header that no trusted sender has sealed, if that is wanted.

    Raises:
        UsageError: If a session is insisted on, and seals are not looked at.
    """
    if not trusted:
        if session is not None:
            raise UsageError("A session is told by a seal.", "Give --trusted with --session.")
        return None
    from unspoken.trust.seals import verify_seal

    known = trust_store()

    def judged(header: Header) -> object:
        return verify_seal(header, known, now=int(time.time()), session=session)

    return judged


def _signer(name: str, session: str, seconds: int) -> Sign:
    from unspoken.trust.keys import load_key
    from unspoken.trust.seals import signer

    key = load_key(name, keys_folder(), lambda: asked(KEY_VARIABLE, f"key '{name}'"))
    return signer(key, sender=name, session=session, seconds_to_live=seconds)
