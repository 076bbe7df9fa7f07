"""How exactly a cache can be checked: what honest columns are off by, and whether altered ones are found.

    python examples/spot_check.py [ENGINE [DTYPE]]

The sender runs SmolLM2 in an engine (transformers, llamacpp) and type, the receiver in transformers and float32. Errors
are a column's largest, next to what passes. The last figures are of 100 caches each: found with a tenth of the columns
altered, looking at 48 columns of layer 0, and refused though honest (`unspoken verify FILE --recompute`).
"""

from __future__ import annotations

import random
import sys

import torch
from leak import REPORT, WIRES

from unspoken import Agent, load_model
from unspoken.cache import KVCache, KVLayer
from unspoken.channels.kv import content_columns
from unspoken.transforms.codecs import codec_named
from unspoken.trust.spotcheck import SpotCheck, spot_check


def altered(cache: KVCache, seed: int) -> KVCache:
    """Return a cache a tenth of whose columns are those of other tokens, in all layers; nothing in it tells."""
    # One column for each token, so that none is exchanged for one of its own.
    apart = sorted({token: column for column, token in enumerate(cache.manifest.token_ids or ())}.values())
    chosen = random.Random(seed).sample(apart, round(cache.columns / 10))  # noqa: S311 - nothing secret
    source = torch.arange(cache.columns)
    source[chosen] = source[chosen].roll(1)
    layers = [KVLayer(of.index, of.keys[:, source], of.values[:, source], of.positions) for of in cache.layers]
    return KVCache(tuple(layers), cache.manifest)


def worst(check: SpotCheck, first: int, last: int) -> str:
    """Return the largest error of some layers, and what passes in the last of them."""
    return f"{max(check.errors[at].largest for at in range(first, last + 1)):.1e} / {check.tolerance[last].largest:.1e}"


def main() -> None:
    """Print the table."""
    engine, *dtype = sys.argv[1:] or ["transformers"]
    receiver = load_model("smollm2-135m")
    sender = load_model("smollm2-135m", engine=engine, **({"dtype": dtype[0]} if dtype else {}))
    whole, last = Agent("lyra", sender).read(REPORT).cache, sender.spec.layers - 1
    print(f"{whole.columns} columns\n\n| wire form | layer 0 | layers 1, 2 | deeper | found | refused |\n|{'---|' * 6}")
    for wire in WIRES:
        arrived = codec_named(wire).unpack(codec_named(wire).pack(whole))
        off, content = spot_check(arrived, receiver, layers=range(last + 1)), content_columns(arrived)
        found = sum(not spot_check(altered(content, seed), receiver, seed=seed).passed for seed in range(100))
        refused = sum(not spot_check(content, receiver, seed=seed).passed for seed in range(100))
        print(f"| {wire} | {worst(off, 0, 0)} | {worst(off, 1, 2)} | {worst(off, 3, last)} | {found} | {refused} |")


if __name__ == "__main__":
    main()
