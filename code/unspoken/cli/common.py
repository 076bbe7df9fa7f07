"""What several commands share: options, reading texts, starting a model quickly, printing."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from unspoken.errors import IncompatibleCache, StorageError, UsageError

if TYPE_CHECKING:
    from unspoken.cache import KVCache
    from unspoken.engines.gate import GateResult
    from unspoken.engines.protocol import Engine
    from unspoken.session import Agent

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def model_options(function: F) -> F:
    """Add --model, --engine, --dtype and --device to a command."""
    for option in (
        click.option(
            "--device", default="cpu", show_default=True, help="Device of torch; others than cpu are untested."
        ),
        click.option("--dtype", default="float32", show_default=True, help="Element type the model computes in."),
        click.option("--engine", default="transformers", show_default=True, help="What runs the model."),
        click.option("--model", default="smollm2-135m", show_default=True, help="Name, folder, .gguf file or hub id."),
    ):
        function = option(function)
    return function


@contextmanager
def quick_start() -> Iterator[None]:
    """Import and load with the garbage collector resting.

    Importing torch and transformers makes millions of objects that stay; collecting among them takes about
    a second of the start (measured, docs/log.md). This process is ours, so its collector is ours to set.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def opened(model: str, engine: str, dtype: str, device: str) -> tuple[Engine, GateResult]:
    """Load a model that has passed the gate, saying on a terminal that this takes a while."""
    with quick_start():
        note(f"Loading {model} ...")
        from unspoken.api import load_gated

        return load_gated(model, engine=engine, dtype=dtype, device=device)


def agent(name: str, card: str | None, engine: Engine) -> Agent:
    """Return an agent by its name, or from a card file."""
    from unspoken.session import Agent

    return Agent(name, engine) if card is None else Agent.from_card(card, engine)


def read_text(path: str) -> str:
    """Return a text file's content, or standard input for '-'.

    Raises:
        StorageError: If it cannot be read.
        UsageError: If it is empty or no UTF-8 text.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        text.encode()  # Standard input may let other bytes through, as lone surrogates.
    except OSError as error:
        raise StorageError(
            f"The document {path} cannot be read: {error.strerror}.", "Give an existing text file."
        ) from error
    except UnicodeError as error:
        raise UsageError(f"The document {path} is not UTF-8 text.", "Convert it to plain UTF-8 text first.") from error
    if not text.strip():
        raise UsageError(f"The document {path} is empty: there is nothing to understand.", "Give a text.")
    return text


def require_whole(cache: KVCache) -> None:
    """Refuse to inject a cache that holds only some of its model's layers; reading such a file is no error.

    Raises:
        IncompatibleCache: If a layer is missing.
    """
    if len(cache.layers) != cache.spec.layers:
        raise IncompatibleCache(
            f"The cache holds {len(cache.layers)} of the {cache.spec.layers} layers of '{cache.spec.name}'.",
            "Ask the sender for a whole one.",
        )


def note(text: str) -> None:
    """Say something about progress on a terminal's error stream; nothing where it is not a terminal."""
    if sys.stderr.isatty():
        click.echo(text, err=True)


def print_json(data: Any) -> None:
    """Print data as JSON."""
    click.echo(json.dumps(data, indent=1, ensure_ascii=False))


def human_bytes(count: int | float) -> str:
    """Return a size in decimal units: 4.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
