"""The seal in a cache file's header: a signed statement of who vouches for the file, in which session, until when.

Its form alone, which needs no cryptography; `unspoken.trust.seals` makes and verifies them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Annotated

import msgspec
from blake3 import blake3
from msgspec import Meta

from unspoken.errors import UsageError

SEAL_KEY = "unspoken.seal"
SEAL_VERSION = 1
# Separates these signatures from any other that the same key may make: no other message begins like this.
DOMAIN = b"unspoken seal v1\n"
# The longest seal there can be has 256 letters of session, escaped to twelve each, and 900 for all the rest.
SEAL_LETTERS = 4096
# Names are shown to people who decide by them, and are names of files: no letters of other scripts that look the same.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
SESSION_LETTERS = 256
SECONDS_TO_LIVE = 1 << 30
CREATED = 1 << 37

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(pattern=NAME)]
Session = Annotated[str, Meta(max_length=SESSION_LETTERS, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]


class Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who vouches for a cache file, as the file says; true only once `unspoken.trust.seals.verify_seal` has said so.

    Attributes:
        version: Of the seal's form.
        digest: The manifest's digest, which stands for specification, tensors, spans, token ids, sender and lineage.
        tokens: BLAKE3 digest of the token ids as 32-bit little-endian integers, in hex, so that a text that is
            disclosed later can be compared; None if the sealer did not say.
        sender: Name of the one who vouches.
        session: What the file was sealed for; empty if for nothing in particular.
        nonce: 16 random bytes in hex, so that a receiver can tell a file that comes a second time.
        created: When it was sealed, in seconds of UTC since 1970.
        seconds_to_live: For how long it may be accepted.
        key: The sender's Ed25519 public key, in hex.
        signature: The Ed25519 signature of `message`, in hex.
    """

    version: int
    digest: Digest
    tokens: Digest | None
    sender: Name
    session: Session
    nonce: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    created: Annotated[int, Meta(ge=0, le=CREATED)]
    seconds_to_live: Annotated[int, Meta(ge=1, le=SECONDS_TO_LIVE)]
    key: Digest
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]

    @property
    def until(self) -> int:
        """The second from which on it is no longer accepted."""
        return self.created + self.seconds_to_live

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the key, for people to compare."""
        return fingerprint(self.key)

    def message(self) -> bytes:
        """Return what is signed: every field but the signature."""
        fields = msgspec.to_builtins(self)
        del fields["signature"]
        return DOMAIN + _canonical(fields).encode()


def encode_seal(seal: Seal) -> str:
    """Return a seal as it stands in a header: canonical JSON, sorted keys, no spaces, ASCII."""
    return _canonical(msgspec.to_builtins(seal))


def decode_seal(text: object) -> Seal:
    """Return the seal that a header holds.

    Raises:
        ValueError: If it is none: too long, of another version, with fields missing, too many or out of bounds, or
            written in another way than `encode_seal` writes it, of which one reader could take one meaning and
            another reader another one.
    """
    if not isinstance(text, str) or len(text) > SEAL_LETTERS:
        raise ValueError(f"it is no text of at most {SEAL_LETTERS} letters")
    try:
        version = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("version", msgspec.Raw(b"null"))
        if version != msgspec.Raw(str(SEAL_VERSION).encode()):
            raise ValueError(
                f"it has version {bytes(version).decode()[:20]}, this program reads version {SEAL_VERSION}"
            )
        seal = msgspec.json.decode(text, type=Seal)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if encode_seal(seal) != text:
        raise ValueError("it is not written as canonical JSON")
    return seal


def fingerprint(key: str) -> str:
    """Return the first sixteen hex digits of the BLAKE3 digest of a public key, which is given in hex."""
    return blake3(bytes.fromhex(key)).hexdigest()[:16]


def tokens_digest(token_ids: Sequence[int]) -> str:
    """Return the BLAKE3 digest of token ids as 32-bit little-endian integers, in hex.

    Raises:
        UsageError: If one of them is no 32-bit integer.
    """
    try:
        return blake3(struct.pack(f"<{len(token_ids)}i", *token_ids)).hexdigest()
    except struct.error as error:
        raise UsageError("The token ids are no 32-bit integers.", "Capture the text again with its model.") from error


def _canonical(fields: object) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
