"""A sealed file is accepted once: by one process of many, for as long as its seal lives, and nothing is kept longer."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unspoken.cachefile.sealed import Seal
from unspoken.errors import SealRefused, StorageError
from unspoken.trust.nonces import SKEW_SECONDS, Ledger

from .sealing import NOW


def seal(nonce: int, key: str = "a", created: int = NOW, seconds: int = 60) -> Seal:
    """A seal of which the ledger reads key, nonce and times."""
    return Seal(1, "0" * 64, None, "lyra", "", f"{nonce:032x}", created, seconds, key * 64, "0" * 128)


def rows(ledger: Ledger) -> list[tuple[str, str, int]]:
    with closing(sqlite3.connect(ledger.path)) as database:
        return sorted(database.execute("SELECT key, nonce, until FROM nonces"))


def test_a_nonce_is_accepted_once(ledger: Ledger) -> None:
    ledger.record(seal(1), NOW)
    for now in (NOW, NOW + 59, NOW - 200):
        with pytest.raises(SealRefused, match="This sealed file of 'lyra' was accepted before: it is replayed"):
            Ledger(ledger.folder).record(seal(1), now)
    ledger.record(seal(2), NOW)
    assert [nonce for _, nonce, _ in rows(ledger)] == [f"{at:032x}" for at in (1, 2)]


def test_a_sender_cannot_use_up_anothers_nonce(ledger: Ledger) -> None:
    ledger.record(seal(1, "b"), NOW)
    ledger.record(seal(1, "a"), NOW)
    with pytest.raises(SealRefused):
        ledger.record(seal(1, "a"), NOW)


def test_a_nonce_is_forgotten_once_its_seal_has_expired_on_every_clock(ledger: Ledger) -> None:
    ledger.record(seal(1), NOW)
    ledger.record(seal(2, created=NOW + 60 + SKEW_SECONDS), NOW + 60 + SKEW_SECONDS - 1)
    assert len(rows(ledger)) == 2
    ledger.record(seal(3, created=NOW + 60 + SKEW_SECONDS), NOW + 60 + SKEW_SECONDS)
    assert [nonce for _, nonce, _ in rows(ledger)] == [f"{at:032x}" for at in (2, 3)]


@given(calls=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 400)), max_size=25))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_live_seal_is_accepted_twice_whatever_comes_when(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, int]]
) -> None:
    ledger, seen, now = Ledger(tmp_path_factory.mktemp("ledger")), set(), NOW
    for nonce, later in calls:
        now += later
        each = seal(nonce, seconds=3000)
        if now >= each.until:  # Verifying refuses it before the ledger is asked.
            break
        if nonce in seen:
            with pytest.raises(SealRefused):
                ledger.record(each, now)
        else:
            ledger.record(each, now)
        seen.add(nonce)


def test_of_many_processes_and_threads_one_gets_a_nonce(ledger: Ledger) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from unspoken.cachefile.sealed import Seal; from unspoken.errors import SealRefused\n"
        "from unspoken.trust.nonces import Ledger\n"
        "ledger, won = Ledger(Path(sys.argv[1])), []\n"
        "for at in range(40):\n"
        f"    seal = Seal(1, '0' * 64, None, 'lyra', '', f'{{at:032x}}', {NOW}, 60, 'a' * 64, '0' * 128)\n"
        "    try: ledger.record(seal, " + str(NOW) + "); won.append(at)\n"
        "    except SealRefused: pass\n"
        "print(*won)\n"
    )
    command = [sys.executable, "-c", code, str(ledger.folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    def here(at: int) -> int | None:
        try:
            ledger.record(seal(at), NOW)
        except SealRefused:
            return None
        return at

    with ThreadPoolExecutor(4) as pool:
        won = [at for at in pool.map(here, [*range(40)] * 2) if at is not None]
    for process in running:
        told, _ = process.communicate()
        assert process.returncode == 0
        won += map(int, told.split())
    assert sorted(won) == list(range(40))


def test_the_ledger_is_its_owners_alone(ledger: Ledger) -> None:
    old = os.umask(0)
    try:
        ledger.record(seal(1), NOW)
    finally:
        os.umask(old)
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ledger.folder.stat().st_mode) == 0o700


def test_a_ledger_that_cannot_be_used_lets_nothing_in(ledger: Ledger, tmp_path: Path) -> None:
    ledger.record(seal(1), NOW)
    ledger.path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match=r"The ledger of nonces .* cannot be used"):
        ledger.record(seal(2), NOW)
    ledger.path.unlink()
    ledger.path.mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        ledger.record(seal(2), NOW)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be made"):
        Ledger(tmp_path / "file" / "below").record(seal(2), NOW)


def test_a_process_that_died_halfway_has_used_nothing(ledger: Ledger) -> None:
    ledger.record(seal(1), NOW)
    code = (
        "import os, sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('BEGIN IMMEDIATE')\n"
        "database.execute('INSERT INTO nonces VALUES (?, ?, ?)', ('a' * 64, f'{2:032x}', 9999999999))\n"
        "os._exit(1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(ledger.path)], check=False).returncode == 1
    ledger.record(seal(2), NOW)
    assert len(rows(ledger)) == 2


def test_threads_of_one_process_take_turns(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens and closes the file takes the process's locks on it away, those of other threads' writing too."""
    inside, most, opened, insert = [0], [0], Ledger._opened, Ledger._insert

    def enter(self: Ledger) -> object:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        return opened(self)

    def leave(self: Ledger, *rest: object) -> None:
        time.sleep(0.01)
        insert(self, *rest)  # type: ignore[arg-type]
        inside[0] -= 1

    monkeypatch.setattr(Ledger, "_opened", enter)
    monkeypatch.setattr(Ledger, "_insert", leave)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda at: ledger.record(seal(at), NOW), range(12)))
    assert most == [1]
