"""What folders have to do besides what every transport has to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unspoken.cache import KVCache
from unspoken.errors import CacheFileError, StorageError, TransportFailed, UsageError
from unspoken.transports import Transport, open_transport

from .samples import read, same


def _put(address: str, text: str) -> None:
    with_ = open_transport(address)
    with_.put("k", read(text))
    with_.close()


def test_another_process_gets_it(tmp_path: Path) -> None:
    address = f"file:{tmp_path}"
    putting = multiprocessing.get_context("spawn").Process(target=_put, args=(address, "The old mill is run by Anna."))
    putting.start()
    putting.join()
    assert putting.exitcode == 0
    assert same(open_transport(address).get("k").cache, read("The old mill is run by Anna."))


def test_what_lies_in_memory_ends_with_it(cache: KVCache) -> None:
    transport = open_transport("memory")
    transport.put("k", cache)
    path = transport.path  # type: ignore[attr-defined]
    assert path.is_dir()
    transport.close()
    assert not path.exists()


def test_whoever_is_killed_while_putting_leaves_the_old_one(tmp_path: Path, cache: KVCache) -> None:
    transport = open_transport(f"file:{tmp_path}")
    transport.put("k", cache)
    script = (
        "import os, signal, sys\n"
        "from unspoken.cachefile import writer\n"
        "own = writer._write_at\n"
        "def killed(*args):\n"
        "    own(*args)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "writer._write_at = killed\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from unspoken.engines.fake import FakeEngine\n"
        "from unspoken.session import Agent\n"
        "from unspoken.transports import open_transport\n"
        "open_transport(sys.argv[1]).put('k', Agent('lyra', FakeEngine()).read('Bob has left.').cache)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, f"file:{tmp_path}", ""], check=False)
    assert done.returncode == -signal.SIGKILL
    assert same(transport.get("k").cache, cache)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_told_and_never_a_cache(tmp_path: Path, cache: KVCache, data: st.DataObject) -> None:
    transport = open_transport(f"file:{tmp_path}")
    transport.put("k", cache)
    file = tmp_path / "k.kv.safetensors"
    whole = bytearray(file.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(whole)
    try:
        found = transport.get("k").cache
    except (CacheFileError, TransportFailed):
        return
    # A changed label may pass where nothing is sealed; a changed number may not.
    assert all(
        torch.equal(getattr(one, part), getattr(other, part))
        for one, other in zip(found.layers, cache.layers, strict=True)
        for part in ("keys", "values", "positions")
    )


def test_no_room_is_told_and_leaves_what_was_there(
    tmp_path: Path, cache: KVCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unspoken.cachefile import writer

    transport = open_transport(f"file:{tmp_path}")
    transport.put("k", cache)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write_at", full)
    with pytest.raises(StorageError, match="No space left"):
        transport.put("k", read("Bob has left."))
    monkeypatch.undo()
    assert same(transport.get("k").cache, cache)
    assert [each.name for each in tmp_path.iterdir()] == ["k.kv.safetensors"]


def test_somebody_elses_folder_in_shared_memory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspoken.transports.folder.SHARED_MEMORY", tmp_path)
    mine = tmp_path / f"unspoken-{os.getuid()}"
    mine.mkdir(mode=0o755)
    mine.chmod(0o755)
    with pytest.raises(TransportFailed, match="is not yours alone"):
        open_transport("shm")
    mine.chmod(0o700)
    assert isinstance(open_transport("shm"), Transport)
    mine.rename(tmp_path / "away")
    mine.symlink_to(tmp_path / "away")
    with pytest.raises(TransportFailed, match="is not yours alone"):
        open_transport("shm")
    monkeypatch.setattr("unspoken.transports.folder.SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(TransportFailed, match="no shared memory"):
        open_transport("shm")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("telepathy", "no transport named 'telepathy'"),
        ("file:", "no folder in the address"),
        ("memory:here", "names a place"),
        ("shm:../x", "is no key"),
        ("", "no transport named ''"),
    ],
)
def test_an_address_that_leads_nowhere_is_told(address: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_transport(address)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TransportFailed, match="cannot be used"):
        open_transport(f"file:{tmp_path / 'file' / 'folder'}")


def test_own_memory_is_not_read_through_again_unless_a_seal_is_asked_for(
    cache: KVCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_transport("memory") as transport:
        transport.put("k", cache)
        monkeypatch.setattr("unspoken.cachefile.reader.digest_and_check", lambda *_: pytest.fail("it was"))
        assert same(transport.get("k").cache, cache)
        monkeypatch.undo()
        file = transport.path / "k.kv.safetensors"  # type: ignore[attr-defined]
        whole = bytearray(file.read_bytes())
        whole[-1] ^= 1
        file.write_bytes(whole)
        with pytest.raises(CacheFileError, match="does not match its digest"):
            transport.get("k", lambda header: header)
