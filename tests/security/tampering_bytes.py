"""Tampering with the bytes of sealed files: bits, lengths, offsets, versions, unknown and doubled fields."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

from blake3 import blake3

from unspoken.cachefile.header import MANIFEST_KEY
from unspoken.cachefile.sealed import SEAL_KEY

from .tampering import Attack, Attempt, Honest, World, canonical, edited, flipped, joined, split, with_metadata

META = "__metadata__"


def _bits(world: World, draw: Random, count: int, start: Any, stop: Any) -> Iterator[Attempt]:
    """Flip bits between two places, each a function of a file's bytes."""
    for each in world.some(draw, count):
        bit = draw.randrange(8 * start(each.raw), 8 * stop(each.raw))
        yield Attempt(f"bit {bit} of {each.what}", flipped(each.raw, bit))


def _data_start(raw: bytes) -> int:
    return 8 + int(struct.unpack("<Q", raw[:8])[0])


def _seal_start(raw: bytes) -> int:
    return raw.index(b'"unspoken.seal"')


def _seal_stop(raw: bytes) -> int:
    return raw.index(b'\\"version\\":1}"', _seal_start(raw)) + 15


def bits_of_the_length(world: World, draw: Random) -> Iterator[Attempt]:
    """Flip each bit of the header's length."""
    for bit in range(64):
        each = draw.choice(world.attacked)
        yield Attempt(f"bit {bit} of {each.what}", flipped(each.raw, bit))


def bits_before_the_seal(world: World, draw: Random) -> Iterator[Attempt]:
    """Flip bits of the header in front of the seal, every one of the words that no digest covers."""
    yield from _bits(world, draw, 100, lambda raw: 8, _seal_start)
    raw = world.attacked[0].raw
    for bit in range(8 * raw.index(b'"format"'), 8 * raw.index(b'"unspoken.manifest"')):
        yield Attempt(f"bit {bit} of the format", flipped(raw, bit))


def bits_of_the_seal(world: World, draw: Random) -> Iterator[Attempt]:
    """Flip bits of the seal, its name in the header included."""
    yield from _bits(world, draw, 100, _seal_start, _seal_stop)


def bits_of_the_table(world: World, draw: Random) -> Iterator[Attempt]:
    """Flip bits of the tensor table and of the padding behind it."""
    yield from _bits(world, draw, 100, _seal_stop, _data_start)


def bits_of_the_data(world: World, draw: Random) -> Iterator[Attempt]:
    """Flip bits of the tensors."""
    yield from _bits(world, draw, 100, _data_start, len)


def truncated(world: World, draw: Random) -> Iterator[Attempt]:
    """Cut files off: anywhere, and where parts end."""
    for each in world.some(draw, 50):
        stop = draw.randrange(len(each.raw))
        yield Attempt(f"{stop} bytes of {each.what}", each.raw[:stop])
    for each in world.some(draw, 10):
        for stop in (len(each.raw) - 1, len(each.raw) - 8, _data_start(each.raw)):
            yield Attempt(f"{stop} bytes of {each.what}", each.raw[:stop])


def extended(world: World, draw: Random) -> Iterator[Attempt]:
    """Add bytes behind a file, between header and data, and in front."""
    for each in world.some(draw, 20):
        more, (header, data) = draw.randbytes(draw.randrange(1, 64)), split(each.raw)
        yield Attempt(f"{len(more)} bytes behind {each.what}", each.raw + more)
        yield Attempt(f"zeros behind {each.what}", each.raw + bytes(len(more)))
        yield Attempt(f"bytes before the data of {each.what}", joined(header, more + data))
        yield Attempt(f"spaces before the data of {each.what}", joined(header + " " * 8, data))
        yield Attempt(f"{each.what} twice", each.raw + each.raw + more)


def table_changed(world: World, draw: Random) -> Iterator[Attempt]:
    """Lie about places, shapes and types of tensors, and about numbers of columns and layers."""
    for each in world.some(draw, 14):
        for what, change in _lies(each, draw):
            yield Attempt(f"{what}: {each.what}", edited(each.raw, change))


def _lies(each: Honest, draw: Random) -> Iterator[tuple[str, Any]]:
    names = [name for name in json.loads(split(each.raw)[0]) if name != META]
    one, other = draw.sample(names, 2)
    by = draw.choice((-8, -1, 1, 4, 1 << 40))

    def moved(fields: dict[str, Any]) -> None:
        fields[one]["data_offsets"] = [offset + by for offset in fields[one]["data_offsets"]]

    def columns(fields: dict[str, Any]) -> None:
        manifest = json.loads(fields[META][MANIFEST_KEY])
        manifest["cache"]["layers"][draw.randrange(3)]["columns"] += draw.choice((-1, 1, 1 << 20))
        fields[META][MANIFEST_KEY] = canonical(_digested(manifest))

    def exchanged(fields: dict[str, Any]) -> None:
        fields[one], fields[other] = fields[other], fields[one]
        fields[one]["shape"] = [1, *fields[one]["shape"]]

    yield f"{one} moved by {by}", moved
    yield f"{one} longer", lambda fields: fields[one]["data_offsets"].__setitem__(1, fields[one]["data_offsets"][1] + 1)
    yield f"{one} reversed", lambda fields: fields[one]["data_offsets"].reverse()
    yield f"{one} where {other} lies", lambda fields: fields[one].update(data_offsets=fields[other]["data_offsets"])
    yield f"{one} of another shape", lambda fields: fields[one]["shape"].append(draw.choice((0, 1, -1, 1 << 62)))
    yield f"{one} of another type", lambda fields: fields[one].update(dtype=draw.choice(("F64", "I8", "", "u8")))
    yield f"{one} renamed", lambda fields: fields.update({draw.choice(("../x", one + " ", "")): fields.pop(one)})
    yield f"{one} removed", lambda fields: fields.pop(one)
    yield f"{one} for {other}", exchanged
    yield "columns", columns


def _digested(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with its own digest right."""
    whole = {name: value for name, value in manifest.items() if name != "digest"}
    return whole | {"digest": blake3(canonical(whole).encode()).hexdigest()}


def _manifest_edited(raw: bytes, change: Any) -> bytes:
    """Return a file with anything changed in its manifest, whose digest is made right."""

    def both(fields: dict[str, Any]) -> None:
        manifest = json.loads(fields[META][MANIFEST_KEY])
        change(manifest)
        fields[META][MANIFEST_KEY] = canonical(_digested(manifest))

    return edited(raw, both)


def versions(world: World, draw: Random) -> Iterator[Attempt]:
    """Claim other versions of the format, digests right, and of the seal, signed by its owner."""
    for each in world.some(draw, 6):
        for version in (0, 1, 3, -1, 2.0, "2", None, True, [2], 1 << 70):
            raw = _manifest_edited(each.raw, partial(dict.update, version=version))
            yield Attempt(f"format {version}: {each.what}", raw)
            if version != 1 or version is True:  # 1 is the seal's own.
                yield Attempt(f"seal {version}: {each.what}", _seal_signed(world, each.raw, version=version))
        yield Attempt(f"no format: {each.what}", _manifest_edited(each.raw, lambda manifest: manifest.pop("version")))


def _seal_signed(world: World, raw: bytes, **fields: Any) -> bytes:
    """Return a file with any fields in its seal, signed by its owner as a seal is."""

    def change(header: dict[str, Any]) -> None:
        unsigned = json.loads(header[META][SEAL_KEY]) | fields
        del unsigned["signature"]
        signature = world.keys["lyra"].sign(b"unspoken seal v1\n" + canonical(unsigned).encode())
        header[META][SEAL_KEY] = canonical(unsigned | {"signature": signature})

    return edited(raw, change)


Place = Callable[[dict[str, Any]], dict[str, Any]]
UNKNOWN = ("evil", "Version", "", "signature ", "__class__", "\u0435vil")


def unknown_fields(world: World, draw: Random) -> Iterator[Attempt]:
    """Add fields that nobody knows, digests right, and to the seal, signed by its owner."""
    places: dict[str, Place] = {
        "the manifest": lambda manifest: manifest,
        "the cache": lambda manifest: manifest["cache"],
        "the spec": lambda manifest: manifest["cache"]["spec"],
        "the RoPE": lambda manifest: manifest["cache"]["spec"]["rope"],
        "a layer": lambda manifest: manifest["cache"]["layers"][1],
        "a span": lambda manifest: manifest["cache"]["spans"][0],
        "a step": lambda manifest: manifest["cache"]["lineage"][0],
        "the digests": lambda manifest: manifest["digests"],
    }
    outside: dict[str, Place] = {
        "the metadata": lambda fields: fields[META],
        "a tensor": lambda fields: fields["layers.0.keys"],
        "the header": lambda fields: fields,
    }
    for name in UNKNOWN:
        each = draw.choice(world.attacked)
        for what, place in places.items():
            yield Attempt(f"'{name}' in {what}: {each.what}", _manifest_edited(each.raw, _added(place, name)))
        for what, place in outside.items():
            yield Attempt(f"'{name}' in {what}: {each.what}", edited(each.raw, _added(place, name)))
        yield Attempt(f"'{name}' in the seal: {each.what}", _seal_signed(world, each.raw, **{name: 1}))


def _added(place: Place, name: str) -> Callable[[dict[str, Any]], None]:
    return lambda fields: place(fields).update({name: "0" * 64})


def doubled_fields(world: World, draw: Random) -> Iterator[Attempt]:
    """Let names stand twice, with the same value or with another one: in the seal, the manifest and the header."""
    for each in world.some(draw, 2):
        text, data = split(each.raw)
        fields = json.loads(text)
        for where in (SEAL_KEY, MANIFEST_KEY):
            for what, made in _doubled(fields[META][where]):
                yield Attempt(f"{what} in {where}: {each.what}", with_metadata(each.raw, {where: made}))
        for name, value in fields.items():
            raw = joined(f"{text[:-1]},{canonical(name)}:{json.dumps(value)}}}", data)
            yield Attempt(f"{name} twice: {each.what}", raw)
        for name in fields[META]:
            raw = joined(text.replace('"format"', f'{canonical(name)}:"pt","format"', 1), data)
            yield Attempt(f"{name} twice in the metadata: {each.what}", raw)


def _doubled(text: str) -> Iterator[tuple[str, str]]:
    """Yield a JSON object with one of its names twice: in front and behind, with its value and with another one."""
    for name, value in json.loads(text).items():
        for again in (value, True):
            twice = f"{canonical(name)}:{canonical(again)}"
            yield f"{twice[:40]} before", f"{{{twice},{text[1:]}"
            yield f"{twice[:40]} behind", f"{text[:-1]},{twice}}}"


def rewritten(world: World, draw: Random) -> Iterator[Attempt]:
    """Write the same words in another way: every digest and the signature are right."""
    for each in world.some(draw, 8):
        text, data = split(each.raw)
        fields = json.loads(text)
        manifest = json.loads(fields[META][MANIFEST_KEY])
        headers: dict[str, str | bytes] = {
            "spaces": json.dumps(fields),
            "other order": json.dumps(dict(reversed(fields.items())), separators=(",", ":")),
            "an escape": text.replace('"format"', '"\\u0066ormat"'),
            "a slash": text.replace('"dtype"', '"dt\\u0079pe"', 1),
            "a line feed": text + "\n",
            "more padding": text + " " * 64,
            "a number": text.replace("1e-09", "1E-9", 1),
            "a number with zeros": text.replace("1e-09", "1.000e-9", 1),
            "UTF-16": text.encode("utf-16-le"),
            "a mark of byte order": b"\xef\xbb\xbf" + text.encode(),
        }
        for what, header in headers.items():
            sound = isinstance(header, str)
            yield Attempt(f"{what}: {each.what}", joined(header, data), sound=sound)
        for what, words in {
            "manifest with spaces": json.dumps(manifest),
            "manifest in another order": json.dumps(dict(reversed(manifest.items())), separators=(",", ":")),
            "manifest with a line feed": canonical(manifest) + "\n",
            "manifest with a default left out": canonical(manifest).replace('"args":{},', "", 1),
        }.items():
            yield Attempt(f"{what}: {each.what}", with_metadata(each.raw, {MANIFEST_KEY: words}), sound=True)


ATTACKS: dict[str, Attack] = {
    "bits of the header's length": bits_of_the_length,
    "bits of the header before the seal": bits_before_the_seal,
    "bits of the seal": bits_of_the_seal,
    "bits of the tensor table": bits_of_the_table,
    "bits of the data": bits_of_the_data,
    "truncated": truncated,
    "extended": extended,
    "offsets, shapes, sizes and lengths": table_changed,
    "other versions of format and seal": versions,
    "unknown fields": unknown_fields,
    "doubled fields": doubled_fields,
    "the same words written in another way": rewritten,
}
