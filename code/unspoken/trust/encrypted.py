"""Encrypt a file as a whole, for keeping or sending it; decrypt it again, or write nothing.

The file is cut into chunks, each encrypted and authenticated with ChaCha20-Poly1305 (RFC 8439) under a nonce that
holds the chunk's number and whether it is the last: the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizar,
"Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015, figure 8). Chunks that are
missing, swapped, repeated or from another file do not decrypt. Every file has a key of its own, made with HKDF-SHA256
(RFC 5869) from its salt and a 32-byte key or what scrypt (RFC 7914) makes of a passphrase.
"""

from __future__ import annotations

import os
import secrets
import struct
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from unspoken.errors import DecryptionFailed, StorageError, UsageError
from unspoken.trust.files import OTHERS, read_small, readable, replacing

SUFFIX = ".encrypted"
MAGIC = b"\x93unspoken-crypt\n"
VERSION = 1
KEY_BYTES = 32
SALT_BYTES = 16
CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
FILE_BYTES = 1 << 40
# A header's cost of scrypt is the choice of whoever made the file: at most 256 MiB (128 * n * r) and four passes.
LOG_N, R, P = 15, 8, 1
LEAST_LOG_N, MOST_LOG_N, MOST_P = 10, 18, 4
# Magic, version, kind of secret, scrypt's log2(n), r and p, three zeros, salt.
_HEADER = struct.Struct(f"<{len(MAGIC)}sBBBBB3s{SALT_BYTES}s")
_PURPOSE = b"unspoken encrypted file v1"


@dataclass(frozen=True)
class Container:
    """What the header of an encrypted file says.

    Attributes:
        kind: Of the secret: 1 is a passphrase, 2 a key.
        log_n, r, p: The cost of scrypt; zeros for a key.
        salt: Random bytes, other ones for every file.
    """

    kind: int
    log_n: int
    r: int
    p: int
    salt: bytes

    def encoded(self) -> bytes:
        """Return the header's bytes."""
        return _HEADER.pack(MAGIC, VERSION, self.kind, self.log_n, self.r, self.p, bytes(3), self.salt)


@runtime_checkable
class Secret(Protocol):
    """What opens an encrypted file."""

    kind: int
    what: str

    def container(self, salt: bytes) -> Container:
        """Return the header of a new file."""

    def root(self, container: Container) -> bytes:
        """Return the 32 bytes that the file's own key is made from."""


@dataclass(frozen=True)
class Passphrase:
    """A secret that people remember.

    Attributes:
        text: The passphrase; the same letters are the same, however a keyboard composes them.
    """

    text: str = field(repr=False)
    kind = 1
    what = "passphrase"

    def container(self, salt: bytes) -> Container:
        """Return the header of a new file."""
        if not self.text:
            raise UsageError("The passphrase is empty.", "Give one.")
        return Container(self.kind, LOG_N, R, P, salt)

    def root(self, container: Container) -> bytes:
        """Return what scrypt makes of it."""
        try:
            text = unicodedata.normalize("NFC", self.text).encode()
        except UnicodeEncodeError as error:
            raise UsageError("The passphrase is not UTF-8 text.", "Type it in a terminal set to UTF-8.") from error
        return Scrypt(container.salt, KEY_BYTES, n=1 << container.log_n, r=container.r, p=container.p).derive(text)


@dataclass(frozen=True)
class KeyFile:
    """A secret that machines keep.

    Attributes:
        key: 32 random bytes.
    """

    key: bytes = field(repr=False)
    kind = 2
    what = "key file"

    @staticmethod
    def read(path: str | Path) -> KeyFile:
        """Return the key in a file of 32 bytes that is its owner's alone.

        Raises:
            StorageError: If it cannot be read, is of another size, or others could read it.
        """
        key = read_small(Path(path), "key file", KEY_BYTES, OTHERS)
        if len(key) != KEY_BYTES:
            raise StorageError(
                f"The key file {path} has {len(key)} bytes, not {KEY_BYTES}.",
                f"Make one with `(umask 077; head -c {KEY_BYTES} /dev/urandom > FILE)`.",
            )
        return KeyFile(key)

    def container(self, salt: bytes) -> Container:
        """Return the header of a new file."""
        return Container(self.kind, 0, 0, 0, salt)

    def root(self, container: Container) -> bytes:
        """Return the key."""
        return self.key


def encrypt_file(path: str | Path, out: str | Path, secret: Secret) -> int:
    """Encrypt a file into another one, which only its owner can read; return that one's bytes.

    The first file stays. A few chunks at a time are in memory.

    Raises:
        UsageError: If the passphrase is empty or no text, or the file larger than 1 TiB.
        StorageError: If a file cannot be read or written.
    """
    path, out = Path(path), Path(out)
    container = secret.container(secrets.token_bytes(SALT_BYTES))
    head, cipher = container.encoded(), _cipher(container, secret)
    with readable(path, "file") as source:
        if os.fstat(source.fileno()).st_size > FILE_BYTES:
            raise UsageError(f"The file {path} is larger than {FILE_BYTES} bytes.", "Encrypt parts of it.")
        with replacing(out, "encrypted file") as sink:
            written = sink.write(head)
            for nonce, chunk in _chunks(source, CHUNK_BYTES):
                written += sink.write(cipher.encrypt(nonce, chunk, head))
    return written


def decrypt_file(path: str | Path, out: str | Path, secret: Secret) -> int:
    """Decrypt a file into another one, which only its owner can read; return that one's bytes.

    The other file gets its name once the last byte has been authenticated; after any error there is none.

    Raises:
        DecryptionFailed: If it is no encrypted file, was changed or cut, or needs another secret.
        UsageError: If the passphrase is no text.
        StorageError: If a file cannot be read or written.
    """
    path, out = Path(path), Path(out)
    written = 0
    with readable(path, "encrypted file") as source:
        container = _container(path, source.read(_HEADER.size), os.fstat(source.fileno()).st_size)
        if container.kind != secret.kind:
            needed = next(each.what for each in (Passphrase, KeyFile) if each.kind == container.kind)
            raise DecryptionFailed(
                f"{path.name} was encrypted with a {needed}, not a {secret.what}.", f"Give the {needed}."
            )
        head, cipher = container.encoded(), _cipher(container, secret)
        with replacing(out, "decrypted file") as sink:
            for nonce, chunk in _chunks(source, CHUNK_BYTES + TAG_BYTES):
                try:
                    written += sink.write(cipher.decrypt(nonce, chunk, head))
                except InvalidTag as error:
                    raise DecryptionFailed(
                        f"{path.name} does not open: the {secret.what} is wrong, or the file was changed or cut.",
                        "Try again; if it stays so, ask for the file again.",
                    ) from error
    return written


def _chunks(source: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Return the rest of a file in chunks, each with its nonce: eleven bytes of its number, one that marks the last."""
    chunk, number, last = source.read(size), 0, False
    while not last:
        following = source.read(size)
        last = not following
        yield number.to_bytes(11, "big") + bytes((last,)), chunk
        chunk, number = following, number + 1


def _cipher(container: Container, secret: Secret) -> ChaCha20Poly1305:
    """Return the cipher with the file's own key, which no other file has: nonces may begin at zero in each."""
    derived = HKDF(SHA256(), KEY_BYTES, salt=container.salt, info=_PURPOSE).derive(secret.root(container))
    return ChaCha20Poly1305(derived)


def _container(path: Path, raw: bytes, file_bytes: int) -> Container:
    """Return what a header says, before anything is derived from it."""
    hint = "Give a file that `unspoken encrypt` made, in a version that this program knows."
    if len(raw) < _HEADER.size or not raw.startswith(MAGIC):
        raise DecryptionFailed(f"{path.name} is no encrypted file of this program.", hint)
    _, version, kind, log_n, r, p, zeros, salt = _HEADER.unpack(raw)
    if version != VERSION:
        raise DecryptionFailed(f"{path.name} has version {version}, this program reads version {VERSION}.", hint)
    if file_bytes > FILE_BYTES + (FILE_BYTES // CHUNK_BYTES + 2) * TAG_BYTES:
        raise DecryptionFailed(f"{path.name} has {file_bytes} bytes, more than there can be.", hint)
    passphrase = kind == Passphrase.kind and LEAST_LOG_N <= log_n <= MOST_LOG_N and r == R and 1 <= p <= MOST_P
    if any(zeros) or not (passphrase or (kind, log_n, r, p) == (KeyFile.kind, 0, 0, 0)):
        raise DecryptionFailed(
            f"{path.name} asks for secret {kind} with scrypt at n = 2^{log_n}, r = {r}, p = {p}; at most "
            f"2^{MOST_LOG_N}, {R} and {MOST_P} are computed.",
            hint,
        )
    return Container(kind, log_n, r, p, salt)
