"""`unspoken encrypt`: a cache file that nobody reads without a passphrase or key."""

from __future__ import annotations

from pathlib import Path

import click

from unspoken.cachefile.header import peek
from unspoken.cli.common import as_json, human_bytes, note, print_json
from unspoken.cli.passphrases import FILE_VARIABLE, chosen, free, secret


@click.command()
@click.argument("file")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The file to write.  [default: FILE.encrypted]"
)
@click.option("--key-file", type=click.Path(path_type=Path), help="32 random bytes, instead of a passphrase.")
@as_json
def encrypt(file: str, out: Path | None, key_file: Path | None, as_json: bool) -> None:
    """Encrypt the cache FILE as a whole, with a passphrase or a key file. FILE itself stays."""
    peek(file)  # Encrypted, nobody sees any more that it is no cache.
    from unspoken.trust.encrypted import SUFFIX, encrypt_file

    target = free(Path(file + SUFFIX)) if out is None else out
    opens = secret(key_file, lambda: chosen(FILE_VARIABLE, f"file {target}"))
    note(f"Encrypting {file} ...")
    written = encrypt_file(file, target, opens)
    if as_json:
        print_json({"file": str(target), "bytes": written})
        return
    click.echo(f"{target}: {human_bytes(written)}, encrypted. {file} is still there, as it was.")
