"""The form of a seal: what is signed, to the byte, and what no reader takes for a seal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from unspoken.cache import KVCache
from unspoken.cachefile import peek, read_cache, tokens_digest, write_cache
from unspoken.cachefile.sealed import Seal, decode_seal, encode_seal
from unspoken.errors import CacheFileError, UsageError
from unspoken.trust.keys import SigningKey
from unspoken.trust.seals import seal_file, verify_seal
from unspoken.trust.store import TrustStore

from .sealing import NOW, canonical, put_text, seal_text, signed

Keys = dict[str, SigningKey]


def test_a_seal_is_what_the_specification_says_to_the_byte() -> None:
    # The key is that of RFC 8032, section 7.1, test 1; Ed25519 signatures are deterministic.
    private = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    key = SigningKey("lyra", private)
    assert key.public.key == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    seal = Seal(1, "0a" * 32, None, "lyra", "té", "0b" * 16, NOW, 60, key.public.key, "0" * 128)
    fields = (
        f'{{"created":1800000000,"digest":"{"0a" * 32}","key":"{key.public.key}","nonce":"{"0b" * 16}",'
        '"seconds_to_live":60,"sender":"lyra","session":"t\\u00e9","tokens":null,"version":1}'
    )
    message = b"unspoken seal v1\n" + fields.encode("ascii")
    assert seal.message() == message
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public.key))
    public.verify(bytes.fromhex(key.sign(message)), message)
    assert decode_seal(encode_seal(seal)) == seal


# What stands where a seal should, and what the reader says about it.
MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no text": (lambda seal: seal, "it is no text"),
    "nothing": (lambda seal: None, "it is no text"),
    "too long": (lambda seal: canonical(seal) + " " * 4096, "it is no text of at most 4096 letters"),
    "no JSON": (lambda seal: "{", "is not valid"),
    "a list": (lambda seal: "[]", "is not valid"),
    "half a letter": (lambda seal: '{"a":"\ud800"}', "is not valid"),
    "nested": (lambda seal: "[" * 4000, "is not valid"),
    "of the future": (lambda seal: canonical(seal | {"version": 2, "more": 1}), "has version 2, this program reads"),
    "version that is a fraction": (lambda seal: canonical(seal | {"version": 1.0}), "has version 1.0"),
    "no version": (lambda seal: canonical({k: v for k, v in seal.items() if k != "version"}), "has version null"),
    "unknown field": (lambda seal: canonical(seal | {"evil": 1}), "unknown field `evil`"),
    "field missing": (lambda seal: canonical({k: v for k, v in seal.items() if k != "nonce"}), "field `nonce`"),
    "with spaces": (lambda seal: json.dumps(seal, sort_keys=True), "not written as canonical JSON"),
    "in another order": (lambda seal: json.dumps(seal, separators=(",", ":")), "not written as canonical JSON"),
    "a field twice": (lambda seal: '{"sender":"vera",' + canonical(seal)[1:], "not written as canonical JSON"),
    "letters not escaped": (
        lambda seal: json.dumps(seal | {"session": "té"}, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        "not written as canonical JSON",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MALFORMED))
def test_what_is_no_seal_is_refused_by_every_reader(sealed: Path, name: str) -> None:
    make, problem = MALFORMED[name]
    fields = dict(reversed(json.loads(seal_text(sealed)).items()))
    put_text(sealed, make(fields))
    for read in (peek, read_cache):
        with pytest.raises(CacheFileError) as caught:
            read(sealed)
        assert "has a seal that is not valid" in caught.value.problem
        assert problem in caught.value.problem
        assert caught.value.problem.isprintable()


BOUNDS: dict[str, list[Any]] = {
    "digest": ["0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "g" * 64, None, 0],
    "tokens": ["", "0" * 63, 0],
    "sender": ["", "x" * 65, "../x", ".x", "a b", "a\n", "ä", "a/b", None],
    "session": ["x" * 257, "a\nb", "\x1b[2J", "\x9b", None],
    "nonce": ["0" * 31, "0" * 33, "F" * 32, "0" * 32 + "\n"],
    "created": [-1, 1 << 38, 1.5, "1", 10**30],
    "seconds_to_live": [0, -1, (1 << 30) + 1, 1.0],
    "key": ["0" * 63, "A" * 64],
    "signature": ["0" * 127, "0" * 129, "A" * 128],
}


@pytest.mark.parametrize("field", sorted(BOUNDS))
def test_every_field_has_its_bounds(sealed: Path, own: Keys, field: str) -> None:
    fields = json.loads(seal_text(sealed))
    for value in BOUNDS[field]:
        changed = fields | {field: value}
        put_text(sealed, canonical(changed if field == "signature" else signed(changed, own["lyra"])))
        with pytest.raises(CacheFileError, match="has a seal that is not valid"):
            peek(sealed)


def test_a_seal_of_the_largest_fields_fits(plain: Path, own: Keys, store: TrustStore, original: KVCache) -> None:
    write_cache(original.labelled(sender=None), plain)
    session = "\U0001f375" * 256
    seal = seal_file(
        plain, own["lyra"], sender="lyra", session=session, seconds_to_live=1 << 30, now=1 << 37, tokens=None
    )
    assert verify_seal(peek(plain), store, now=1 << 37, session=session).seal == seal


def test_token_ids_that_are_no_32_bit_integers_are_told() -> None:
    for ids in ([1 << 31], [-(1 << 31) - 1]):
        with pytest.raises(UsageError, match="no 32-bit integers"):
            tokens_digest(ids)
    assert tokens_digest([1, -1]) == blake3(b"\x01\0\0\0\xff\xff\xff\xff").hexdigest()
