"""`unspoken token`: let an agent into a server."""

from __future__ import annotations

from pathlib import Path

import click

from unspoken.cli.common import require_text


@click.command()
@click.argument("agent")
@click.option("--tokens", required=True, type=click.Path(path_type=Path), help="File of tokens, made if need be.")
@click.option("--rights", default="chat,caches", show_default=True, help="Among chat, caches and metrics, with commas.")
def token(agent: str, tokens: Path, rights: str) -> None:
    """Make a token for AGENT and print it, this once: the file has only its digest. Restart the server to let it in."""
    from unspoken.serve.access import add_token

    require_text(agent, "agent's name")
    click.echo(add_token(tokens, agent, [right.strip() for right in rights.split(",") if right.strip()]))
