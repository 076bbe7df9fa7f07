"""`unspoken bench`: performance figures, each a ratio of things measured in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from unspoken.engines.gate import GateResult
    from unspoken.engines.protocol import Engine

from unspoken.cli.common import as_json, model_options, note, opened, print_json, read_text
from unspoken.cli.prove import results_option


@click.group()
def bench() -> None:
    """Measure hand-overs on this machine."""


@bench.command()
@click.option(
    "--tokens", default="256,800,2048,2700", show_default=True, help="Lengths of the document, separated by commas."
)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Rounds; the median counts.")
@click.option("--wire", help="Element type in the file.  [default: the engine's, bfloat16 for float32]")
@model_options
@results_option
@as_json
def handoff(
    tokens: str,
    repeats: int,
    wire: str | None,
    model: str,
    engine: str,
    loading: dict[str, Any],
    results: Path,
    as_json: bool,
) -> None:
    """Capture, export, load, inject and first token, against prefilling the text and against raw safetensors."""
    from unspoken.errors import UsageError

    lengths = [part.strip() for part in tokens.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in lengths):
        raise UsageError(f"--tokens is '{tokens}'.", "Give lengths of 1 or more, separated by commas: 256,800.")
    loaded, gate = opened(model, engine, loading)
    from unspoken.bench.handoff import measure, table
    from unspoken.bench.record import keep

    wire = wire or ("bfloat16" if loaded.dtype == "float32" else loaded.dtype)
    found = measure(loaded, [int(part) for part in lengths], repeats, wire, note)
    folder = keep("bench-handoff", found, loaded, gate, results)
    _show(found, table, folder, as_json, 150)


@bench.command()
@click.option("--shape", help="Random weights of a real size: llama-3.1-8b, mistral-7b; says nothing about quality.")
@click.option("--tokens", default=1024, show_default=True, type=click.IntRange(min=1), help="Length of the document.")
@model_options
@results_option
@as_json
def sequential(
    shape: str | None,
    tokens: int,
    model: str,
    engine: str,
    loading: dict[str, Any],
    results: Path,
    as_json: bool,
) -> None:
    """Two agents on one device, one after the other: memory and time of a hand-over through a file.

    With --shape, a GGUF file of that size with random weights is built once and kept in the cache folder.
    """
    from unspoken.bench.record import keep
    from unspoken.bench.sequential import measure, planned_bytes, table

    if shape is not None:
        model, engine = _shaped(shape), "llamacpp"
    if engine == "llamacpp":
        loading.setdefault("context", 256 * (tokens // 256 + 2))  # Document, prompt and answer.
    last: list[tuple[Engine, GateResult]] = []

    def load() -> Engine:
        last[:] = [opened(model, engine, loading)]
        return last[0][0]

    found = measure(load, tokens, note) | ({"shape": shape, "weights": "random"} if shape else {})
    if engine == "llamacpp":
        kv_type = loading.get("kv_type", "f16")
        found["planned_bytes"] = planned_bytes(model, loading["context"], kv_type, found["columns"])
    folder = keep("bench-sequential", found, *last[0], results)
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    Console(width=120).print(table(found))
    if shape is not None:
        click.echo("Random weights: this tells about memory and time at real size, and nothing about quality.")
    same = "bit for bit the same" if found["same_logits"] else "not the same"
    click.echo(f"The receiver's logits for its first token are {same} as the sender's would have been.")
    click.echo(f"Kept in {folder}")


@bench.command()
@click.option("--tokens", default=2048, show_default=True, type=click.IntRange(min=32), help="Tokens that are packed.")
@click.option("--following", default=512, show_default=True, type=click.IntRange(min=1), help="Tokens predicted then.")
@click.option("--text", help="Text file to read.  [default: the language reference that comes with Python]")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Rounds of timing.")
@model_options
@results_option
@as_json
def codecs(
    tokens: int,
    following: int,
    text: str | None,
    repeats: int,
    model: str,
    engine: str,
    loading: dict[str, Any],
    results: Path,
    as_json: bool,
) -> None:
    """Bytes, error and speed of each way to pack a cache, on a real text."""
    passage = None if text is None else read_text(text)
    if engine == "llamacpp":
        loading.setdefault("context", 256 * ((tokens + following) // 256 + 2))  # And the prompt.
    loaded, gate = opened(model, engine, loading)
    from unspoken.bench.codecs import measure, reference_text, table
    from unspoken.bench.record import keep

    found = measure(loaded, passage or reference_text(), tokens, following, repeats, note)
    folder = keep("bench-codecs", found, loaded, gate, results)
    _show(found, table, folder, as_json, 120)


@bench.command()
@click.argument("addresses", nargs=-1)
@click.option("--columns", default=400, show_default=True, type=click.IntRange(min=1), help="Tokens; 131 kB each.")
@click.option("--repeats", default=9, show_default=True, type=click.IntRange(min=1), help="Rounds; the median counts.")
@results_option
@as_json
def transports(addresses: tuple[str, ...], columns: int, repeats: int, results: Path, as_json: bool) -> None:
    """Put and get a cache of Llama 3.1 8B's shape between two processes, by the transports at ADDRESSES.

    By default shm. A plain file in shared memory and a socket are measured beside them, in the same rounds.
    """
    from unspoken.bench.record import keep
    from unspoken.bench.transports import LLAMA, measure, table

    found = measure(LLAMA, columns, addresses or ("shm:bench",), repeats, note)
    folder = keep("bench-transports", found, None, None, results)
    _show(found, table, folder, as_json, 100)


@bench.command("serve")
@click.argument("url", default="http://127.0.0.1:8765")
@click.option("--at-once", default=50, show_default=True, type=click.IntRange(1, 9000), help="Requests together.")
@click.option("--in-a-row", default=1000, show_default=True, type=click.IntRange(min=1), help="Requests after that.")
@click.option("--token", envvar="UNSPOKEN_TOKEN", help="Of an agent, if the server wants one.")
@results_option
@as_json
def serving(url: str, at_once: int, in_a_row: int, token: str | None, results: Path, as_json: bool) -> None:
    """Put the server at URL under load: many requests at once, then many in a row, and its memory meanwhile."""
    from unspoken.bench.record import keep
    from unspoken.bench.serving import measure, table

    found = measure(url, token, at_once, in_a_row, note)
    folder = keep("bench-serve", found, None, None, results)
    _show(found, table, folder, as_json, 100)


def _show(
    found: dict[str, Any], table: Callable[[dict[str, Any]], Table], folder: Path, as_json: bool, width: int
) -> None:
    """Print figures as a table, or as JSON, and where they are kept."""
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    Console(width=width).print(table(found))
    click.echo(f"Kept in {folder}")


def _shaped(shape: str) -> str:
    """Return the path of a model of a shape, built if it is not there yet."""
    from unspoken.bench.shapes import build
    from unspoken.modelstore import home, resolve_gguf

    target = home() / "shapes" / f"{shape}.gguf"
    if not target.exists():
        note(f"Building a model of the shape of {shape}, with random weights ...")
        build(shape, resolve_gguf("smollm2-135m")[0], target)
    return str(target)
