"""`unspoken keys`: one's own keys to seal with, and the keys of senders one trusts."""

from __future__ import annotations

from typing import Any

import click

from unspoken.cachefile.header import printable
from unspoken.cli.common import as_json, print_json
from unspoken.cli.passphrases import KEY_VARIABLE, chosen, given
from unspoken.cli.trusting import keys_folder, moment, trust_store
from unspoken.errors import UsageError


@click.group()
def keys() -> None:
    """Make keys to seal cache files with, and say whose keys are trusted."""


@keys.command()
@click.argument("name")
@click.option(
    "--passphrase",
    is_flag=True,
    help=f"Encrypt the private key; asks for a passphrase. It is encrypted as well if {KEY_VARIABLE} is set.",
)
@as_json
def create(name: str, passphrase: bool, as_json: bool) -> None:
    """Make a key NAME: a private file to seal with, and a public one to give to receivers."""
    from unspoken.trust.keys import create_key, require_name

    require_name(name)  # Told before anybody types a passphrase.
    secret = chosen(KEY_VARIABLE, f"new key '{name}'") if passphrase else given(KEY_VARIABLE)
    made = create_key(name, keys_folder(), secret)
    public = keys_folder() / f"{name}.pub"
    if as_json:
        print_json({"name": name, "key": made.key, "fingerprint": made.fingerprint, "public_file": str(public)})
        return
    click.echo(f"Key '{name}' made: fingerprint {made.fingerprint}{'' if secret is None else ', encrypted'}.")
    click.echo(f"Give {public} to receivers, and tell them the fingerprint another way; the .key file stays with you.")


@keys.command("list")
@as_json
def listed(as_json: bool) -> None:
    """List one's own keys and the trusted senders."""
    from unspoken.trust.keys import key_names, own_key

    own = [_own(own_key(name, keys_folder())) for name in key_names(keys_folder())]
    trusted = [_trusted(name) for name in trust_store().names()]
    if as_json:
        print_json({"own": own, "trusted": trusted})
        return
    for kind, rows in (("own", own), ("trusted", trusted)):
        for row in rows:
            click.echo(f"{kind:<8} {row['fingerprint']}  {row['name']}  {printable(row.get('note', ''))}".rstrip())
        if not rows:
            click.echo(f"{kind:<8} none")


@keys.command()
@click.argument("file")
@click.option("--as", "name", help="Name to know the sender by, which its seals must have.  [default: the file's]")
@click.option("--note", default="", help="Anything to remember, such as how the fingerprint was compared.")
@as_json
def trust(file: str, name: str | None, note: str, as_json: bool) -> None:
    """Trust the sender whose public key is in FILE (NAME.pub): its sealed files are accepted from now on."""
    from unspoken.trust.keys import read_public

    public = read_public(file)
    trust_store().add(public.name if name is None else name, public.key, note)
    known = _trusted(trust_store().find(public.key) or public.name)
    if as_json:
        print_json(known)
        return
    click.echo(f"Trusted: '{known['name']}' with the key {known['fingerprint']}.")
    click.echo("Compare the fingerprint with the sender another way: whoever brought the file could have changed it.")


@keys.command()
@click.argument("name")
@as_json
def distrust(name: str, as_json: bool) -> None:
    """Trust the sender NAME no longer."""
    from unspoken.cachefile.sealed import fingerprint

    removed = trust_store().remove(name)
    if as_json:
        print_json({"name": name, "key": removed.key, "fingerprint": fingerprint(removed.key)})
        return
    click.echo(f"No longer trusted: '{name}' with the key {fingerprint(removed.key)}.")


@keys.command()
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """Show the whole public key NAME: one's own, a trusted sender's, or both."""
    from unspoken.trust.keys import key_names, own_key

    found: dict[str, dict[str, Any]] = {}
    if name in key_names(keys_folder()):
        found["own"] = _own(own_key(name, keys_folder()))
    if name in trust_store().names():
        found["trusted"] = _trusted(name)
    if not found:
        raise UsageError(f"There is no key '{name}'.", "See `unspoken keys list`.")
    if as_json:
        print_json(found)
        return
    for kind, row in found.items():
        click.echo(f"{kind:<8} {row['name']}, fingerprint {row['fingerprint']}, key {row['key']}")
        if kind == "trusted":
            click.echo(f"{'':<8} since {moment(row['added'])} {printable(row['note'])}".rstrip())


def _own(key: Any) -> dict[str, Any]:
    return {"name": key.name, "key": key.key, "fingerprint": key.fingerprint}


def _trusted(name: str) -> dict[str, Any]:
    from unspoken.cachefile.sealed import fingerprint

    known = trust_store().known()[name]
    return {
        "name": name,
        "key": known.key,
        "fingerprint": fingerprint(known.key),
        "added": known.added,
        "note": known.note,
    }
