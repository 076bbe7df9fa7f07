"""The command line. Nothing here imports torch or transformers until a command needs them."""

from __future__ import annotations

import importlib
import sys

import click

from unspoken import __version__
from unspoken.errors import UnspokenError

COMMANDS = {
    "adopt": "Turn what llama.cpp or llama-server saved into a cache file.",
    "ask": "Ask an agent about a document another has read, or about a cache file.",
    "bench": "Measure hand-overs on this machine.",
    "capture": "Let an agent read a document and keep its cache in a file.",
    "chat": "Hold a session of several agents in the terminal.",
    "compare": "Compare two runs: how they were made, and what came of them.",
    "data": "Bring an agent's memories along from exports and notes.",
    "decrypt": "Decrypt an encrypted cache file.",
    "doctor": "Explain this machine: versions, devices, models, folders.",
    "encrypt": "Encrypt a cache file with a passphrase or a key.",
    "experiments": "Check experiment files, and tell what they will take.",
    "export": "Print a run's table as CSV, LaTeX or Markdown.",
    "fuser": "Train, inspect and measure maps from one model's cache to another's.",
    "identity": "Recognise agents by their caches: enrol, verify, identify, measure.",
    "inspect": "Show what a cache file is.",
    "keys": "Make keys to seal with, and say whose keys are trusted.",
    "leak": "Read the text out of a cache file, as anybody with the model can.",
    "mcp": "Hand over and recall as tools of the Model Context Protocol.",
    "plan": "Tell what of a model fits a machine, and which command to run.",
    "power": "Tell how many questions it takes to see a difference.",
    "prove": "Prove, with controls, that understanding moves through a cache.",
    "redact": "Take a system prompt or other columns out of a cache file.",
    "report": "Rebuild metrics and report of a run from its folder alone.",
    "results": "List all runs: what was asked, what came of it.",
    "run": "Run an experiment from a YAML file.",
    "seal": "Seal a cache file: sign who vouches for it, and until when.",
    "serve": "Serve a model to OpenAI's clients, and hand caches over between agents.",
    "store": "Leave caches in a store, and get them from there.",
    "token": "Make a token that lets an agent into a server.",
    "verify": "Check a cache file: its seal, and what keeps it from being used with a model.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, so that `--help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module and return the command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"unspoken.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"auto_envvar_prefix": "UNSPOKEN", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="unspoken")
def cli() -> None:
    """Let agents hand over what they understood as KV-cache instead of text."""


def main() -> None:
    """Run the program: exit code 0 for success, 1 if it was interrupted, 2 for bad input."""
    try:
        cli(prog_name="unspoken", standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except UnspokenError as error:
        from unspoken.cachefile.header import printable

        click.echo(f"Error: {printable(error.problem)}\n{printable(error.hint)}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(1)
