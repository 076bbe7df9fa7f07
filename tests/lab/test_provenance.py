"""What a result came from: the commit is this code's own, and what is not committed shows."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from unspoken.lab import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with a module of ours in its code, committed, that believes to be the package's."""
    package = tmp_path / "code" / "unspoken" / "lab"
    package.mkdir(parents=True)
    module = Path(shutil.copy(provenance.__file__, package))
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "--message", "one")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path


def _git(where: Path, *args: str) -> str:
    who = ("-c", "user.name=lyra", "-c", "user.email=lyra@example.org")
    done = subprocess.run(["git", "-C", str(where), *who, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    assert provenance.revision() == {"commit": _git(checkout, "rev-parse", "HEAD"), "dirty_diff": ""}


def test_changes_and_new_files_of_the_code_show_and_others_do_not(checkout: Path) -> None:
    (checkout / "notes.md").write_text("aside")
    assert provenance.revision()["dirty_diff"] == ""
    found = [""]
    for text in ("x = 1", "x = 2"):
        (checkout / "code" / "unspoken" / "new.py").write_text(text)
        found.append(provenance.revision()["dirty_diff"])
    (checkout / "code" / "unspoken" / "lab" / "provenance.py").write_text("changed")
    found.append(provenance.revision()["dirty_diff"])
    assert len(set(found)) == 4


def test_in_somebody_elses_repository_there_is_no_commit(checkout: Path) -> None:
    _git(checkout, "rm", "--cached", "--quiet", "code/unspoken/lab/provenance.py")
    _git(checkout, "commit", "--quiet", "--allow-empty", "--message", "theirs")
    assert provenance.revision() == {"commit": "", "dirty_diff": ""}


def test_the_command_can_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["anything", "run", "plan.yaml", "--results", "my runs"])
    assert shlex.split(provenance.command_line()) == ["unspoken", "run", "plan.yaml", "--results", "my runs"]
