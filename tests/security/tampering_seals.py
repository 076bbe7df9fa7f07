"""Tampering with who vouches for a file, when, and for what: files that are sound, or were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

from unspoken.cachefile.header import MANIFEST_KEY
from unspoken.cachefile.sealed import SEAL_KEY, tokens_digest

from .tampering import (
    LIFE_SECONDS,
    NOW,
    Attack,
    Attempt,
    World,
    canonical,
    joined,
    seal_of,
    split,
    with_metadata,
    with_seal,
)

META = "__metadata__"
UNTIL = NOW + LIFE_SECONDS
SKEW_SECONDS = 300
# The order of Ed25519's group (RFC 8032, section 5.1): S and S + L both fulfil the equation that is verified.
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def strangers(world: World, draw: Random) -> Iterator[Attempt]:
    """Seal with a key that the receiver does not know, under any name."""
    for each in world.some(draw, 20):
        for name in ("lyra", "vera", "mallory"):
            raw = world.sealed_by(each.raw, world.keys["mallory"], sender=name)
            yield Attempt(f"mallory as {name}: {each.what}", raw, sound=True)
        named = world.remade(each.raw, sender="mallory")
        named = world.sealed_by(
            named, world.keys["mallory"], sender="mallory", digest=world.header(named).manifest.digest
        )
        yield Attempt(f"mallory's own: {each.what}", named, sound=True)


def false_names(world: World, draw: Random) -> Iterator[Attempt]:
    """Seal with a key that the receiver knows by another name than the seal or the file says."""
    vera = world.keys["vera"]
    for each in world.some(draw, 17):
        yield Attempt(f"lyra's own, vera's expected: {each.what}", each.raw, sender="vera", sound=True)
        for name in ("lyra", "vera"):
            raw = world.sealed_by(each.raw, vera, sender=name)
            yield Attempt(f"vera as {name}: {each.what}", raw, sender=None, sound=True)
        for made_by in (None, "vera"):
            named = world.remade(each.raw, sender=made_by)
            for name in ("lyra", "vera"):
                raw = world.sealed_by(named, vera, sender=name, digest=world.header(named).manifest.digest)
                # Under her own name it is vera's right to seal what she says she has made, but it is not lyra's.
                expected = "lyra" if name == "vera" else None
                yield Attempt(f"vera as {name}, made by {made_by}: {each.what}", raw, sender=expected, sound=True)


def other_keys(world: World, draw: Random) -> Iterator[Attempt]:
    """Put another key beside the sender's signature, or another signature beside the key."""
    for each in world.some(draw, 14):
        seal = seal_of(world.header(each.raw))
        whole = bytes.fromhex(seal.signature)
        point, scalar = whole[:32], int.from_bytes(whole[32:], "little")
        changes: dict[str, dict[str, Any]] = {
            "vera's key": {"key": world.keys["vera"].public.key},
            "vera's key and name": {"key": world.keys["vera"].public.key, "sender": "vera"},
            "a key of small order": {"key": "01" + "00" * 31, "signature": "01" + "00" * 63},
            "no signature": {"signature": "0" * 128},
            "vera's signature": {"signature": world.keys["vera"].sign(seal.message())},
            "a signature of other bytes": {"signature": world.keys["lyra"].sign(seal.message()[17:])},
            "its twin": {"signature": (point + (scalar + GROUP_ORDER).to_bytes(32, "little")).hex()},
            "halves exchanged": {"signature": (whole[32:] + point).hex()},
        }
        for what, fields in changes.items():
            yield Attempt(f"{what}: {each.what}", world.seal_changed(each.raw, **fields), sound=True)


def transplanted(world: World, draw: Random) -> Iterator[Attempt]:
    """Move a seal to another file of the same sender, as it is or with that file's digests in it."""
    for each, other in zip(world.some(draw, 40), world.some(draw, 40), strict=True):
        if each is other:
            continue
        header, seal = world.header(each.raw), seal_of(world.header(other.raw))
        yield Attempt(f"that of {other.what} in {each.what}", with_seal(each.raw, header, seal), sound=True)
        ids = header.manifest.cache.token_ids
        fields = {"digest": header.manifest.digest, "tokens": None if ids is None else tokens_digest(ids)}
        raw = world.seal_changed(with_seal(each.raw, header, seal), **fields)
        yield Attempt(f"that of {other.what}, patched, in {each.what}", raw, sound=True)


def fields_changed(world: World, draw: Random) -> Iterator[Attempt]:
    """Change each field of a seal to what it could as well be, not signed."""
    for each in world.some(draw, 10):
        seal = seal_of(world.header(each.raw))
        changes: dict[str, Any] = {
            "digest": draw.randbytes(32).hex(),
            "tokens": draw.randbytes(32).hex() if seal.tokens is None else None,
            "sender": "vera",
            "session": "",
            "nonce": draw.randbytes(16).hex(),
            "created": NOW - draw.randrange(1, 1000),
            "seconds_to_live": LIFE_SECONDS + draw.randrange(1, 1000),
        }
        for name, value in changes.items():
            yield Attempt(f"{name}: {each.what}", world.seal_changed(each.raw, **{name: value}), sound=True)


def replayed(world: World, draw: Random) -> Iterator[Attempt]:
    """Send a file that was accepted again: now, later, as a copy in another form."""
    for each in world.some(draw, 18):
        later = draw.randrange(NOW + 1, UNTIL)
        yield Attempt(f"{each.what} again", each.raw, before=each.raw, sound=True)
        yield Attempt(f"{each.what} {later - NOW} s later", each.raw, later, before=each.raw, sound=True)
        text, data = split(each.raw)
        yield Attempt(f"{each.what} with spaces", joined(text + " " * 8, data), before=each.raw, sound=True)


def expired(world: World, draw: Random) -> Iterator[Attempt]:
    """Send a file once its time is over, with the time in the seal changed or not."""
    for each in world.some(draw, 20):
        by = draw.choice((0, 1, 299, 300, 301, 1 << 20, 1 << 36))
        yield Attempt(f"{by} s late: {each.what}", each.raw, UNTIL + by, sound=True)
        longer = world.seal_changed(each.raw, seconds_to_live=1 << 30)
        yield Attempt(f"{by} s late, with a longer life: {each.what}", longer, UNTIL + by, sound=True)
        younger = world.seal_changed(each.raw, created=UNTIL + by)
        yield Attempt(f"{by} s late, with another date: {each.what}", younger, UNTIL + by, sound=True)


def of_the_future(world: World, draw: Random) -> Iterator[Attempt]:
    """Send a file that was made later than clocks may differ."""
    for each in world.some(draw, 30):
        by = draw.choice((1, 2, 60, 3600, 1 << 20, 1 << 30))
        now = NOW - SKEW_SECONDS - by
        yield Attempt(f"{by} s early: {each.what}", each.raw, now, sound=True)
        older = world.seal_changed(each.raw, created=now)
        yield Attempt(f"{by} s early, with another date: {each.what}", older, now, sound=True)


SESSIONS = (
    "", " ", "Tea", "TEA", "tea ", " tea", "te", "teaa", "t\u0435a", "tea\u200b", "te\u0301a", "coffee", "tea\n",
    "tea\x00", "null", "None", "0", "%74ea", "*", ".*", "tea,coffee", '"tea"',
)  # fmt: skip


def other_sessions(world: World, draw: Random) -> Iterator[Attempt]:
    """Send a file for one session into another one, with the session in the seal changed or not."""
    for session in SESSIONS:
        for each in world.some(draw, 2):
            yield Attempt(f"for {session!r}: {each.what}", each.raw, session=session, sound=True)
        if session.isprintable():
            each = draw.choice(world.attacked)
            raw = world.seal_changed(each.raw, session=session)
            yield Attempt(f"relabelled for {session!r}: {each.what}", raw, session=session, sound=True)
            raw = world.sealed_by(each.raw, world.keys["mallory"], session=session)
            yield Attempt(f"sealed by mallory for {session!r}: {each.what}", raw, session=session, sound=True)


def removed(world: World, draw: Random) -> Iterator[Attempt]:
    """Take the seal out, or put it where it is not looked for."""
    for each in world.some(draw, 12):
        yield Attempt(f"never sealed: {each.what}", each.plain, sound=True)
        text = json.loads(split(each.raw)[0])[META][SEAL_KEY]
        yield Attempt(f"taken out: {each.what}", with_metadata(each.raw, {SEAL_KEY: ...}), sound=True)
        for name in ("Unspoken.seal", "unspoken.seal ", "seal", MANIFEST_KEY + ".seal"):
            raw = with_metadata(each.raw, {SEAL_KEY: ..., name: text})
            yield Attempt(f"called '{name}': {each.what}", raw, sound=True)
        values: list[object] = [None, "", "null", "{}", "[]", 0, {}, "0" * 5000, json.loads(text)]
        for value in values:
            yield Attempt(f"{str(value)[:9]!r} in its place: {each.what}", with_metadata(each.raw, {SEAL_KEY: value}))
        header, data = split(with_metadata(each.raw, {SEAL_KEY: ...}))
        yield Attempt(f"outside: {each.what}", joined(f'{header[:-1]},"{SEAL_KEY}":{json.dumps(text)}}}', data))


def fields_missing(world: World, draw: Random) -> Iterator[Attempt]:
    """Leave a field of the seal out, or write it in another way that means the same to a lenient reader."""
    for each in world.some(draw, 3):
        seal = json.loads(json.loads(split(each.raw)[0])[META][SEAL_KEY])
        for name, value in seal.items():
            without = canonical({key: kept for key, kept in seal.items() if key != name})
            other = value.upper() if isinstance(value, str) else float(value or 0)
            for what, text in {
                f"without {name}": without,
                f"{name} in capitals or as a fraction": canonical(seal | {name: other if other != value else [value]}),
                f"{name} with a space": canonical(seal).replace(f'"{name}":', f'"{name}": '),
                f"{name} with an escape": canonical(seal).replace(f'"{name}":', f'"\\u{ord(name[0]):04x}{name[1:]}":'),
            }.items():
                yield Attempt(f"{what}: {each.what}", with_metadata(each.raw, {SEAL_KEY: text}))


ATTACKS: dict[str, Attack] = {
    "sealed by a stranger": strangers,
    "sealed under a false name": false_names,
    "another key or signature": other_keys,
    "seal of another file": transplanted,
    "fields of the seal, not signed": fields_changed,
    "replayed": replayed,
    "expired": expired,
    "made in the future": of_the_future,
    "for another session": other_sessions,
    "seal taken out": removed,
    "seal with fields missing or in another form": fields_missing,
}
