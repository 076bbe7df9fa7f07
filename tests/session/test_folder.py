"""A session goes on after its process has ended, however it ended, as if nothing had been."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from unspoken.engines.fake import FakeEngine
from unspoken.errors import IncompatibleCache, StorageError, UsageError
from unspoken.session import Agent, Session
from unspoken.session.config import AgentConfig, SessionConfig
from unspoken.session.folder import COLUMNS, LOG, SessionFolder
from unspoken.session.replay import replay

from .talks import ASKED, NAMES, TOLD, Made, same


def talked(talk: Session) -> Session:
    """Hold a conversation with hand-overs of all kinds, a fork, and a question about a document."""
    talk.say("lyra", TOLD)
    talk.say("cc", ASKED)
    fork = talk.fork("idea")
    fork.say("lyra", "The harbour is quiet.")
    fork.say("vera", "What is quiet?")
    talk.say("vera", "The lighthouse is white.")
    talk.rejoin(fork)
    talk.ask("cc", "Who runs it?", about="The new mill is run by Bob.")
    talk.say("cc", "What is white?")
    return talk


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channel": "kv+int8"},
        {"topology": "relay"},
        {"channel": "text"},
        {"links": {("lyra", "cc"): "text", ("cc", "vera"): "none", ("vera", "cc"): "full-text"}},
    ],
)
def test_what_was_kept_and_what_is_replayed_are_what_was(made: Made, tmp_path: Path, options: dict[str, Any]) -> None:
    with SessionFolder(tmp_path / "s") as folder:
        talk = made(**options)
        assert folder.resume(talk) is None
        talked(talk)
    with (
        mock.patch.object(FakeEngine, "generate", side_effect=AssertionError("nobody speaks")),
        SessionFolder(tmp_path / "s") as folder,
    ):
        resumed = made(**options)
        assert folder.resume(resumed) is None
        same(resumed, talk)
        same(replay(made(**options), talk.log), talk)


def test_a_session_goes_on_where_it_was(made: Made, tmp_path: Path) -> None:
    whole = talked(made())
    for name in ("lyra", "cc", "vera"):
        whole.say(name, ASKED)
    with SessionFolder(tmp_path / "s") as folder:
        first = made()
        folder.resume(first)
        talked(first)
    for name in ("lyra", "cc", "vera"):
        with SessionFolder(tmp_path / "s") as folder:
            resumed = made()
            folder.resume(resumed)
            resumed.say(name, ASKED)
    assert [each.passage for each in whole.log if hasattr(each, "passage")] == [
        each.passage for each in resumed.log if hasattr(each, "passage")
    ]
    resumed.log[:] = whole.log
    same(resumed, whole)


def kept(made: Made, path: Path) -> Session:
    """Keep a short conversation in a folder."""
    with SessionFolder(path) as folder:
        talk = made()
        folder.resume(talk)
        talk.say("lyra", TOLD)
        talk.say("cc", ASKED)
    return talk


def damage_a_file(path: Path) -> None:
    """Change one byte of a cache file's columns."""
    (file, *_) = sorted((path / COLUMNS).iterdir())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def remove_a_file(path: Path) -> None:
    """Take a cache file away."""
    sorted((path / COLUMNS).iterdir())[-1].unlink()


def exchange_files(path: Path) -> None:
    """Put one agent's columns in the place of another's."""
    first, second = sorted((path / COLUMNS).iterdir())
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_a_file, remove_a_file, exchange_files])
def test_lost_columns_are_read_again_by_the_log(made: Made, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    talk = kept(made, tmp_path / "s")
    damage(tmp_path / "s")
    for expected in (True, False):  # What was read again is kept again.
        with SessionFolder(tmp_path / "s") as folder:
            resumed = made()
            assert (folder.resume(resumed) is not None) == expected
            same(resumed, talk)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_line_that_was_not_written_to_its_end_has_not_happened(made: Made, tmp_path: Path, share: float) -> None:
    path = tmp_path / "s" / LOG
    talk = kept(made, tmp_path / "s")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][: int(share * len(lines[1]))])
    with SessionFolder(tmp_path / "s") as folder:
        resumed = made()
        folder.resume(resumed)
        assert [each.passage.text for each in resumed.log] == [TOLD, "unknown"]
        resumed.say("cc", ASKED)
        assert [held.passage for held in resumed.mind("cc").held] == [held.passage for held in talk.mind("cc").held]
    assert path.read_bytes().count(b"\n") == 2


def test_a_log_that_is_damaged_before_its_end_is_refused_and_left_alone(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "s" / LOG
    kept(made, tmp_path / "s")
    data = path.read_bytes().replace(b"said", b"sung", 1)
    path.write_bytes(data)
    with SessionFolder(tmp_path / "s") as folder, pytest.raises(StorageError, match=r"Line 1 of .* is damaged"):
        folder.resume(made())
    assert path.read_bytes() == data


def test_what_cannot_be_written_has_not_happened(made: Made, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with SessionFolder(tmp_path / "s") as folder:
        talk = made()
        folder.resume(talk)
        talk.say("lyra", TOLD)
        for what in ("os.fsync", "unspoken.session.folder.write_cache"):
            error = full if what == "os.fsync" else StorageError("No space left.", "Make room.")
            with mock.patch(what, side_effect=error), pytest.raises(StorageError, match="No space left"):
                talk.say("cc", ASKED)
            assert len(talk.log) == 2
        assert talk.say("cc", ASKED).text == "Anna"
    with SessionFolder(tmp_path / "s") as folder:
        resumed = made()
        assert folder.resume(resumed) is None
        same(resumed, talk)


def test_one_process_has_a_session_open_at_a_time(tmp_path: Path) -> None:
    with SessionFolder(tmp_path / "s"), pytest.raises(StorageError, match="open in another process"):
        SessionFolder(tmp_path / "s")
    SessionFolder(tmp_path / "s").close()


def test_only_its_owner_can_read_a_session(made: Made, tmp_path: Path) -> None:
    kept(made, tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "s" / LOG).stat().st_mode & 0o777 == 0o600


CONFIG = SessionConfig(tuple(AgentConfig(name, "", "any", "fake") for name in NAMES), "kv+int8", "relay")


def test_what_a_session_is_made_of_is_kept(fake: FakeEngine, tmp_path: Path) -> None:
    engines = [fake] * 3
    config = CONFIG.on(engines)
    with SessionFolder(tmp_path / "s") as folder:
        assert not folder.exists()
        with pytest.raises(StorageError, match="There is no session in"):
            folder.config()
        folder.begin(config)
        with pytest.raises(UsageError, match="is a session in"):
            folder.begin(config)
        assert folder.config() == config
    talk = config.session(engines)
    assert (talk.agents, talk.channel, talk.topology) == (NAMES, "kv+int8", "relay")
    with pytest.raises(IncompatibleCache, match="'vera' has run on a model"):
        config.on([fake, FakeEngine(seed=1), fake])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "describes no session"),
        ('{"agents": []}', None),
        ('{"agents": [], "channle": "kv"}', "unknown field"),
        ('{"agents": [], "version": 2}', "is of version 2, expected 1"),
    ],
)
def test_a_description_that_is_none_is_refused(tmp_path: Path, text: str, message: str | None) -> None:
    with SessionFolder(tmp_path / "s") as folder:
        (tmp_path / "s" / "session.json").write_text(text)
        if message is None:
            assert folder.config() == SessionConfig(())
            return
        with pytest.raises(StorageError, match=message):
            folder.config()


def test_a_log_that_begins_in_the_middle_is_refused(made: Made) -> None:
    talk = talked(made())
    with pytest.raises(UsageError, match="begins in the middle of an exchange"):
        replay(made(), talk.log[1:])


def test_agents_of_another_name_are_refused(fake: FakeEngine, made: Made, tmp_path: Path) -> None:
    kept(made, tmp_path / "s")
    with SessionFolder(tmp_path / "s") as folder, pytest.raises(UsageError, match="no agent 'cc'"):
        folder.resume(Session(Agent("ann", fake), Agent("bob", fake)))
