"""Seal a cache file, and verify the seal of one, by its header alone.

A seal is an Ed25519 signature (RFC 8032) of the manifest's digest together with sender, session, nonce and time. It
tells who vouches for the bytes; not that they were computed from the text they claim.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from unspoken.cachefile.caps import CAPS, header_problem
from unspoken.cachefile.header import FileManifest, Header, encode_header, layout, peek, printable, refused
from unspoken.cachefile.sealed import SEAL_VERSION, Seal, decode_seal, encode_seal, tokens_digest
from unspoken.errors import SealRefused, UsageError
from unspoken.trust.files import readable, replacing
from unspoken.trust.keys import SigningKey
from unspoken.trust.nonces import SKEW_SECONDS

COPY_BYTES = 1 << 20
AGAIN = "Ask the sender to seal it again and to send it anew."


@dataclass(frozen=True)
class Trusted:
    """What a receiver knows once a seal has been verified.

    Attributes:
        sender: Who vouches for the file, by the name the receiver knows.
        seal: The seal.
    """

    sender: str
    seal: Seal


@runtime_checkable
class Senders(Protocol):
    """Knows whose key is whose: a `TrustStore`, say."""

    def find(self, key: str) -> str | None:
        """Return whose a public key is, given in hex; None for a stranger's."""
        ...


def seal_file(
    path: str | Path,
    key: SigningKey,
    *,
    sender: str,
    session: str = "",
    seconds_to_live: int,
    out: str | Path | None = None,
    tokens: str | None = None,
    now: int | None = None,
) -> Seal:
    """Put a seal into a cache file's header, in place of the one it had, and return it; tensors keep their bytes.

    The file is rewritten as a whole: a crash leaves the old one. Every tensor is compared with its digest while it is
    copied, so what is sealed is what is written.

    Args:
        path: The file.
        key: What it is sealed with.
        sender: Name of the one who vouches; the manifest's sender, if that names one.
        session: What the file is sealed for; a receiver can insist on it.
        seconds_to_live: For how long receivers shall accept it.
        out: Where the sealed file goes; by default it replaces the unsealed one.
        tokens: Digest of the token ids (`tokens_digest`), if they were taken out of the file before.
        now: Seconds of UTC since 1970; by default the clock's.

    Raises:
        UsageError: If the manifest names another sender or other tokens, or a field is out of its bounds.
        CacheFileError: If the file is no sound cache file.
        StorageError: If it cannot be read or written.
    """
    path = Path(path)
    header = peek(path)
    seal = _signed(key, _fields(header.manifest, sender, session, seconds_to_live, tokens, now))
    start = encode_header(header.manifest, layout(header.parts), seal)
    problem = header_problem(start[8:], CAPS)
    if problem is not None:
        raise UsageError(
            f"With a seal the file {problem}; no reader would accept it.",
            "Capture it without token ids, or fewer columns.",
        )
    with readable(path, "cache file") as source:
        mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode)
        with replacing(path if out is None else Path(out), "sealed file", mode) as sink:
            sink.write(start)
            _copy(path, header, source, sink)
    return seal


def signer(
    key: SigningKey, *, sender: str, session: str = "", seconds_to_live: int, now: int | None = None
) -> Callable[[FileManifest], Seal]:
    """Return what seals a file while `write_cache` writes it; arguments and errors are those of `seal_file`."""
    moment = int(time.time()) if now is None else now

    def sign(manifest: FileManifest) -> Seal:
        return _signed(key, _fields(manifest, sender, session, seconds_to_live, None, moment))

    return sign


def verify_seal(
    header: Header, store: Senders, *, now: int, session: str | None = None, expected_sender: str | None = None
) -> Trusted:
    """Return who vouches for a file, by its header alone; no tensor is touched.

    Args:
        header: The file's header, from `unspoken.cachefile.peek`.
        store: The senders the receiver knows.
        now: Seconds of UTC since 1970.
        session: What the file has to be sealed for; None accepts any session.
        expected_sender: Who has to have sealed it; None accepts any known sender.

    Raises:
        SealRefused: If the file is not sealed, or by a stranger, in another's name, for another file or session,
            too long ago or in the future, or if the signature is wrong.
        StorageError: If the store cannot be read.
    """
    seal = header.seal
    if seal is None:
        raise SealRefused(
            "The cache file is not sealed: nobody vouches for it.", "Ask its sender to run `unspoken seal` on it."
        )
    sender = store.find(seal.key)
    if sender is None:
        raise SealRefused(
            f"The cache file is sealed with the key {seal.fingerprint}, which nobody known has; it calls itself "
            f"'{seal.sender}'.",
            "If you know whose key it is, get its file from them and run `unspoken keys trust FILE.pub`.",
        )
    _require_signature(seal)
    found = next(_problems(seal, header.manifest, sender, now, session, expected_sender), None)
    if found is not None:
        raise SealRefused(f"The seal of the cache file is refused: {printable(found)}.", AGAIN)
    if not header.exact:  # Another form of the same words, or more of them: bytes that nobody vouches for.
        raise SealRefused("The header of the cache file is not written as it was sealed: it was changed.", AGAIN)
    return Trusted(sender, seal)


def _fields(
    manifest: FileManifest, sender: str, session: str, seconds_to_live: int, tokens: str | None, now: int | None
) -> dict[str, Any]:
    named, ids = manifest.cache.sender, manifest.cache.token_ids
    if named is not None and named != sender:
        raise UsageError(
            f"The file says that '{named}' made it, and the seal shall say '{sender}'.",
            "Seal it as the one who made it.",
        )
    if ids is not None and tokens not in (None, tokens_digest(ids)):
        raise UsageError("The file holds other token ids than the seal shall vouch for.", "Leave the digest out.")
    return {
        "version": SEAL_VERSION,
        "digest": manifest.digest,
        "tokens": tokens if ids is None else tokens_digest(ids),
        "sender": sender,
        "session": session,
        "nonce": secrets.token_hex(16),
        "created": int(time.time()) if now is None else now,
        "seconds_to_live": seconds_to_live,
    }


def _signed(key: SigningKey, fields: dict[str, Any]) -> Seal:
    """Sign a seal's fields, or refuse those that no reader takes."""
    blank = Seal(**fields, key=key.public.key, signature="0" * 128)
    try:
        decode_seal(encode_seal(blank))
    except ValueError as error:
        raise UsageError(f"There can be no such seal: {error}.", "See docs/trust.md for what a seal holds.") from error
    return msgspec.structs.replace(blank, signature=key.sign(blank.message()))


def _copy(path: Path, header: Header, source: BinaryIO, sink: BinaryIO) -> None:
    """Copy all tensors, in the order they lie in the file, and compare each with its digest."""
    source.seek(header.header_bytes)
    for name, entry in sorted(header.tensors.items(), key=lambda each: each[1].start):
        hasher, left = blake3(), entry.stop - entry.start
        while left and (data := source.read(min(left, COPY_BYTES))):
            hasher.update(data)
            sink.write(data)
            left -= len(data)
        if hasher.hexdigest() != header.manifest.digests[name]:
            raise refused(path, f"is damaged: '{name}' does not match its digest")


def _require_signature(seal: Seal) -> None:
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(seal.key))
        public.verify(bytes.fromhex(seal.signature), seal.message())
    except (InvalidSignature, ValueError) as error:
        raise SealRefused(
            f"The seal of the cache file was changed or forged: its signature is not that of the key "
            f"{seal.fingerprint}.",
            AGAIN,
        ) from error


def _problems(
    seal: Seal, manifest: FileManifest, sender: str, now: int, session: str | None, expected_sender: str | None
) -> Iterator[str]:
    """Say what is wrong with a seal whose signature is right, the worst first."""
    named, ids = manifest.cache.sender, manifest.cache.token_ids
    if seal.digest != manifest.digest:
        yield "it is that of another file"
    if seal.sender != sender:
        yield f"it says '{seal.sender}', but the key is known as that of '{sender}'"
    if named is not None and named != seal.sender:
        yield f"it says '{seal.sender}', but the file says that '{named}' made it"
    if ids is not None and seal.tokens != tokens_digest(ids):
        yield "it vouches for other token ids than the file holds"
    if expected_sender is not None and expected_sender != sender:
        yield f"it is that of '{sender}', wanted is that of '{expected_sender}'"
    if session is not None and session != seal.session:
        yield f"it is for the session '{seal.session}', wanted is '{session}'"
    if seal.created > now + SKEW_SECONDS:
        yield f"it was made {seal.created - now} seconds in the future; one of the clocks is wrong"
    if now >= seal.until:
        yield f"it expired {now - seal.until} seconds ago"
