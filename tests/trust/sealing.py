"""What a forger of seals needs: the seal of a file taken out, changed, signed again or not, and put back."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unspoken.cachefile import Header, peek
from unspoken.cachefile.sealed import SEAL_KEY
from unspoken.trust.keys import SigningKey

NOW = 1_800_000_000


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return a file's header as it parses, and its data."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def put_header(path: Path, fields: dict[str, Any], data: bytes) -> None:
    """Write a file with another header."""
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def canonical(fields: dict[str, Any]) -> str:
    """Return the one form a seal is written in."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def seal_text(path: Path) -> str:
    """Return the string that a sealed file's header holds."""
    found: str = header_of(path)[0]["__metadata__"][SEAL_KEY]
    return found


def put_text(path: Path, text: Any) -> None:
    """Put any string, or anything else, where the seal stands."""
    fields, data = header_of(path)
    fields["__metadata__"][SEAL_KEY] = text
    put_header(path, fields, data)


def signed(fields: dict[str, Any], key: SigningKey) -> dict[str, Any]:
    """Sign a seal's fields as its specification says, without the code under test."""
    unsigned = {name: value for name, value in fields.items() if name != "signature"}
    message = b"unspoken seal v1\n" + canonical(unsigned).encode()
    return unsigned | {"signature": key.private.sign(message).hex()}


def forged(path: Path, change: Callable[[dict[str, Any]], object], key: SigningKey | None = None) -> Header:
    """Change a file's seal, sign it again if there is a key, put it back and return the header that is read then."""
    fields = json.loads(seal_text(path))
    change(fields)
    put_text(path, canonical(fields if key is None else signed(fields, key)))
    return peek(path)
