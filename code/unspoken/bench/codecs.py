"""`unspoken bench codecs`: what each codec weighs, loses and takes, on a cache of real text."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.errors import ContextOverflow, UsageError
from unspoken.layout import BLOCK_BYTES, BLOCK_VALUES
from unspoken.spec import ModelSpec
from unspoken.transforms import CODECS, STAGES, Codec
from unspoken.transforms.cast import Cast
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.place import place
from unspoken.transforms.rope import RemoveRope

Say = Callable[[str], None]
SYSTEM = "You are Vera, a helpful assistant."
# Chapters of Python's language reference, which comes with Python: prose that somebody wrote, and enough of it.
CHAPTERS = ("execmodel", "objects", "import", "compound", "types", "specialnames")
TIMED_BYTES = 64_000_000
ROWS_AT_ONCE = 64  # Of logits: each row has as many numbers as the vocabulary has tokens.


def reference_text() -> str:
    """Return some chapters of the language reference of the Python that runs this."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in CHAPTERS if name in topics)


def measure(engine: Engine, text: str, tokens: int, following: int, repeats: int, say: Say) -> dict[str, Any]:
    """Measure every codec on the cache of a text's first tokens; return `{"model", "rows", ...}`, JSON-able.

    The columns stand behind a chat template's prefix, as a receiver's would; the prefix is not packed. `rms_keys` and
    `rms_values` are errors relative to the root mean square of the position-free keys or the values. `kl_mean` and
    `kl_max` are divergences in nats of the next token's distribution from the one on float32 columns, at each token
    that follows in the text, and `top1_agreement` is how often both find the same token the most probable. Rates are
    of 64 MB of float32 columns per second of one core, medians of rounds in which each codec has its turn.

    Args:
        engine: The model.
        text: What it reads.
        tokens: How many of the text's tokens are packed.
        following: How many tokens behind those are predicted.
        repeats: Rounds of timing.
        say: Is told what is being measured.

    Raises:
        UsageError: If the text is too short.
        ContextOverflow: If the model has too few positions.
    """
    passage = read(engine, text, tokens, following)
    codecs = [codec_named(name) for name in usable(engine.spec)]
    positions, rows = passage.content.positions.nbytes, []
    plain = codec_named("bfloat16").pack(passage.content).bytes_held() + positions
    for codec in codecs:
        say(f"{codec.name} ...")
        packed = codec.pack(passage.content)
        weight = packed.bytes_held() + positions
        row = {"codec": codec.name, "bytes": weight, "bytes_ratio_bf16": weight / plain}
        rows.append(row | _lost(engine, passage, Cast("float32")(codec.unpack(packed))))
    say("rates ...")
    rates = timed(codecs, stretched(passage.content, TIMED_BYTES), repeats)
    return {
        "engine": engine.name,
        "model": engine.spec.name,
        "tokens": tokens,
        "following": following,
        "repeats": repeats,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "rows": [row | rate for row, rate in zip(rows, rates, strict=True)],
    }


def table(found: dict[str, Any]) -> Table:
    """Return the figures as a table for a terminal."""
    shown = Table(title=f"{found['tokens']} tokens of {found['model']}, {found['following']} predicted behind them")
    for name in (
        "codec", "MB", "of bf16", "rms keys", "rms values", "KL mean", "KL max", "top-1", "pack GB/s", "unpack GB/s",
    ):  # fmt: skip
        shown.add_column(name, justify="left" if name == "codec" else "right")
    for row in found["rows"]:
        shown.add_row(
            row["codec"],
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['bytes_ratio_bf16']:.3f}",
            f"{row['rms_keys']:.4f}",
            f"{row['rms_values']:.4f}",
            f"{row['kl_mean']:.1e}",
            f"{row['kl_max']:.1e}",
            f"{row['top1_agreement']:.1%}",
            f"{row['encode_gb_per_s']:.2f}",
            f"{row['decode_gb_per_s']:.2f}",
        )
    return shown


def usable(spec: ModelSpec) -> list[str]:
    """Return the names of the codecs that can pack a model's caches, each also with every stage that is installed."""
    stages = []
    for stage in STAGES:
        try:
            codec_named(f"float32+{stage}")
        except UsageError:
            continue
        stages.append(f"+{stage}")
    fits = spec.kv_heads * spec.head_dim % BLOCK_VALUES == 0
    names = [name for name in CODECS if fits or name not in BLOCK_BYTES]
    return [name + stage for name in names for stage in ("", *stages)]


@dataclass(frozen=True, eq=False)
class Passage:
    """A cache of real text, and what the model expects behind it.

    Attributes:
        prefix: The columns before the text.
        content: The text's columns, position-free, in float32.
        following: The tokens behind it.
        expected: Logits at each of those, on the columns as they were.
    """

    prefix: KVCache
    content: KVCache
    following: Prompt
    expected: Float[Tensor, "seq vocab"]


def read(engine: Engine, text: str, tokens: int, following: int) -> Passage:
    """Let a model read the first tokens of a text behind a system prompt, and expect the tokens that follow.

    Raises:
        UsageError: If the text is too short.
        ContextOverflow: If the model has too few positions.
    """
    before, ids = engine.frame(SYSTEM).before, engine.encode(text)
    needed = len(before.token_ids) + tokens + following
    if needed > engine.spec.context:
        raise ContextOverflow(
            f"{tokens} tokens, {following} more and the prompt need {needed} positions; the context is "
            f"{engine.spec.context}.",
            "Give fewer --tokens.",
        )
    if len(ids) < tokens + following:
        raise UsageError(
            f"The text has {len(ids)} tokens, {tokens + following} are needed.", "Give fewer --tokens or a longer text."
        )
    cache = engine.prefill(before + Prompt((Piece("content", ids[:tokens]),)))
    start = len(before.token_ids)
    later = Prompt((Piece("content", ids[tokens : tokens + following]),))
    content = RemoveRope()(Cast("float32")(cache.slice(start, cache.columns)))
    return Passage(cache.slice(0, start), content, later, engine.logits(later, cache))


def _lost(engine: Engine, passage: Passage, found: KVCache) -> dict[str, float]:
    """Return the errors of columns, and of what the model expects on them."""
    behind = passage.prefix.concat(place(found, passage.prefix))
    logits = engine.logits(passage.following, behind)
    divergences, same = [], 0
    for at in range(0, len(logits), ROWS_AT_ONCE):
        expected, seen = passage.expected[at : at + ROWS_AT_ONCE], logits[at : at + ROWS_AT_ONCE]
        wanted = expected.double().log_softmax(-1)  # In float32 the sum alone is off by 1e-5.
        divergences.append((wanted.exp() * (wanted - seen.double().log_softmax(-1))).sum(-1))
        same += int((expected.argmax(-1) == seen.argmax(-1)).sum())
    divergence = torch.cat(divergences)
    return {
        "rms_keys": _relative([(a.keys, b.keys) for a, b in zip(found.layers, passage.content.layers, strict=True)]),
        "rms_values": _relative(
            [(a.values, b.values) for a, b in zip(found.layers, passage.content.layers, strict=True)]
        ),
        "kl_mean": float(divergence.mean()),
        "kl_max": float(divergence.max()),
        "top1_agreement": same / len(divergence),
    }


def _relative(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the root mean square of the differences over that of the second numbers."""
    error = sum(float((found - wanted).double().square().sum()) for found, wanted in pairs)
    return float((error / sum(float(wanted.double().square().sum()) for _, wanted in pairs)) ** 0.5)


def stretched(cache: KVCache, size: int) -> KVCache:
    """Return a cache of about `size` bytes that has the columns of another, repeated or cut."""
    columns = max(1, size * cache.columns // cache.bytes_held())
    chosen = torch.arange(columns) % cache.columns
    layers = cache.rebuilt(
        cache.manifest.lineage[-1],
        lambda layer: (layer.keys[:, chosen], layer.values[:, chosen], torch.arange(columns, dtype=torch.int32)),
        spans=(),
        token_ids=None,
    ).layers
    return KVCache.build(layers, cache.spec, rope="removed")


def timed(codecs: Sequence[Codec], cache: KVCache, repeats: int) -> list[dict[str, float]]:
    """Return how fast each codec packs a float32 cache and makes it again: gigabytes of it per second of one core.

    Processor time of this thread, which does all the work, is what counts: other programs then make the least
    difference, and threads of torch that spin while they wait for work make none.
    """
    took: list[list[tuple[float, float]]] = [[] for _ in codecs]
    with _one_thread():
        for _ in range(repeats + 1):
            for codec, each in zip(codecs, took, strict=True):
                began = time.thread_time()
                packed = codec.pack(cache)
                between = time.thread_time()
                Cast("float32")(codec.unpack(packed))
                each.append((between - began, time.thread_time() - between))
    size = cache.bytes_held() / 1e9
    return [
        {
            # The first round imports and gets memory. A plain codec may take no time at all.
            "encode_gb_per_s": size / max(median(pack for pack, _ in each[1:]), 1e-6),
            "decode_gb_per_s": size / max(median(unpack for _, unpack in each[1:]), 1e-6),
        }
        for each in took
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
