"""What several commands share: options, reading texts, starting a model quickly, printing."""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from unspoken.errors import IncompatibleCache, StorageError, UsageError

if TYPE_CHECKING:
    from unspoken.cache import KVCache
    from unspoken.engines.gate import GateResult
    from unspoken.engines.protocol import Engine
    from unspoken.session import Agent
    from unspoken.session.shelf import Shelf

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


_LOADING = (
    click.option("--dtype", help="transformers: element type the model computes in.  [default: float32]"),
    click.option("--device", help="transformers: device of torch; others than cpu are untested.  [default: cpu]"),
    click.option("--kv-type", help="llamacpp: element type of keys and values: f16, f32, bf16, q8_0, q4_0."),
    click.option("--context", type=click.IntRange(min=64), help="llamacpp: columns there is room for."),
    click.option(
        "--gpu-layers", type=click.IntRange(min=-1), help="llamacpp: layers on the GPU (untested), -1 for all."
    ),
    click.option("--threads", type=click.IntRange(min=1), help="llamacpp: threads to compute with."),
)


def loading_options(function: F) -> F:
    """Add the options of how a model is opened; the command gets those given as one mapping, `loading`."""

    @functools.wraps(function)
    def command(**options: Any) -> Any:
        names = ("dtype", "device", "kv_type", "context", "gpu_layers", "threads")
        given = {name: options.pop(name) for name in names}
        return function(loading={name: value for name, value in given.items() if value is not None}, **options)

    for option in reversed(_LOADING):
        command = option(command)
    return cast(F, command)


def model_options(function: F) -> F:
    """Add --model, --engine and the options of how a model is opened to a command."""
    named = click.option(
        "--model", default="smollm2-135m", show_default=True, help="Name, folder, .gguf file or hub id."
    )
    engine = click.option("--engine", default="transformers", show_default=True, help="What runs the model.")
    return named(engine(loading_options(function)))


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


def opened(model: str, engine: str, loading: Mapping[str, Any]) -> tuple[Engine, GateResult]:
    """Load a model that has passed the gate, saying on a terminal that this takes a while.

    Raises:
        UsageError: If its name is no text, and no file's.
    """
    if not Path(model).exists():
        require_text(model, "model's name")
    with quick_start():
        note(f"Loading {model} ...")
        from unspoken.api import load_gated
        from unspoken.engines.protocol import Loading

        return load_gated(model, engine, Loading(**loading))


def agent(name: str, card: str | None, engine: Engine) -> Agent:
    """Return an agent by its name, or from a card file.

    Raises:
        UsageError: If the name is no text.
    """
    from unspoken.session import Agent

    require_text(name, "agent's name")
    return Agent(name, engine) if card is None else Agent.from_card(card, engine, shelf())


def shelf() -> Shelf:
    """Return where the caches of long cards are kept between runs."""
    from unspoken.modelstore import home
    from unspoken.session.shelf import Shelf

    return Shelf(home() / "beginnings")


def require_text(given: str, what: str) -> None:
    """Refuse bytes that are no text, which get here as lone surrogates.

    Raises:
        UsageError: If there are some.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in given):
        raise UsageError(f"The {what} is not UTF-8 text.", "Type it again, in a terminal set to UTF-8.")


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
