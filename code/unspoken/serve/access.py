"""Who may do what: bearer tokens, each of an agent, kept as digests."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from unspoken.errors import StorageError, UsageError
from unspoken.trust.files import OTHERS, read_small, write_small

Right = Literal["chat", "caches", "metrics"]
RIGHTS: tuple[Right, ...] = ("chat", "caches", "metrics")
MOST_BYTES = 1 << 20
EVERYBODY = "anybody"


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token.

    Attributes:
        agent: Whose it is.
        sha256: Digest of the token; the token itself is kept nowhere.
        rights: What it is good for.
    """

    agent: str
    sha256: str
    rights: tuple[Right, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: tuple[Known, ...] = ()


@dataclass(frozen=True)
class Access:
    """The tokens a server knows; without any, everybody may do everything, which is for one's own machine.

    Attributes:
        tokens: By their digests; None for no tokens at all.
    """

    tokens: dict[str, Known] | None

    @staticmethod
    def of(path: Path | None) -> Access:
        """Return the tokens of a file.

        Raises:
            StorageError: If it cannot be read, others can read it, or it is none.
        """
        return Access(None if path is None else {each.sha256: each for each in _read(path).tokens})

    def who(self, authorization: str | None) -> Known | None:
        """Return whose a request is by its header `Authorization`; None for nobody known."""
        if self.tokens is None:
            return Known(EVERYBODY, "", RIGHTS)
        kind, _, token = (authorization or "").partition(" ")
        # Looked up by digest: how long it takes tells nothing of a token that is known.
        return self.tokens.get(_digest(token.strip())) if kind.lower() == "bearer" else None


def add_token(path: Path, agent: str, rights: Sequence[str]) -> str:
    """Make a token for an agent, write its digest down, and return it; it is shown this once.

    Raises:
        UsageError: If the agent has no name, or a right is none.
        StorageError: If the file cannot be read or written.
    """
    allowed = tuple(right for right in RIGHTS if right in rights)
    if not rights or set(rights) != set(allowed) or not agent.strip() or agent == EVERYBODY:
        raise UsageError(
            f"No token can be made for '{agent}' with the rights {', '.join(rights) or 'none'}.",
            f"Give a name and rights among {', '.join(RIGHTS)}.",
        )
    known = _read(path).tokens if path.exists() else ()
    token = f"unspoken-{secrets.token_urlsafe(32)}"
    made = _File((*known, Known(agent, _digest(token), allowed)))
    write_small(path, "file of tokens", msgspec.json.format(msgspec.json.encode(made), indent=1))
    return token


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> _File:
    data = read_small(path, "file of tokens", MOST_BYTES, OTHERS)
    try:
        return msgspec.json.decode(data, type=_File)
    except msgspec.DecodeError as error:
        raise StorageError(f"{path} is no file of tokens: {error}.", "Make one with `unspoken token`.") from error
