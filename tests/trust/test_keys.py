"""Keys on disk: made once, never overwritten, and of no use to anybody else who can read the folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from unspoken.errors import StorageError, UsageError
from unspoken.trust.keys import PublicKey, create_key, key_names, load_key, own_key, read_public


def test_a_key_that_was_made_signs_and_its_public_half_verifies(tmp_path: Path) -> None:
    made = create_key("lyra", tmp_path / "keys")
    key = load_key("lyra", tmp_path / "keys")
    assert key.public == made == own_key("lyra", tmp_path / "keys") == read_public(tmp_path / "keys" / "lyra.pub")
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(made.key))
    public.verify(bytes.fromhex(key.sign(b"words")), b"words")
    with pytest.raises(InvalidSignature):
        public.verify(bytes.fromhex(key.sign(b"words")), b"other words")
    assert made.fingerprint == blake3(bytes.fromhex(made.key)).hexdigest()[:16]
    assert "private" not in repr(key)


def test_the_files_are_what_the_specification_says(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    old = os.umask(0)  # However much the process lets others do.
    try:
        made = create_key("lyra", folder)
    finally:
        os.umask(old)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "lyra.key", "lyra.pub"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert (modes["keys"], modes["lyra.key"], modes["lyra.pub"]) == (0o700, 0o600, 0o644)
    assert (folder / "lyra.pub").read_text() == f"unspoken-ed25519 {made.key} lyra\n"
    assert (folder / "lyra.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")


def test_a_private_key_is_never_open_to_others_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int, int]] = []
    real = os.open

    def watched(path: str, flags: int, mode: int = 0o777) -> int:
        opened.append((os.fspath(path), flags, mode))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", watched)
    create_key("lyra", tmp_path)
    written = [(flags, mode) for path, flags, mode in opened if "lyra.key" in path]
    assert written
    for flags, mode in written:
        assert flags & os.O_EXCL
        assert mode == 0o600


@pytest.mark.parametrize("there", ["lyra.key", "lyra.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, there: str) -> None:
    for make in (
        lambda: (tmp_path / there).write_text("precious"),
        lambda: (tmp_path / there).symlink_to(tmp_path / "gone"),
    ):
        make()
        with pytest.raises(UsageError, match="There is a key 'lyra' already"):
            create_key("lyra", tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {there, ".lock"}
        (tmp_path / there).unlink()


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o620, 0o601])
def test_a_private_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    create_key("lyra", tmp_path)
    (tmp_path / "lyra.key").chmod(mode)
    with pytest.raises(StorageError, match="can be used by others") as caught:
        load_key("lyra", tmp_path)
    assert caught.value.hint == f"Run `chmod 600 {tmp_path / 'lyra.key'}`."
    (tmp_path / "lyra.key").chmod(0o600)
    assert load_key("lyra", tmp_path).name == "lyra"


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    made = create_key("lyra", tmp_path, "vélvet tea")
    assert (tmp_path / "lyra.key").read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert load_key("lyra", tmp_path, lambda: "vélvet tea").public == made
    for wrong in ("velvet tea", "", "x"):
        with pytest.raises(UsageError, match="The passphrase does not open the private key 'lyra'"):
            load_key("lyra", tmp_path, lambda wrong=wrong: wrong)
    with pytest.raises(UsageError, match="needs its passphrase"):
        load_key("lyra", tmp_path)
    assert own_key("lyra", tmp_path) == made  # The public half needs none.


def test_nobody_is_asked_for_a_passphrase_that_is_not_needed(tmp_path: Path) -> None:
    create_key("lyra", tmp_path)
    assert load_key("lyra", tmp_path, lambda: pytest.fail("asked")).name == "lyra"
    with pytest.raises(UsageError, match="The passphrase is empty"):
        create_key("vera", tmp_path, "")
    assert key_names(tmp_path) == ["lyra"]


@pytest.mark.parametrize("name", ["", ".", "..", "../lyra", "a/b", "a b", "lyra\n", "ä", ".lyra", "x" * 65, "\x00"])
def test_what_is_no_name_reaches_no_file(tmp_path: Path, name: str) -> None:
    for call in (create_key, load_key, own_key):
        with pytest.raises(UsageError, match="is no name for a key"):
            call(name, tmp_path / "keys")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"There is no private key 'vera' in .* \(there are: none\)"):
        load_key("vera", tmp_path)
    create_key("lyra", tmp_path)
    (tmp_path / "notes.txt").write_text("no key")
    with pytest.raises(StorageError, match=r"\(there are: lyra\)"):
        load_key("vera", tmp_path)
    assert key_names(tmp_path) == ["lyra"]
    assert key_names(tmp_path / "missing") == []


def test_a_damaged_private_key_is_told(tmp_path: Path) -> None:
    create_key("lyra", tmp_path)
    path = tmp_path / "lyra.key"
    foreign = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"", b"junk", path.read_bytes()[:60], foreign, path.read_bytes().replace(b"PRIVATE", b"PUBLIC")):
        path.write_bytes(content)
        with pytest.raises(StorageError, match="holds no Ed25519 private key"):
            load_key("lyra", tmp_path)
    path.write_bytes(b"x" * (1 << 15))
    with pytest.raises(StorageError, match="is larger than 16384 bytes"):
        load_key("lyra", tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "x", "unspoken-ed25519 00 lyra", f"ssh-ed25519 {'0' * 64} lyra", f"unspoken-ed25519 {'G' * 64} lyra",
     f"unspoken-ed25519 {'0' * 64}", f"unspoken-ed25519 {'0' * 64} ../lyra", f"unspoken-ed25519 {'0' * 64} a b",
     f"unspoken-ed25519 {'0' * 64} lyra\nunspoken-ed25519 {'1' * 64} vera\n", f"unspoken-ed25519 {'0' * 64} zoë"],
)  # fmt: skip
def test_what_is_no_public_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pub").write_text(text)
    with pytest.raises(StorageError, match="holds no public key"):
        read_public(tmp_path / "a.pub")


def test_a_public_key_may_have_come_by_mail(tmp_path: Path) -> None:
    for end in ("", "\n", "\r\n", "  \n\n"):
        (tmp_path / "a.pub").write_text(f"unspoken-ed25519 {'0' * 64} lyra{end}", newline="")
        assert read_public(tmp_path / "a.pub") == PublicKey("lyra", "0" * 64)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long.pub").write_bytes(b"x" * 2000)
    (tmp_path / "folder.pub").mkdir()
    for name, problem in (
        ("pipe", "no regular file"),
        ("long.pub", "is larger than 1024 bytes"),
        ("folder.pub", "Is a directory"),
        ("missing", "No such file"),
    ):
        with pytest.raises(StorageError, match=problem):
            read_public(tmp_path / name)


@pytest.mark.parametrize("call", [1, 2])
def test_a_disk_that_fills_up_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    calls, real = [0], os.fsync

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        create_key("lyra", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be made"):
        create_key("lyra", tmp_path / "file" / "keys")
