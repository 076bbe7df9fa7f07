"""Tampering with what sealed files mean: every digest is right again, and only the seal can refuse them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec
import torch
from torch import Tensor

from unspoken.layout import BLOCK_BYTES, FLOATS
from unspoken.manifest import Manifest, Span, Step
from unspoken.spec import ModelSpec

from .tampering import ROPE, SPEC, Attack, Attempt, Honest, World

replace = msgspec.structs.replace
SPECS: dict[str, ModelSpec] = {
    "name": replace(SPEC, name="Toy"),
    "family": replace(SPEC, family="qwen3"),
    "layers": replace(SPEC, layers=4),
    "vocabulary": replace(SPEC, vocabulary=1001),
    "context": replace(SPEC, context=1 << 20),
    "weights": replace(SPEC, weights="Weights"),
    "architecture": replace(SPEC, architecture=""),
    "tokenizer": replace(SPEC, tokenizer="letters "),
    "chat_template": replace(SPEC, chat_template="t\u0435mplate"),
    "kind of RoPE": replace(SPEC, rope=replace(ROPE, kind="yarn")),
    "pairing": replace(SPEC, rope=replace(ROPE, pairing="interleaved")),
    "frequencies": replace(SPEC, rope=replace(ROPE, inverse_frequencies=ROPE.inverse_frequencies[::-1])),
    "attention scaling": replace(SPEC, rope=replace(ROPE, attention_scaling=1.0000000000000002)),
}


def spec(world: World, draw: Random) -> Iterator[Attempt]:
    """Say that another model made the cache, or one of another RoPE; call RoPE applied that is removed."""
    for what, model in SPECS.items():
        for each in world.some(draw, 5):
            yield Attempt(f"{what}: {each.what}", world.remade(each.raw, spec=model), sound=True)
    for each in world.some(draw, 10):
        yield Attempt(f"RoPE applied: {each.what}", world.remade(each.raw, rope="applied"), sound=True)
    for each in world.some(draw, 6, lambda each: each.codec in ("float16", "bfloat16")):
        held, other = world.tensors(each.raw), {"float16": "bfloat16", "bfloat16": "float16"}[each.codec]
        dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}[other]
        # Read as the other type, numbers of this size are finite still.
        tensors = {name: part.view(dtype) for name, part in held.items() if "positions" not in name}
        yield Attempt(f"{other}: {each.what}", world.remade(each.raw, tensors=tensors, dtype=other), sound=True)


def _fields(
    world: World, draw: Random, count: int, name: str, changes: Callable[[Manifest, Random], dict[str, Any]],
    wanted: Callable[[Honest], bool] = lambda each: True,
) -> Iterator[Attempt]:  # fmt: skip
    """Change one field of the manifest to each of what a function makes of it, in some files."""
    for each in world.some(draw, count, wanted):
        cache = world.header(each.raw).manifest.cache
        for what, value in changes(cache, draw).items():
            if repr(value) != repr(getattr(cache, name)):  # 5 and 5.0 compare as equal, and are other words.
                raw = world.remade(each.raw, **{name: value})
                yield Attempt(f"{name} {what}: {each.what}", raw, sound=True)


def spans(world: World, draw: Random) -> Iterator[Attempt]:
    """Call instructions content and content instructions; move, add and remove spans."""

    def changes(cache: Manifest, draw: Random) -> dict[str, Any]:
        *before, last = cache.spans
        middle = (last.start + last.stop) // 2
        return {
            "are those of a system prompt": (*before, replace(last, kind="system")),
            "are thoughts": (*before, replace(last, kind="thought")),
            "are gone": (),
            "stand twice": (*cache.spans, last),
            "in another order": cache.spans[::-1],
            "begin later": (*before, replace(last, start=min(last.start + 1, last.stop - 1))),
            "are cut": (*before, replace(last, stop=max(middle, last.start + 1)), Span("template", middle, last.stop)),
        }

    # Sinks of int8 and int4 are tensors of their own: to change these takes more than words.
    yield from _fields(world, draw, 16, "spans", changes, lambda each: each.codec in (*FLOATS, *BLOCK_BYTES))


def token_ids(world: World, draw: Random) -> Iterator[Attempt]:
    """Claim another text: other tokens, others in their place, none, or some where the sender gave none."""

    def changes(cache: Manifest, draw: Random) -> dict[str, Any]:
        columns = cache.layers[0].columns
        ids = cache.token_ids
        if ids is None:
            return {"are told": tuple(range(columns)), "are all the same": (1,) * columns}
        at = draw.randrange(columns)
        return {
            "has another one": (*ids[:at], ids[at] + 1, *ids[at + 1 :]),
            "has a negative one": (*ids[:at], -1, *ids[at + 1 :]),
            "has one of the vocabulary's end": (*ids[:at], (1 << 31) - 1, *ids[at + 1 :]),
            "are turned round": ids[::-1],
            "are gone": None,
        }

    yield from _fields(world, draw, 28, "token_ids", changes)


def lineage(world: World, draw: Random) -> Iterator[Attempt]:
    """Tell another history."""

    def changes(cache: Manifest, draw: Random) -> dict[str, Any]:
        first, *rest = cache.lineage

        def args(**changed: Any) -> tuple[Step, ...]:
            return (replace(first, args=first.args | changed), *rest)

        return {
            "is gone": (),
            "lacks a step": tuple(rest),
            "has one more step": (*cache.lineage, Step("select", {"share": 0.3})),
            "is turned round": cache.lineage[::-1],
            "names another engine": args(engine="llamacpp"),
            "has a fraction for an integer": args(tokens=float(first.args["tokens"])),
            "has a number of another last digit": args(scale=1.0000000000000002e-9),
            "has one more argument": args(more=None),
        }

    yield from _fields(world, draw, 10, "lineage", changes)


def sender(world: World, draw: Random) -> Iterator[Attempt]:
    """Say that somebody else made it."""

    def changes(cache: Manifest, draw: Random) -> dict[str, Any]:
        names = ("vera", "mallory", None, "Lyra", "lyra ", "", "l\u0443ra", "lyra\u200b", "lyra\n")
        return {repr(name): name for name in names}

    yield from _fields(world, draw, 8, "sender", changes)


def _tensors(world: World, each: Honest, what: str, tensors: dict[str, Tensor]) -> Iterator[Attempt]:
    """Put other tensors into a file, if they differ."""
    held = world.tensors(each.raw)
    if not all(torch.equal(held[name].view(torch.uint8), tensor.view(torch.uint8)) for name, tensor in tensors.items()):
        yield Attempt(f"{what}: {each.what}", world.remade(each.raw, tensors=tensors), sound=True)


def positions(world: World, draw: Random) -> Iterator[Attempt]:
    """Move columns to other positions, in one layer or in all."""
    for each in world.some(draw, 14):
        held = {name: part for name, part in world.tensors(each.raw).items() if "positions" in name}
        one = draw.choice(sorted(held))
        last = torch.zeros_like(held[one])
        last[-1] = 1
        yield from _tensors(world, each, "all moved by 1", {name: part + 1 for name, part in held.items()})
        yield from _tensors(world, each, f"{one} moved by 1000", {one: held[one] + 1000})
        yield from _tensors(world, each, f"the last of {one}", {one: held[one] + last})
        yield from _tensors(world, each, "turned round", {name: part.flip(0) for name, part in held.items()})
        yield from _tensors(world, each, f"{one} the greatest", {one: held[one] + last * (2**31 - 1 - held[one][-1])})
        yield from _tensors(world, each, "all 0", {name: part * 0 for name, part in held.items()})


def layers(world: World, draw: Random) -> Iterator[Attempt]:
    """Exchange layers, their keys or their values, with all that belongs to these."""
    for each in world.some(draw, 9):
        held = world.tensors(each.raw)
        for one, other in ((0, 1), (0, 2), (1, 2)):
            for sides in (("keys",), ("values",), ("keys", "values")):
                tensors = {}
                for name in held:
                    _, layer, part, *_ = name.split(".")
                    if part in sides and int(layer) in (one, other):
                        partner = name.replace(f".{layer}.", f".{one + other - int(layer)}.", 1)
                        tensors[name] = held[partner]
                what = f"{' and '.join(sides)} of layers {one} and {other}"
                yield from _tensors(world, each, what, tensors)


def columns(world: World, draw: Random) -> Iterator[Attempt]:
    """Exchange two columns, or turn all round, in one tensor or in all, with their positions or without."""
    for each in world.some(draw, 18, lambda each: each.columns > 1):
        held = {name: part for name, part in world.tensors(each.raw).items() if part.ndim > 1 or "positions" in name}
        one = draw.choice([name for name in held if name.endswith((".keys", ".values"))])
        for what, names in {
            f"of {one}": [one],
            "of all keys": [name for name in held if name.endswith(".keys")],
            "of all values": [name for name in held if name.endswith(".values")],
            "of everything": [name for name in held if name.endswith((".keys", ".values", ".positions"))],
        }.items():
            changed = {name: _exchanged(held[name], draw) for name in names}
            yield from _tensors(world, each, f"columns {what}", changed)


def _exchanged(part: Tensor, draw: Random) -> Tensor:
    """Exchange two columns of a tensor: its last axis but one, or the first of what has no heads."""
    axis = 1 if part.ndim == 3 else 0
    order = list(range(part.shape[axis]))
    one, other = draw.sample(order, 2)
    order[one], order[other] = other, one
    return part.index_select(axis, torch.tensor(order))


def numbers(world: World, draw: Random) -> Iterator[Attempt]:
    """Change numbers as little as can be, or all of them."""
    for each in world.some(draw, 28):
        held = world.tensors(each.raw)
        for name in draw.sample([name for name in held if name.endswith((".keys", ".values"))], 3):
            raw = held[name].contiguous().view(torch.uint8).clone()
            flat = raw.view(-1)
            # The lowest bits of a number or a code; a block's scale is in its first two bytes.
            flat[2 if each.codec in BLOCK_BYTES else 0] ^= 1
            yield from _tensors(world, each, f"one bit of {name}", {name: raw.view(held[name].dtype)})


ATTACKS: dict[str, Attack] = {
    "specification, digests right": spec,
    "spans, digests right": spans,
    "token ids, digests right": token_ids,
    "lineage, digests right": lineage,
    "sender, digests right": sender,
    "positions, digests right": positions,
    "layers exchanged, digests right": layers,
    "columns exchanged, digests right": columns,
    "numbers, digests right": numbers,
}
