"""A seal says who vouches for a file; whatever is wrong with one is refused by the header alone."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from unspoken.cache import KVCache
from unspoken.cachefile import peek, read_cache, tokens_digest, write_cache
from unspoken.cachefile.header import encode_header
from unspoken.cachefile.sealed import SEAL_KEY
from unspoken.errors import CacheFileError, SealRefused, StorageError, UnspokenError, UsageError
from unspoken.trust.keys import SigningKey
from unspoken.trust.seals import seal_file, signer, verify_seal
from unspoken.trust.store import TrustStore

from .sealing import NOW, forged, header_of, put_header, put_text, seal_text

Keys = dict[str, SigningKey]
Change = Callable[[dict[str, Any]], object]


def same(path: Path, original: KVCache) -> bool:
    """Tell whether a file holds the very numbers of a cache, and its manifest."""
    found = read_cache(path)
    assert found.manifest == original.manifest
    return all(
        torch.equal(getattr(mine, part), getattr(other, part))
        for mine, other in zip(found.layers, original.layers, strict=True)
        for part in ("keys", "values", "positions")
    )


def test_an_honest_seal_is_accepted_and_says_who_when_and_for_what(
    sealed: Path, store: TrustStore, own: Keys, original: KVCache
) -> None:
    header = peek(sealed)
    trusted = verify_seal(header, store, now=NOW + 60, session="tea", expected_sender="lyra")
    seal = trusted.seal
    assert (trusted.sender, seal.sender, seal.session) == ("lyra", "lyra", "tea")
    assert (seal.created, seal.seconds_to_live, seal.until) == (NOW, 3600, NOW + 3600)
    assert seal.digest == header.manifest.digest
    assert seal.key == own["lyra"].public.key
    ids = original.manifest.token_ids
    assert ids is not None
    assert seal.tokens == blake3(torch.tensor(ids, dtype=torch.int32).numpy().tobytes()).hexdigest()
    assert seal.fingerprint == blake3(bytes.fromhex(seal.key)).hexdigest()[:16] == own["lyra"].public.fingerprint


def test_a_sealed_file_has_the_same_tensors_in_the_same_bytes(plain: Path, sealed: Path, original: KVCache) -> None:
    assert same(sealed, original)
    header, unsealed = peek(sealed), peek(plain)
    assert header.header_bytes % 8 == 0
    assert (header.manifest, header.tensors) == (unsealed.manifest, unsealed.tensors)
    assert sealed.read_bytes()[header.header_bytes :] == plain.read_bytes()[unsealed.header_bytes :]
    # Without the seal it is the unsealed file, byte for byte.
    without = encode_header(header.manifest, header.tensors) + sealed.read_bytes()[header.header_bytes :]
    assert without == plain.read_bytes()
    with safe_open(sealed, "pt") as file:
        metadata = file.metadata()
        assert metadata.keys() == {"format", "unspoken.manifest", "unspoken.seal"}
        keys = file.get_tensor("layers.1.keys")
    assert torch.equal(keys, original.layers[1].keys)


def test_a_file_can_be_sealed_while_it_is_written(
    tmp_path: Path, sealed: Path, store: TrustStore, own: Keys, original: KVCache
) -> None:
    path = tmp_path / "at-once.kv.safetensors"
    write_cache(original, path, sign=signer(own["lyra"], sender="lyra", session="tea", seconds_to_live=3600, now=NOW))
    assert verify_seal(peek(path), store, now=NOW, session="tea").sender == "lyra"
    assert same(path, original)
    # But for nonce and signature it is the file that is sealed afterwards.
    assert path.stat().st_size == sealed.stat().st_size
    assert peek(path).manifest == peek(sealed).manifest
    with pytest.raises(UsageError, match="'lyra' made it, and the seal shall say 'vera'"):
        write_cache(original, path, sign=signer(own["vera"], sender="vera", seconds_to_live=60))
    assert verify_seal(peek(path), store, now=NOW).sender == "lyra"


def test_two_seals_of_one_file_differ_in_their_nonces(plain: Path, own: Keys) -> None:
    first, second = (
        seal_file(plain, own["lyra"], sender="lyra", seconds_to_live=60, now=NOW, out=plain.with_name(name))
        for name in "ab"
    )
    assert first.nonce != second.nonce
    assert first.digest == second.digest


def test_sealing_again_replaces_the_seal(sealed: Path, store: TrustStore, own: Keys, original: KVCache) -> None:
    before = peek(sealed)
    seal = seal_file(sealed, own["lyra"], sender="lyra", seconds_to_live=60, now=NOW + 5000)
    assert peek(sealed).seal == seal
    assert peek(sealed).manifest == before.manifest
    assert seal_text(sealed).count("signature") == 1
    assert verify_seal(peek(sealed), store, now=NOW + 5000).seal == seal
    assert same(sealed, original)


def test_token_ids_can_be_vouched_for_without_being_given_away(
    original: KVCache, own: Keys, store: TrustStore, tmp_path: Path
) -> None:
    ids = original.manifest.token_ids
    assert ids is not None
    path = tmp_path / "silent.kv.safetensors"
    write_cache(original.without_tokens(), path)
    assert seal_file(path, own["lyra"], sender="lyra", seconds_to_live=60, now=NOW).tokens is None
    seal_file(path, own["lyra"], sender="lyra", seconds_to_live=60, now=NOW, tokens=tokens_digest(ids))
    trusted = verify_seal(peek(path), store, now=NOW)
    assert peek(path).manifest.cache.token_ids is None
    assert trusted.seal.tokens == tokens_digest(ids) != tokens_digest([*ids[:-1], 0])


# What is done to a seal, signed again by lyra unless it says otherwise, and what the refusal says.
FORGED: dict[str, tuple[Change, str]] = {
    "another file": (lambda seal: seal.update(digest="ab" * 32), "it is that of another file"),
    "another name than the key's": (lambda seal: seal.update(sender="vera"), "the key is known as that of 'lyra'"),
    "other tokens": (lambda seal: seal.update(tokens="ab" * 32), "it vouches for other token ids"),
    "tokens taken back": (lambda seal: seal.update(tokens=None), "it vouches for other token ids"),
    "expired": (lambda seal: seal.update(created=NOW - 3600), "it expired 0 seconds ago"),
    "long expired": (lambda seal: seal.update(created=0), f"it expired {NOW - 3600} seconds ago"),
    "from the future": (lambda seal: seal.update(created=NOW + 301), "it was made 301 seconds in the future"),
    "another session": (lambda seal: seal.update(session="coffee"), "for the session 'coffee', wanted is 'tea'"),
}


@pytest.mark.parametrize("name", sorted(FORGED))
def test_a_seal_with_a_right_signature_is_refused_for_what_it_says(
    sealed: Path, store: TrustStore, own: Keys, name: str
) -> None:
    change, problem = FORGED[name]
    header = forged(sealed, change, own["lyra"])
    with pytest.raises(SealRefused) as caught:
        verify_seal(header, store, now=NOW, session="tea")
    assert problem in caught.value.problem
    assert caught.value.hint


@pytest.mark.parametrize("name", sorted(FORGED))
def test_a_seal_that_was_changed_is_refused_for_its_signature(sealed: Path, store: TrustStore, name: str) -> None:
    header = forged(sealed, FORGED[name][0])
    with pytest.raises(SealRefused, match="its signature is not that of the key"):
        verify_seal(header, store, now=NOW, session="tea")


def test_a_seal_signed_by_another_known_sender_is_refused(sealed: Path, store: TrustStore, own: Keys) -> None:
    header = forged(sealed, lambda seal: seal.update(key=own["vera"].public.key))
    with pytest.raises(SealRefused, match="its signature is not that of the key"):
        verify_seal(header, store, now=NOW)
    # Vera vouches for a file that says it is lyra's: her signature is right, and it is refused for the names.
    for sender, problem in (("vera", "the file says that 'lyra' made it"), ("lyra", "known as that of 'vera'")):
        header = forged(
            sealed, lambda seal, sender=sender: seal.update(key=own["vera"].public.key, sender=sender), own["vera"]
        )
        with pytest.raises(SealRefused, match=problem):
            verify_seal(header, store, now=NOW)


def test_a_stranger_is_refused_whatever_the_name(sealed: Path, store: TrustStore, own: Keys) -> None:
    header = forged(sealed, lambda seal: seal.update(key=own["mallory"].public.key), own["mallory"])
    with pytest.raises(SealRefused, match="which nobody known has; it calls itself 'lyra'"):
        verify_seal(header, store, now=NOW)


def test_a_file_without_a_seal_is_refused(plain: Path, sealed: Path, store: TrustStore) -> None:
    with pytest.raises(SealRefused, match="not sealed"):
        verify_seal(peek(plain), store, now=NOW)
    fields, data = header_of(sealed)
    fields["__metadata__"]["unspoken.Seal"] = fields["__metadata__"].pop(SEAL_KEY)
    put_header(sealed, fields, data)
    with pytest.raises(SealRefused, match="not sealed"):
        verify_seal(peek(sealed), store, now=NOW)


def test_another_sender_than_the_one_expected_is_refused(sealed: Path, store: TrustStore) -> None:
    with pytest.raises(SealRefused, match="it is that of 'lyra', wanted is that of 'vera'"):
        verify_seal(peek(sealed), store, now=NOW, expected_sender="vera")


def test_a_seal_holds_from_its_skew_to_its_last_second(sealed: Path, store: TrustStore) -> None:
    header = peek(sealed)
    for now in (NOW - 300, NOW, NOW + 3599):
        assert verify_seal(header, store, now=now).sender == "lyra"
    for now in (NOW - 301, NOW + 3600, NOW + 10**6):
        with pytest.raises(SealRefused, match=r"in the future|expired"):
            verify_seal(header, store, now=now)


def test_a_seal_moved_to_another_file_of_the_same_sender_is_refused(
    sealed: Path, store: TrustStore, original: KVCache, tmp_path: Path
) -> None:
    other = tmp_path / "other.kv.safetensors"
    write_cache(original.slice(0, 9), other)
    put_text(other, seal_text(sealed))
    with pytest.raises(SealRefused, match="it is that of another file"):
        verify_seal(peek(other), store, now=NOW)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_single_changed_byte_of_the_seal_is_refused(sealed: Path, store: TrustStore, data: st.DataObject) -> None:
    raw = bytearray(sealed.with_name("sealed.kv.safetensors").read_bytes())
    start = raw.index(b'"unspoken.seal"')
    stop = raw.index(b'}"', start) + 2
    at = data.draw(st.integers(start, stop - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    bad = sealed.with_name("bad.kv.safetensors")
    bad.write_bytes(raw)
    with pytest.raises((SealRefused, CacheFileError)):
        verify_seal(peek(bad), store, now=NOW)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_with_damage_is_refused_or_is_the_file_that_was_sealed(
    sealed: Path, store: TrustStore, original: KVCache, data: st.DataObject
) -> None:
    raw = bytearray(sealed.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    bad = sealed.with_name("bad.kv.safetensors")
    bad.write_bytes(raw)
    try:
        header = peek(bad)
        verify_seal(header, store, now=NOW)
        read_cache(bad, header=header)
    except UnspokenError:
        return
    assert same(bad, original)  # The change was in what means nothing: padding, the format's name.


def test_verifying_touches_no_tensor(
    sealed: Path, plain: Path, store: TrustStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "from_file", lambda *_, **__: pytest.fail("the data was touched"))
    assert verify_seal(peek(sealed), store, now=NOW).sender == "lyra"
    with pytest.raises(SealRefused):
        verify_seal(peek(plain), store, now=NOW)


def test_a_file_that_changed_is_not_sealed(plain: Path, own: Keys) -> None:
    raw = bytearray(plain.read_bytes())
    raw[-1] ^= 1
    plain.write_bytes(raw)
    with pytest.raises(CacheFileError, match=r"'layers\.1\.values' does not match its digest"):
        seal_file(plain, own["lyra"], sender="lyra", seconds_to_live=60)
    assert plain.read_bytes() == raw
    assert list(plain.parent.glob("*.part")) == []


@pytest.mark.parametrize("fails", ["write", "replace"])
def test_an_interrupted_rewrite_leaves_the_old_file(
    plain: Path, own: Keys, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    before = plain.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if fails == "replace":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr("unspoken.trust.seals._copy", full)
    with pytest.raises(StorageError, match="No space left on device"):
        seal_file(plain, own["lyra"], sender="lyra", seconds_to_live=60)
    assert plain.read_bytes() == before
    assert list(plain.parent.iterdir()) == [plain]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_sealed_file_is_as_readable_as_it_was(plain: Path, own: Keys, mode: int) -> None:
    plain.chmod(mode)
    seal_file(plain, own["lyra"], sender="lyra", seconds_to_live=60)
    assert stat.S_IMODE(plain.stat().st_mode) == mode


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "in another's name": ({"sender": "vera"}, "The file says that 'lyra' made it, and the seal shall say 'vera'"),
    "for no time": ({"seconds_to_live": 0}, "There can be no such seal"),
    "for ever": ({"seconds_to_live": 1 << 31}, "There can be no such seal"),
    "for an endless session": ({"session": "x" * 257}, "There can be no such seal"),
    "for a session that is no text": ({"session": "\ud800"}, "There can be no such seal"),
    "for other tokens": ({"tokens": "0" * 64}, "other token ids"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_no_receiver_would_accept_is_not_sealed(plain: Path, own: Keys, name: str) -> None:
    given_fields, problem = REFUSED[name]
    before = plain.read_bytes()
    with pytest.raises(UsageError, match=problem):
        seal_file(plain, own["lyra"], **({"sender": "lyra", "seconds_to_live": 60} | given_fields))
    assert plain.read_bytes() == before
