"""`unspoken seal`: say with one's key that one vouches for a cache file."""

from __future__ import annotations

from pathlib import Path

import click

from unspoken.cachefile.header import peek
from unspoken.cachefile.sealed import tokens_digest
from unspoken.cli.common import as_json, print_json
from unspoken.cli.passphrases import KEY_VARIABLE, asked
from unspoken.cli.trusting import keys_folder, lifetime, seal_facts, told
from unspoken.errors import UsageError


@click.command()
@click.argument("file")
@click.option("--as", "name", required=True, help="Name of the key to seal with; the agent that made the file.")
@click.option("--session", default="", help="What the file is for; a receiver can insist on it.")
@click.option("--ttl", default="1h", show_default=True, help="For how long it shall be accepted: 45s, 30m, 1h, 7d.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The file to write.  [default: FILE]")
@click.option("--tokens-of", help="The same cache with its token ids, to vouch for them without giving them away.")
@as_json
def seal(file: str, name: str, session: str, ttl: str, out: Path | None, tokens_of: str | None, as_json: bool) -> None:
    """Seal the cache FILE: who vouches for it, in which session and until when, signed with one's key.

    A seal that was there is replaced. Tensors keep their bytes.
    """
    from unspoken.trust.keys import load_key
    from unspoken.trust.seals import seal_file

    seconds = lifetime(ttl)
    tokens = None if tokens_of is None else _tokens(file, tokens_of)
    key = load_key(name, keys_folder(), lambda: asked(KEY_VARIABLE, f"key '{name}'"))
    made = seal_file(file, key, sender=name, session=session, seconds_to_live=seconds, out=out, tokens=tokens)
    written = file if out is None else str(out)
    if as_json:
        print_json({"file": written, "seal": seal_facts(made)})
        return
    click.echo(f"{written}: sealed by {told(made)}.")
    click.echo(f"Next, at a receiver who trusts this key: unspoken verify {written} --trusted")


def _tokens(file: str, other: str) -> str:
    """Return the digest of the token ids of another file, if it holds the very same tensors."""
    theirs = peek(other).manifest
    if theirs.cache.token_ids is None or theirs.digests != peek(file).manifest.digests:
        raise UsageError(
            f"{other} has no token ids, or does not hold the same keys and values as {file}.",
            "Give the file that this one was made of.",
        )
    return tokens_digest(theirs.cache.token_ids)
