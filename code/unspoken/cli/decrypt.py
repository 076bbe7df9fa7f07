"""`unspoken decrypt`: an encrypted cache file as it was."""

from __future__ import annotations

from pathlib import Path

import click

from unspoken.cli.common import as_json, human_bytes, note, print_json
from unspoken.cli.passphrases import FILE_VARIABLE, asked, free, secret
from unspoken.errors import UsageError


@click.command()
@click.argument("file")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write, replaced if it is there.  [default: FILE without .encrypted]",
)
@click.option("--key-file", type=click.Path(path_type=Path), help="32 random bytes, instead of a passphrase.")
@as_json
def decrypt(file: str, out: Path | None, key_file: Path | None, as_json: bool) -> None:
    """Decrypt FILE, which `unspoken encrypt` made; if the secret is wrong or a byte was changed, nothing is written."""
    from unspoken.trust.encrypted import SUFFIX, decrypt_file

    if out is None and not file.endswith(SUFFIX):
        raise UsageError(f"The name {file} does not end in {SUFFIX}.", "Give --out.")
    target = free(Path(file.removesuffix(SUFFIX))) if out is None else out
    opens = secret(key_file, lambda: asked(FILE_VARIABLE, f"file {file}"))
    note(f"Decrypting {file} ...")
    written = decrypt_file(file, target, opens)
    if as_json:
        print_json({"file": str(target), "bytes": written})
        return
    click.echo(f"{target}: {human_bytes(written)}, decrypted; only you can read it.")
