"""The page of commands, docs/cli.md: what each says with --help, as wide as the page everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import click

WIDTH = 88


def reference() -> str:
    """Return every command and every command of a command, each with a heading and its help."""
    from unspoken.cli import cli

    return "\n\n".join(_pages(cli, None, "unspoken"))


def _pages(command: click.Command, parent: click.Context | None, name: str) -> Iterator[str]:
    settings = {"terminal_width": WIDTH, "max_content_width": WIDTH, **command.context_settings}
    context = click.Context(command, parent, name, **settings)
    yield f"{'#' * (2 if parent is None or parent.parent is None else 3)} {context.command_path}"
    yield f"```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            if found is not None and not found.hidden:
                yield from _pages(found, context, each)
