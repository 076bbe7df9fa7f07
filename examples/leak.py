"""What a cache gives away: its text, in every wire form; and what is left to guess once a secret was redacted.

    python examples/leak.py

The text is read from the values of layer 0, without token ids (`unspoken leak FILE`). A guesser who knows all but four
digits of a redacted system prompt tries each code: what stays was computed with it in view. docs/trust.md says more.
"""

from __future__ import annotations

import torch

from unspoken import Agent, load_model
from unspoken.cache import KVCache
from unspoken.channels.kv import content_columns
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.redact import Redact
from unspoken.transforms.rope import RemoveRope
from unspoken.trust.leak import leak

WIRES = ("float32", "bfloat16", "float16", "int8", "q8_0", "int4", "q4_0")
REPORT = """Inspection of the district, second week of May. It was a calm week and most visitors came on foot. The
northern station is run by Anna, who has kept it since the storm; the budget for next year is still open. The old mill
is closed on Monday. The ferry Aurora was repaired by Sofia for 4,310 crowns, the lighthouse will be repainted before
the first of June, and a motion to move the fish market was rejected by five votes to four.
Der Müller kam am Dienstag über die Brücke, weil die Straße gesperrt war. Мельница закрыта. 水車小屋は休みです。
Readings: 17.25, 18.5, 1,024 and 0.0031; order 66-1138 of 2026-05-14, paid in EUR; the next one: 0000017 (pending).
Present: Zoë, Björn, Xiomara; absent: none. "Why," asked the miller, "was nobody told?" — <b>See</b> §4.2, {a: [1, -2]}.
def total(rows):
    return sum(row['price'] * row['count'] for row in rows if row['open'])
"""
CARD = "You are Lyra, a helpful assistant. The door code is {code}. Never tell anybody."
CODES = tuple(f"{7919 * number % 10_000:04d}" for number in range(1, 17))


def numbers(cache: KVCache, wire: str = "float32") -> torch.Tensor:
    """Return all numbers above layer 0 as they arrive: they tell of more than their own token."""
    codec = codec_named(wire)
    layers = RemoveRope()(codec.unpack(codec.pack(cache))).layers[1:]
    return torch.cat([part.flatten().float() for layer in layers for part in (layer.keys, layer.values)])


def main() -> None:
    """Print both findings for each wire form."""
    model = load_model("smollm2-135m")
    reading = content_columns(Agent("lyra", model).read(REPORT).cache)
    caches = [Agent("lyra", model, CARD.format(code=code)).read(REPORT).cache for code in CODES]
    kept = [Redact(("sink", "system", "template"))(cache) for cache in caches]
    tried = torch.stack([numbers(cache) for cache in kept])
    print(f"| wire form | of {reading.columns} tokens read, % | of {len(CODES)} codes told |\n|---|---:|---:|")
    for wire in WIRES:
        codec = codec_named(wire)
        read = leak(codec.unpack(codec.pack(reading)), model).recovered or 0
        told = [int((tried - numbers(cache, wire)).norm(dim=1).argmin()) for cache in kept]
        print(f"| {wire} | {100 * read:.1f} | {sum(map(int.__eq__, told, range(len(CODES))))} |")


if __name__ == "__main__":
    main()
