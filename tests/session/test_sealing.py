"""An agent with a key seals what it keeps in mind, and goes on from nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from unspoken.cachefile import peek, read_cache, write_cache
from unspoken.errors import SealRefused, UsageError
from unspoken.session.folder import COLUMNS, SessionFolder
from unspoken.trust.keys import SigningKey, create_key, load_key

from .talks import ASKED, NAMES, TOLD, Made, same


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, SigningKey]:
    """Return a key for Lyra and one for CC; Vera has none."""
    for name in ("lyra", "old-cc"):
        create_key(name, tmp_path / "keys")
    return {"lyra": load_key("lyra", tmp_path / "keys"), "cc": load_key("old-cc", tmp_path / "keys")}


@pytest.fixture
def kept(tmp_path: Path, made: Made, keys: dict[str, SigningKey]) -> Path:
    """Return the folder of a session in which Lyra was told something, and CC and Vera were asked."""
    hold(tmp_path / "s", made, keys)
    return tmp_path / "s"


def hold(path: Path, made: Made, keys: dict[str, SigningKey]) -> None:
    with SessionFolder(path) as folder:
        folder.keys = keys
        talk = made()
        folder.resume(talk)
        talk.say("lyra", TOLD)
        talk.say("cc", ASKED)
        talk.say("vera", ASKED)


def resumed(path: Path, made: Made, keys: dict[str, SigningKey]) -> str | None:
    with SessionFolder(path) as folder:
        folder.keys = keys
        return folder.resume(made())


def files_of(path: Path, agent: str) -> list[Path]:
    return [each for each in sorted((path / COLUMNS).iterdir()) if read_cache(each).manifest.sender == agent]


def test_columns_are_sealed_by_those_who_have_a_key(kept: Path, made: Made, keys: dict[str, SigningKey]) -> None:
    seals = {peek(file).manifest.cache.sender: peek(file).seal for file in (kept / COLUMNS).iterdir()}
    assert set(seals) == set(NAMES)
    assert seals["vera"] is None
    for name, key in keys.items():
        seal = seals[name]
        assert seal is not None
        assert (seal.sender, seal.key) == (name, key.public.key)
    assert resumed(kept, made, keys) is None


def test_a_sealed_session_is_the_one_without_seals(tmp_path: Path, made: Made, kept: Path) -> None:
    hold(tmp_path / "plain", made, {})
    left, right = made(), made()
    for path, talk in ((kept, left), (tmp_path / "plain", right)):
        with SessionFolder(path) as folder:
            folder.resume(talk)
    for talk in (left, right):  # How long things took is not the same in two sessions.
        talk.log.clear()
    same(left, right)


def test_columns_of_others_in_a_mind_are_refused(kept: Path, made: Made, keys: dict[str, SigningKey]) -> None:
    victim = files_of(kept, "lyra")[0]
    write_cache(read_cache(victim), victim)  # The same columns, and nobody vouches for them.
    with pytest.raises(SealRefused, match=r"is not as lyra has kept it\. The cache file is not sealed"):
        resumed(kept, made, keys)
    victim.unlink()
    assert "cannot be read" in str(resumed(kept, made, keys))  # Read again by the log.
    assert resumed(kept, made, keys) is None


def test_a_sealed_file_in_another_place_is_refused(
    tmp_path: Path, kept: Path, made: Made, keys: dict[str, SigningKey]
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(kept, moved)
    with pytest.raises(SealRefused, match="it is for the session 's/00000"):
        resumed(moved, made, keys)


def test_another_key_is_refused(kept: Path, made: Made, keys: dict[str, SigningKey]) -> None:
    with pytest.raises(SealRefused, match="nobody known has"):
        resumed(kept, made, {"lyra": keys["cc"]})


def test_a_name_that_no_seal_can_say_is_refused(tmp_path: Path, made: Made, keys: dict[str, SigningKey]) -> None:
    with pytest.raises(UsageError, match="no name for a key"):
        hold(tmp_path / "t", made, {"lyra": keys["lyra"], "c c": keys["cc"]})
