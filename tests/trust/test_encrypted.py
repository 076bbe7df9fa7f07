"""Encrypted files: what comes out is what went in, or nothing does."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unspoken.errors import DecryptionFailed, StorageError, UsageError
from unspoken.trust import encrypted
from unspoken.trust.encrypted import CHUNK_BYTES, KeyFile, Passphrase, Secret, decrypt_file, encrypt_file

KEY = KeyFile(bytes(range(32)))
HEAD, TAG = 40, 16


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks so small that a test can afford many of them."""
    monkeypatch.setattr(encrypted, "CHUNK_BYTES", 64)
    return 64


def packed(folder: Path, content: bytes, secret: Secret = KEY) -> Path:
    """Encrypt some bytes."""
    (folder / "plain").write_bytes(content)
    written = encrypt_file(folder / "plain", folder / "box", secret)
    assert written == (folder / "box").stat().st_size
    return folder / "box"


def refused(box: Path, secret: Secret, problem: str) -> None:
    """See a file refused with one error, and nothing written."""
    out = box.with_name("out")
    before = sorted(box.parent.iterdir())
    with pytest.raises(DecryptionFailed) as caught:
        decrypt_file(box, out, secret)
    assert problem in caught.value.problem
    assert sorted(box.parent.iterdir()) == before
    assert not out.exists()


def by_hand(raw: bytes, root: bytes) -> bytes:
    """Decrypt a file as its specification says, without the code under test."""
    salt = raw[24:40]
    extracted = hmac.digest(salt, root, "sha256")
    key = hmac.digest(extracted, b"unspoken encrypted file v1\x01", "sha256")  # HKDF, RFC 5869, one block.
    body, size, found = raw[40:], (1 << 20) + 16, []
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    for number, chunk in enumerate(chunks):
        nonce = number.to_bytes(11, "big") + bytes([number == len(chunks) - 1])
        found.append(ChaCha20Poly1305(key).decrypt(nonce, chunk, raw[:40]))
    return b"".join(found)


@pytest.mark.parametrize("size", [0, 1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_a_file_is_what_the_specification_says(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    raw = packed(tmp_path, content).read_bytes()
    assert raw[:24] == b"\x93unspoken-crypt\n" + struct.pack("<BBBBB3s", 1, 2, 0, 0, 0, bytes(3))
    assert by_hand(raw, KEY.key) == content
    assert len(raw) == 40 + size + 16 * max(1, -(-size // CHUNK_BYTES))


def test_a_passphrase_goes_through_scrypt(tmp_path: Path) -> None:
    raw = packed(tmp_path, b"The old mill", Passphrase("tea")).read_bytes()
    assert raw[16:24] == struct.pack("<BBBBB3s", 1, 1, 15, 8, 1, bytes(3))
    root = hashlib.scrypt(b"tea", salt=raw[24:40], n=1 << 15, r=8, p=1, maxmem=1 << 26, dklen=32)
    assert by_hand(raw, root) == b"The old mill"


@given(content=st.binary(max_size=5 * 64 + 3), size=st.integers(-1, 1), chunks=st.integers(0, 4))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_in_comes_out(small: int, tmp_path: Path, content: bytes, size: int, chunks: int) -> None:
    for each in (content, bytes(max(0, small * chunks + size))):  # And around every boundary of chunks.
        box = packed(tmp_path, each)
        assert decrypt_file(box, tmp_path / "out", KEY) == len(each)
        assert (tmp_path / "out").read_bytes() == each
        assert each not in box.read_bytes() or len(each) < 4


def test_two_files_of_the_same_content_have_nothing_in_common(tmp_path: Path) -> None:
    first = packed(tmp_path, bytes(1000)).read_bytes()
    second = packed(tmp_path, bytes(1000)).read_bytes()
    assert first[:24] == second[:24]
    assert first[24:40] != second[24:40]
    assert first[40:] != second[40:]


@pytest.mark.parametrize("size", [0, 5, 64, 130, 192])
def test_every_truncation_is_refused(small: int, tmp_path: Path, size: int) -> None:
    box = packed(tmp_path, os.urandom(size))
    raw = box.read_bytes()
    for length in range(len(raw)):
        box.write_bytes(raw[:length])
        refused(box, KEY, "is no encrypted file" if length < HEAD else "does not open")


def test_every_changed_byte_is_refused(small: int, tmp_path: Path) -> None:
    box = packed(tmp_path, os.urandom(150))
    raw = box.read_bytes()
    for at in range(len(raw)):
        for bits in (1, 0x80):
            changed = bytearray(raw)
            changed[at] ^= bits
            box.write_bytes(changed)
            refused(box, KEY, "")


def chunks_of(raw: bytes, size: int) -> tuple[bytes, list[bytes]]:
    """Return a file's header and its chunks."""
    return raw[:HEAD], [raw[at : at + size + TAG] for at in range(HEAD, len(raw), size + TAG)]


SPLICED: dict[str, Callable[[list[bytes], list[bytes]], list[bytes]]] = {
    "swapped": lambda mine, other: [mine[1], mine[0], *mine[2:]],
    "last one first": lambda mine, other: [mine[-1], *mine[:-1]],
    "one left out": lambda mine, other: [mine[0], *mine[2:]],
    "the first left out": lambda mine, other: mine[1:],
    "the last left out": lambda mine, other: mine[:-1],
    "one twice": lambda mine, other: [mine[0], *mine],
    "the last twice": lambda mine, other: [*mine, mine[-1]],
    "one of another file": lambda mine, other: [mine[0], other[1], *mine[2:]],
    "the last of another file": lambda mine, other: [*mine[:-1], other[-1]],
    "all of another file": lambda mine, other: other,
    "another file behind it": lambda mine, other: mine + other,
    "foreign bytes behind it": lambda mine, other: [*mine, b"\0"],
    "an empty chunk behind it": lambda mine, other: [*mine, bytes(16)],
}


@pytest.mark.parametrize("name", sorted(SPLICED))
def test_chunks_in_other_places_are_refused(small: int, tmp_path: Path, name: str) -> None:
    content = os.urandom(4 * small)
    theirs = packed(tmp_path, content).read_bytes()
    box = packed(tmp_path, content)
    head, mine = chunks_of(box.read_bytes(), small)
    assert len(mine) == 4
    box.write_bytes(head + b"".join(SPLICED[name](mine, chunks_of(theirs, small)[1])))
    refused(box, KEY, "does not open: the key file is wrong, or the file was changed or cut")


def test_another_secret_is_refused(tmp_path: Path) -> None:
    box = packed(tmp_path, b"The old mill", Passphrase("tea"))
    for wrong in ("Tea", "tea ", "", "\u0442ea"):
        refused(box, Passphrase(wrong), "does not open: the passphrase is wrong, or the file was changed or cut")
    refused(box, KEY, "was encrypted with a passphrase, not a key file")
    box = packed(tmp_path, b"The old mill")
    refused(box, KeyFile(bytes(32)), "does not open")
    refused(box, Passphrase("tea"), "was encrypted with a key file, not a passphrase")


def test_a_passphrase_is_its_letters_however_they_are_composed(tmp_path: Path) -> None:
    box = packed(tmp_path, b"The old mill", Passphrase("caf\u00e9"))
    decrypt_file(box, tmp_path / "out", Passphrase("cafe\u0301"))
    assert (tmp_path / "out").read_bytes() == b"The old mill"
    with pytest.raises(UsageError, match="The passphrase is empty"):
        packed(tmp_path, b"x", Passphrase(""))
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        packed(tmp_path, b"x", Passphrase("\ud800"))
    assert "caf" not in repr(Passphrase("café"))
    assert repr(KEY) == "KeyFile()"


@pytest.mark.parametrize(
    ("at", "value"),
    [(18, 9), (18, 19), (18, 63), (18, 255), (19, 0), (19, 9), (19, 255), (20, 0), (20, 5), (20, 255), (17, 0),
     (17, 2), (17, 3), (21, 1), (23, 1)],
)  # fmt: skip
def test_a_hostile_header_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, value: int) -> None:
    box = packed(tmp_path, b"The old mill", Passphrase("tea"))
    raw = bytearray(box.read_bytes())
    raw[at] = value
    box.write_bytes(raw)
    monkeypatch.setattr(encrypted, "Scrypt", lambda *_, **__: pytest.fail("it was computed"))
    refused(box, Passphrase("tea"), "at most 2^18, 8 and 4 are computed")


def test_what_is_no_encrypted_file_of_this_version_is_told(tmp_path: Path) -> None:
    box = packed(tmp_path, b"x")
    raw = box.read_bytes()
    for content in (b"", b"x" * 39, b"x" * 100, b"\0" + raw[1:]):
        box.write_bytes(content)
        refused(box, KEY, "is no encrypted file of this program")
    box.write_bytes(raw[:16] + b"\x02" + raw[17:])
    refused(box, KEY, "has version 2, this program reads version 1")


def test_a_file_over_the_cap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = packed(tmp_path, bytes(100))
    monkeypatch.setattr(encrypted, "FILE_BYTES", 10)
    refused(box, KEY, "more than there can be")
    with pytest.raises(UsageError, match="is larger than 10 bytes"):
        encrypt_file(tmp_path / "plain", tmp_path / "new", KEY)
    assert not (tmp_path / "new").exists()


def test_both_files_are_their_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        box = packed(tmp_path, b"The old mill")
        decrypt_file(box, tmp_path / "out", KEY)
    finally:
        os.umask(old)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("box", "out")] == [0o600, 0o600]


def test_what_was_there_stays_until_all_is_authenticated(
    small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = packed(tmp_path, os.urandom(200))
    raw = bytearray(box.read_bytes())
    raw[-1] ^= 1
    (tmp_path / "bad").write_bytes(raw)
    (tmp_path / "out").write_bytes(b"precious")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DecryptionFailed):
        decrypt_file(tmp_path / "bad", tmp_path / "out", KEY)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left on device"):
        decrypt_file(box, tmp_path / "out", KEY)
    assert (tmp_path / "out").read_bytes() == b"precious"
    assert sorted(tmp_path.iterdir()) == before


def test_a_key_file_has_32_bytes_and_one_reader(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for size in (0, 31, 33, 64):
        path.write_bytes(bytes(size))
        path.chmod(0o600)
        with pytest.raises(StorageError, match=r"(not 32|larger than 32)"):
            KeyFile.read(path)
    path.write_bytes(KEY.key)
    assert KeyFile.read(path) == KEY
    path.chmod(0o640)
    with pytest.raises(StorageError, match="can be used by others"):
        KeyFile.read(path)
