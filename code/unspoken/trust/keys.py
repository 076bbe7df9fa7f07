"""Ed25519 keys on disk: a private one that only its owner can read, and a public one to give away.

A key of the name `lyra` is two files: `lyra.key` (PEM, PKCS 8, mode 600) and `lyra.pub` (one line of text).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from unspoken.cachefile.sealed import NAME, fingerprint
from unspoken.errors import StorageError, UsageError
from unspoken.trust.files import OTHERS, locked, read_small, write_small

KIND = "unspoken-ed25519"
PUBLIC_BYTES = 1024
PRIVATE_BYTES = 1 << 14
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


@dataclass(frozen=True)
class PublicKey:
    """What others know a sender by.

    Attributes:
        name: What its owner calls it.
        key: The key, in hex.
    """

    name: str
    key: str

    @property
    def line(self) -> str:
        """The key as its file holds it."""
        return f"{KIND} {self.key} {self.name}\n"

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits for people to compare."""
        return fingerprint(self.key)


@dataclass(frozen=True)
class SigningKey:
    """A private key, to seal with.

    Attributes:
        name: What its owner calls it.
        private: The key.
    """

    name: str
    private: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """The public key that belongs to it."""
        return PublicKey(self.name, self.private.public_key().public_bytes_raw().hex())

    def sign(self, message: bytes) -> str:
        """Return the signature of a message, in hex."""
        return self.private.sign(message).hex()


def require_name(name: str) -> str:
    """Return a name that a key, a seal and a trusted sender can have.

    Raises:
        UsageError: If it is none.
    """
    if re.match(NAME, name) is None:
        raise UsageError(
            f"'{name}' is no name for a key or a profile: it has 1 to 64 letters of the English alphabet, digits, '.', "
            "'_' or '-', and begins with a letter or digit.",
            "Choose another name.",
        )
    return name


def create_key(name: str, folder: Path, passphrase: str | None = None) -> PublicKey:
    """Make a new key in a folder.

    Args:
        name: What it is called, and its files.
        folder: Where keys are kept; made, for its owner alone, if it is not there.
        passphrase: What the private key is encrypted with; by default it is not.

    Raises:
        UsageError: If it is no name, the passphrase is empty, or there is a key of this name.
        StorageError: If the files cannot be written.
    """
    private_path, public_path = _paths(require_name(name), folder)
    made = SigningKey(name, Ed25519PrivateKey.generate())
    pem = made.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, _encryption(passphrase))
    with locked(folder, "keys"):
        for path in (private_path, public_path):
            if os.path.lexists(path):
                raise UsageError(
                    f"There is a key '{name}' already: {path}.", "Choose another name; a key is never overwritten."
                )
        write_small(public_path, "public key", made.public.line.encode(), 0o644)
        try:
            write_small(private_path, "private key", pem)
        except StorageError:
            public_path.unlink(missing_ok=True)
            raise
    return made.public


def load_key(name: str, folder: Path, passphrase: Callable[[], str] | None = None) -> SigningKey:
    """Return a private key from a folder.

    Args:
        name: What it is called.
        folder: Where keys are kept.
        passphrase: Asked for the passphrase if the key is encrypted, and only then.

    Raises:
        UsageError: If it is no name, or the passphrase is missing or wrong.
        StorageError: If there is no such key, it is damaged, or others could read it.
    """
    path, _ = _paths(require_name(name), folder)
    if not os.path.lexists(path):
        known = ", ".join(key_names(folder)) or "none"
        raise StorageError(
            f"There is no private key '{name}' in {folder} (there are: {known}).",
            f"Make one with `unspoken keys create {name}`.",
        )
    pem = read_small(path, "private key", PRIVATE_BYTES, OTHERS)
    secret: bytes | None = None
    if pem.lstrip().startswith(_ENCRYPTED):
        if passphrase is None:
            raise UsageError(f"The private key '{name}' needs its passphrase.", "Set UNSPOKEN_KEY_PASSPHRASE.")
        secret = passphrase().encode()
    try:
        private = load_pem_private_key(pem, secret)
    except (ValueError, TypeError) as error:
        if secret is not None:
            raise UsageError(f"The passphrase does not open the private key '{name}'.", "Try again.") from error
        raise _damaged(path) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise _damaged(path)
    return SigningKey(name, private)


def read_public(path: str | Path) -> PublicKey:
    """Return the public key of a file that its owner gave away.

    Raises:
        StorageError: If the file cannot be read, or holds no such key.
    """
    path = Path(path)
    text = read_small(path, "public key", PUBLIC_BYTES).decode("ascii", "replace")
    found = re.match(rf"{KIND} ([0-9a-f]{{64}}) (\S+)\s*\Z", text)
    if found is None or re.match(NAME, found[2]) is None:
        raise StorageError(
            f"The file {path} holds no public key.", f"It has one line: {KIND}, 64 hex digits, the owner's name."
        )
    return PublicKey(found[2], found[1])


def key_names(folder: Path) -> list[str]:
    """Return the names of the private keys in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.key") if re.match(NAME, path.stem))


def own_key(name: str, folder: Path) -> PublicKey:
    """Return the public half of a key in a folder.

    Raises:
        UsageError: If it is no name.
        StorageError: If there is no such key, or its file is damaged.
    """
    return read_public(_paths(require_name(name), folder)[1])


def _paths(name: str, folder: Path) -> tuple[Path, Path]:
    return folder / f"{name}.key", folder / f"{name}.pub"


def _encryption(passphrase: str | None) -> KeySerializationEncryption:
    if passphrase is None:
        return NoEncryption()
    if not passphrase:
        raise UsageError("The passphrase is empty.", "Give one, or leave it out altogether.")
    return BestAvailableEncryption(passphrase.encode())


def _damaged(path: Path) -> StorageError:
    return StorageError(f"The file {path} holds no Ed25519 private key.", "Restore it from a copy, or make a new key.")
