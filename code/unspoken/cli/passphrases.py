"""Passphrases: from the environment, or from a person at a terminal; never from the command line, which others see."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unspoken.errors import UsageError

if TYPE_CHECKING:
    from unspoken.trust.encrypted import Secret

KEY_VARIABLE = "UNSPOKEN_KEY_PASSPHRASE"
FILE_VARIABLE = "UNSPOKEN_FILE_PASSPHRASE"


def given(variable: str) -> str | None:
    """Return the passphrase that stands in the environment, if there is one.

    Raises:
        UsageError: If it is no UTF-8 text.
    """
    found = os.environ.get(variable)
    try:
        (found or "").encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"What {variable} holds is not UTF-8 text.", "Set it to a text.") from error
    return found or None


def asked(variable: str, what: str) -> str:
    """Return a passphrase that is in use.

    Raises:
        UsageError: If it is not in the environment and nobody can be asked.
    """
    return given(variable) or _prompted(variable, what, again=False)


def chosen(variable: str, what: str) -> str:
    """Return a new passphrase, typed twice unless it stands in the environment.

    Raises:
        UsageError: If it is not in the environment and nobody can be asked.
    """
    return given(variable) or _prompted(variable, what, again=True)


def secret(key_file: Path | None, passphrase: Callable[[], str]) -> Secret:
    """Return what opens an encrypted file: the key in a file, if one was given, or a passphrase.

    Raises:
        UnspokenError: If the key file cannot be used, or there is no passphrase.
    """
    from unspoken.trust.encrypted import KeyFile, Passphrase

    return Passphrase(passphrase()) if key_file is None else KeyFile.read(key_file)


def free(target: Path) -> Path:
    """Return the path of a file that nobody named, so it must not replace one.

    Raises:
        UsageError: If there is something.
    """
    if target.exists():
        raise UsageError(f"The file {target} is there already.", "Give --out, or move it away.")
    return target


def _prompted(variable: str, what: str, again: bool) -> str:
    if not sys.stdin.isatty():
        raise UsageError(f"The {what} needs a passphrase, and there is nobody to ask.", f"Set {variable}.")
    typed: str = click.prompt(f"Passphrase of the {what}", hide_input=True, confirmation_prompt=again, err=True)
    return typed
