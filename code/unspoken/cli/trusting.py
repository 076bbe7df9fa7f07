"""What commands that trust somebody share: the folders, the judgement of a sealed file, how a seal is told."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from unspoken.cachefile.header import Header
from unspoken.cachefile.sealed import SECONDS_TO_LIVE, Seal
from unspoken.errors import UsageError
from unspoken.modelstore import home

if TYPE_CHECKING:
    from unspoken.trust.nonces import Ledger
    from unspoken.trust.store import TrustStore

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def keys_folder() -> Path:
    """Return the folder with this user's own keys."""
    return home() / "keys"


def trust_store() -> TrustStore:
    """Return the senders this user knows."""
    from unspoken.trust.store import TrustStore

    return TrustStore(home() / "trust")


def ledger() -> Ledger:
    """Return the nonces this user has seen."""
    from unspoken.trust.nonces import Ledger

    return Ledger(home() / "trust")


def judged(file: str, session: str | None = None, sender: str | None = None, seen: Ledger | None = None) -> Header:
    """Return a file's header if its seal says that a known sender vouches for it.

    Raises:
        SealRefused: If it does not.
    """
    from unspoken.trust.receiving import admit

    return admit(file, trust_store(), seen, session=session, expected_sender=sender).header


def lifetime(text: str) -> int:
    """Return the seconds of a time to live, written as 45s, 30m, 1h or 7d.

    Raises:
        UsageError: If it is none, or longer than a seal may live.
    """
    found = re.fullmatch(r"([0-9]{1,10})([smhd])", text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= seconds <= SECONDS_TO_LIVE:
        raise UsageError(f"'{text}' is no time to live.", "Give 45s, 30m, 1h or 7d; at most 34 years.")
    return seconds


def moment(seconds: int) -> str:
    """Return a time as people write it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def told(seal: Seal) -> str:
    """Return what a seal says, on one line."""
    session = f", for the session '{seal.session}'" if seal.session else ""
    return f"'{seal.sender}', key {seal.fingerprint}, {moment(seal.created)} until {moment(seal.until)}{session}"


def seal_facts(seal: Seal) -> dict[str, Any]:
    """Return a seal as JSON tells it."""
    facts: dict[str, Any] = msgspec.to_builtins(seal)
    return facts | {"fingerprint": seal.fingerprint}
