"""No code block of a document is passed over: each is run, or checked as far as it can be."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from .blocks import ROOT, Block, blocks

PROGRAMS = {
    "inspect": "of another project; tests/harness run it",
    "unspoken.harness.lm_eval": "takes the arguments of another project; tests/harness run it",
    "ray": "starts a cluster",
    "ray-cluster": "starts a cluster",
    "(umask": "POSIX's own",
    ".": "POSIX's own",
    "echo": "POSIX's own",
    "vllm/bin/pip": "an environment of its own, of several gigabytes",
}
"""Commands of other programs that are not looked at, and why."""

SHELL = blocks("", "sh", "console")
DATA = blocks("json", "toml", "yaml")


def test_every_block_is_in_a_language_that_is_checked() -> None:
    """Python is run in test_python_blocks.py, the rest is checked here; `text` is output, a drawing or a template."""
    known = {"", "sh", "console", "python", "json", "toml", "yaml", "text"}
    assert [str(block) for block in blocks() if block.language not in known] == []


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every path for one that is there."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_shell_block_has_commands_that_exist_with_these_options(block: Block) -> None:
    """Text that is no command has to say so: ```text."""
    commands = block.commands()
    assert commands
    for words in commands:
        check(words)


def check(words: list[str]) -> None:
    """Fail for a command that there is not, an option or value it does not take, or a missing argument."""
    program, rest = words[0], words[1:]
    if program in ("python", ".venv/bin/python", "vllm/bin/python") and rest[:1] == ["-m"]:
        program, rest = rest[1], rest[2:]
    if program == "unspoken":
        parse(rest)
    elif program == "make":
        assert set(rest) <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    elif program == "pip":
        install(rest)
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests"))
    elif program == "python":
        assert rest == ["-"] or (ROOT / rest[0]).is_file()
    elif program != "venv":
        assert program in PROGRAMS, f"{program} is no command; a block that is none is marked as text"


def parse(args: list[str]) -> None:
    """Read a command line of `unspoken` as the program does, without calling anything."""
    from unspoken.channels.names import build_channel
    from unspoken.cli import cli

    command: click.Command = cli
    context: click.Context | None = None
    while True:
        context = command.make_context(command.name, list(args), parent=context)
        if not isinstance(command, click.Group):
            for option in ("channel", "beside"):
                named = context.params.get(option)
                if isinstance(named, str) and not named.startswith("fused:"):
                    build_channel(named)
            return
        _, found, args = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found


def install(args: list[str]) -> None:
    """Fail for extras that the package does not have."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [match[1] for word in args if (match := re.search(r"\[(.+)\]$", word))]
    assert all(extra in extras for names in named for extra in names.split(","))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("unspoken promenade", "No such command"),
        ("unspoken ask --loudly x", "No such option"),
        ("unspoken capture", "Missing parameter"),
        ("unspoken power --points many", "not a valid"),
    ],
)
def test_a_wrong_command_line_is_told(line: str, told: str) -> None:
    with pytest.raises(click.UsageError, match=told):
        check(line.split())


@pytest.mark.parametrize("block", DATA, ids=str)
def test_a_block_of_data_is_what_it_says_it_is(block: Block, tmp_path: Path) -> None:
    if block.language == "json":
        whole = block.text.count("\n{") == 0
        made: Any = [json.loads(part) for part in ([block.text] if whole else block.text.splitlines())]
        assert made
    elif block.language == "toml":
        for group, names in tomllib.loads(block.text)["project"]["entry-points"].items():
            package, _, kind = group.partition(".")
            assert (package, kind in {"arms", "channels", "codecs", "scorers"}) == ("unspoken", True)
            for target in names.values():  # It has to be the class of a block on the same page.
                module, _, name = target.partition(":")
                assert any(
                    each.document == block.document
                    and each.text.startswith(f"# {module}.py\n")
                    and f"class {name}:" in each.text
                    for each in blocks("python")
                )
    else:
        settings(block, tmp_path)


def settings(block: Block, folder: Path) -> None:
    """Open a block of YAML as the program does: an experiment, a sweep, or a card."""
    file = folder / "block.yaml"
    file.write_text(block.text)
    given = yaml.safe_load(block.text)
    if "card" in given:
        from unspoken.session.card import read_card

        assert read_card(file).name == given["name"]
    else:
        from unspoken.lab.sweep import load_plan

        assert load_plan(file).name == given["name"]
