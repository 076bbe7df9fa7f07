"""`unspoken inspect`: what a cache file is, from its header alone."""

from __future__ import annotations

import click
import msgspec

from unspoken.cachefile.header import Header, peek, printable
from unspoken.cli.common import as_json, human_bytes, print_json
from unspoken.cli.trusting import told
from unspoken.layout import FLOATS
from unspoken.manifest import Step


@click.command()
@click.argument("file")
@as_json
def inspect(file: str, as_json: bool) -> None:
    """Show what the cache FILE is; no tensor is touched."""
    header = peek(file)
    cache = header.manifest.cache
    if as_json:
        sealed = {} if header.seal is None else {"seal": msgspec.to_builtins(header.seal)}
        print_json(msgspec.to_builtins(header.manifest) | {"file_bytes": header.file_bytes} | sealed)
        return
    spec = cache.spec
    columns = sorted({layer.columns for layer in cache.layers})
    rows = {
        "file": f"{file}, {human_bytes(header.file_bytes)} ({header.header_bytes} bytes of header)",
        "made by": f"agent '{cache.sender or 'unknown'}' on {spec.name} ({spec.family}); names prove nothing",
        "weights": f"{spec.weights} (fingerprint)",
        "holds": f"{len(cache.layers)} layers of {', '.join(map(str, columns))} columns, "
        f"{spec.kv_heads} heads of {spec.head_dim}, {_stored(header)}",
        "positions": "position-free, ready to insert"
        if cache.rope == "removed"
        else "at the sender's positions, ready to continue",
        "columns": ", ".join(f"{span.kind} {span.start}-{span.stop}" for span in cache.spans) or "not labelled",
        "token ids": "none" if cache.token_ids is None else f"{len(cache.token_ids)} (the text can be read from them)",
        "history": " > ".join(_told(step) for step in cache.lineage) or "none",
        "digest": header.manifest.digest,
    }
    if header.seal is not None:
        rows["seal"] = f"{told(header.seal)}; not verified: use verify --trusted"
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {printable(value)}")


def _stored(header: Header) -> str:
    """Return the element type; of a packed cache also what it takes as bfloat16's share, and when it is unpacked."""
    cache = header.manifest.cache
    if cache.dtype in FLOATS:
        return cache.dtype
    numbers = 2 * cache.spec.kv_heads * cache.spec.head_dim * sum(layer.columns for layer in cache.layers)
    held = sum(each.stop - each.start for name, each in header.tensors.items() if not name.endswith(".positions"))
    share = f"{held / (2 * numbers):.2f} of bfloat16's bytes; " if numbers else ""
    return f"packed as {cache.dtype} ({share}{human_bytes(4 * numbers)} of float32 when unpacked)"


def _told(step: Step) -> str:
    """Return a step's name, with the engine where columns were computed."""
    engine = step.args.get("engine")
    return step.op if engine is None else f"{step.op} ({engine})"
