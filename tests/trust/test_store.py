"""Known senders: nobody becomes one, changes the key of one, or lends a name, unless the owner says so."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unspoken.errors import StorageError, UsageError
from unspoken.trust.store import Known, TrustStore

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "trust")


def test_a_sender_is_known_until_it_is_removed(store: TrustStore) -> None:
    assert (store.names(), store.find(ONE)) == ([], None)
    store.add("vera", TWO, now=6)
    assert store.add("lyra", ONE, "met at tea", now=5) == Known(ONE, 5, "met at tea")
    assert store.names() == ["lyra", "vera"]
    assert TrustStore(store.folder).known() == {"lyra": Known(ONE, 5, "met at tea"), "vera": Known(TWO, 6)}
    assert (store.find(ONE), store.find(TWO), store.find("3" * 64)) == ("lyra", "vera", None)
    assert store.remove("lyra").key == ONE
    assert (store.names(), store.find(ONE)) == (["vera"], None)
    store.add("lyra", "3" * 64)
    assert store.find("3" * 64) == "lyra"


def test_to_add_the_same_again_changes_nothing(store: TrustStore) -> None:
    first = store.add("lyra", ONE, "first", now=5)
    assert store.add("lyra", ONE, "second", now=6) == first
    assert store.known()["lyra"].note == "first"


def test_a_changed_key_or_a_second_name_is_refused(store: TrustStore) -> None:
    store.add("lyra", ONE)
    before = store.path.read_bytes()
    with pytest.raises(UsageError, match="The sender 'lyra' is known with the key") as caught:
        store.add("lyra", TWO)
    assert "unspoken keys distrust" in caught.value.hint
    with pytest.raises(UsageError, match="is known as that of 'lyra', not of 'vera'"):
        store.add("vera", ONE)
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "key", "note"),
    [("", ONE, ""), ("../x", ONE, ""), ("x" * 65, ONE, ""), ("lyra", "1" * 63, ""), ("lyra", "A" * 64, ""),
     ("lyra", ONE, "x" * 501)],
)  # fmt: skip
def test_what_is_no_sender_is_refused(store: TrustStore, name: str, key: str, note: str) -> None:
    with pytest.raises(UsageError):
        store.add(name, key, note)
    assert not store.path.exists()


def test_nobody_can_be_removed_who_is_not_known(store: TrustStore) -> None:
    with pytest.raises(UsageError, match="There is no known sender 'lyra'") as caught:
        store.remove("lyra")
    assert "nobody" in caught.value.hint


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_store_that_others_can_change_is_not_believed(store: TrustStore, mode: int) -> None:
    store.add("lyra", ONE)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    store.path.chmod(mode)
    with pytest.raises(StorageError, match="can be changed by others") as caught:
        store.find(ONE)
    assert "chmod go-w" in caught.value.hint


SENDER = {"key": ONE, "added": 5}
DAMAGED: dict[str, Any] = {
    "no JSON": "{",
    "a list": [],
    "another version": {"version": 2, "senders": {}},
    "unknown field": {"version": 1, "senders": {}, "evil": 1},
    "a name that is none": {"version": 1, "senders": {"../x": SENDER}},
    "a key that is none": {"version": 1, "senders": {"lyra": SENDER | {"key": "1"}}},
    "one key of two": {"version": 1, "senders": {"lyra": SENDER, "vera": SENDER}},
    "nested": "[" * 100_000,
    "half a letter": '{"version":1,"senders":{"\\ud800":1}}',
}


@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_a_damaged_store_is_told_and_stays(store: TrustStore, name: str) -> None:
    store.add("lyra", ONE)
    content = DAMAGED[name] if isinstance(DAMAGED[name], str) else json.dumps(DAMAGED[name])
    store.path.write_text(content)
    for call in (store.names, lambda: store.find(ONE), lambda: store.add("vera", TWO), lambda: store.remove("lyra")):
        with pytest.raises(StorageError, match="is damaged"):
            call()
    assert store.path.read_text() == content


def test_a_store_that_cannot_be_read_knows_nobody(store: TrustStore, tmp_path: Path) -> None:
    store.add("lyra", ONE)
    store.path.unlink()
    store.path.symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match="cannot be read"):
        store.find(ONE)
    store.path.unlink()
    store.path.write_bytes(b" " * ((1 << 22) + 1))
    with pytest.raises(StorageError, match="is larger than"):
        store.find(ONE)


def test_processes_that_add_at_once_all_get_in(store: TrustStore) -> None:
    code = (
        "import sys; from pathlib import Path; from unspoken.trust.store import TrustStore\n"
        "store = TrustStore(Path(sys.argv[1]))\n"
        "for at in range(10): store.add(f'{sys.argv[2]}{at}', sys.argv[2] * 62 + f'{at:02}')\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(store.folder), who]) for who in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert store.names() == sorted(f"{who}{at}" for who in "abc" for at in range(10))
