"""Sealing, trusting and encrypting on the command line, as a sender and a receiver meet them."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.cachefile import Header, peek
from unspoken.cli.trusting import judged

from .program import ASKED, FAKE, Program, clear, folder_of

FOR = ("--for", "smollm2-135m", *FAKE)


@pytest.fixture
def home(unspoken: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has no keys and knows nobody."""
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "home"))
    for name in ("UNSPOKEN_KEY_PASSPHRASE", "UNSPOKEN_FILE_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    """A cache file of lyra's."""
    return Path(shutil.copy(made / "good.kv.safetensors", tmp_path / "a.kv.safetensors"))


def test_from_a_new_key_to_an_answer(unspoken: Program, home: Path, file: Path) -> None:
    created = unspoken("keys", "create", "lyra")
    assert created.code == 0
    (told,) = re.findall(r"fingerprint ([0-9a-f]{16})", created.out)
    sealed = unspoken("seal", file, "--as", "lyra", "--session", "tea", "--ttl", "2h")
    assert sealed.code == 0
    assert f"{file}: sealed by 'lyra', key {told}" in sealed.out
    seal = peek(file).seal
    assert seal is not None
    assert (seal.session, seal.seconds_to_live) == ("tea", 7200)
    clear(unspoken("verify", file, "--trusted"), f"sealed with the key {told}, which nobody known has")
    assert unspoken("keys", "trust", home / "keys" / "lyra.pub", "--note", "met at tea").code == 0
    checked = unspoken("verify", file, "--trusted", "--session", "tea", "--from", "lyra", *FOR)
    assert checked.code == 0
    for words in ("all digests match", "Sealed by 'lyra'", told, "for the session 'tea': trusted", "it can be used"):
        assert words in checked.out
    asked = unspoken("ask", ASKED, "--cache", file, "--trusted", *FAKE)
    assert (asked.code, asked.out) == (0, "Anna\n")


@pytest.fixture
def sealed(unspoken: Program, home: Path, file: Path) -> Path:
    """The file, sealed by lyra, whom this user trusts."""
    assert unspoken("keys", "create", "lyra").code == 0
    assert unspoken("keys", "trust", home / "keys" / "lyra.pub").code == 0
    assert unspoken("seal", file, "--as", "lyra", "--session", "tea").code == 0
    return file


def test_what_is_not_sealed_by_a_trusted_sender_is_refused_before_anything_is_loaded(
    unspoken: Program, sealed: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "from_file", lambda *_, **__: pytest.fail("the data was touched"))
    monkeypatch.setattr("unspoken.api.open_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("unspoken.api.load_gated", lambda *_, **__: pytest.fail("a model was loaded"))
    plain = made / "good.kv.safetensors"
    clear(unspoken("verify", plain, "--trusted", *FOR), "is not sealed")
    clear(unspoken("ask", ASKED, "--cache", plain, "--trusted", *FAKE), "is not sealed")
    assert unspoken("keys", "distrust", "lyra").code == 0
    clear(unspoken("verify", sealed, "--trusted", *FOR), "which nobody known has")
    clear(unspoken("ask", ASKED, "--cache", sealed, "--trusted", *FAKE), "which nobody known has")


def test_a_seal_for_another_session_or_of_another_sender_is_refused(unspoken: Program, sealed: Path) -> None:
    clear(unspoken("verify", sealed, "--trusted", "--session", "coffee"), "for the session 'tea', wanted is 'coffee'")
    clear(unspoken("verify", sealed, "--trusted", "--from", "vera"), "that of 'lyra', wanted is that of 'vera'")
    assert unspoken("verify", sealed, "--trusted").code == 0


def test_with_once_a_file_is_accepted_once(unspoken: Program, sealed: Path) -> None:
    assert unspoken("verify", sealed, "--trusted").code == 0
    assert unspoken("verify", sealed, "--trusted", "--once").code == 0
    clear(unspoken("verify", sealed, "--trusted", "--once"), "was accepted before: it is replayed")
    assert unspoken("seal", sealed, "--as", "lyra").code == 0
    assert unspoken("verify", sealed, "--trusted", "--once").code == 0


def test_an_expired_seal_is_refused(unspoken: Program, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal = peek(sealed).seal
    assert seal is not None
    monkeypatch.setattr("unspoken.trust.receiving.time.time", lambda: float(seal.until))
    clear(unspoken("verify", sealed, "--trusted"), "it expired 0 seconds ago")


def test_a_damaged_tensor_of_a_sealed_file_is_told(unspoken: Program, sealed: Path) -> None:
    raw = bytearray(sealed.read_bytes())
    raw[-1] ^= 1
    sealed.write_bytes(raw)
    clear(unspoken("verify", sealed, "--trusted"), "does not match its digest")
    clear(unspoken("ask", ASKED, "--cache", sealed, "--trusted", *FAKE), "does not match its digest")


@pytest.mark.parametrize("command", ["ask", "verify"])
def test_a_file_that_is_exchanged_after_its_seal_was_verified_is_refused(
    unspoken: Program, sealed: Path, made: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def exchanging(file: str, *given: Any) -> Header:
        header = judged(file, *given)
        shutil.copy(made / "whole.kv.safetensors", file)
        return header

    monkeypatch.setattr(f"unspoken.cli.{command}.judged", exchanging)
    given = {"ask": ("ask", ASKED, "--cache", sealed, *FAKE), "verify": ("verify", sealed)}
    told = unspoken(*given[command], "--trusted")
    assert (told.code, told.out) == (2, "")
    assert "does not match its digest" in told.err


def test_a_sealed_file_can_be_used_by_who_does_not_ask(unspoken: Program, sealed: Path) -> None:
    unspoken("keys", "distrust", "lyra")
    assert unspoken("verify", sealed, *FOR).code == 0
    assert unspoken("ask", ASKED, "--cache", sealed, *FAKE).out == "Anna\n"


def test_inspect_shows_the_seal_and_that_nobody_verified_it(unspoken: Program, sealed: Path, made: Path) -> None:
    shown = unspoken("inspect", sealed).out
    (line,) = (line for line in shown.splitlines() if line.startswith("seal "))
    seal = peek(sealed).seal
    assert seal is not None
    for words in ("'lyra'", seal.fingerprint, " UTC until ", "'tea'", "not verified: use verify --trusted"):
        assert words in line
    assert unspoken("inspect", sealed, "--json").data["seal"]["nonce"] == seal.nonce
    assert "seal " not in unspoken("inspect", made / "good.kv.safetensors").out
    assert "seal" not in unspoken("inspect", made / "good.kv.safetensors", "--json").data


def test_sealing_into_another_file_leaves_the_first(unspoken: Program, sealed: Path, tmp_path: Path) -> None:
    before = sealed.read_bytes()
    out = tmp_path / "b.kv.safetensors"
    told = unspoken("seal", sealed, "--as", "lyra", "--out", out, "--json").data
    assert told["file"] == str(out)
    assert told["seal"]["fingerprint"] == peek(out).seal.fingerprint  # type: ignore[union-attr]
    assert sealed.read_bytes() == before


def test_token_ids_can_be_vouched_for_without_being_sent(
    unspoken: Program, sealed: Path, made: Path, tmp_path: Path
) -> None:
    silent = tmp_path / "silent.kv.safetensors"
    unspoken("capture", made / "doc.txt", "--out", silent, *FAKE, "--no-tokens", "--wire", "float32")
    told = unspoken("seal", silent, "--as", "lyra", "--tokens-of", made / "good.kv.safetensors", "--json").data
    assert told["seal"]["tokens"] == peek(sealed).seal.tokens is not None  # type: ignore[union-attr]
    assert peek(silent).manifest.cache.token_ids is None
    assert unspoken("verify", silent, "--trusted").code == 0
    clear(unspoken("seal", silent, "--as", "lyra", "--tokens-of", made / "whole.kv.safetensors"), "does not hold the")
    clear(unspoken("seal", silent, "--as", "lyra", "--tokens-of", silent), "has no token ids")


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no key": (("seal", "FILE", "--as", "vera"), "There is no private key 'vera'"),
    "no name": (("seal", "FILE", "--as", "../lyra"), "is no name for a key"),
    "no time": (("seal", "FILE", "--as", "lyra", "--ttl", "0s"), "'0s' is no time to live"),
    "no unit": (("seal", "FILE", "--as", "lyra", "--ttl", "60"), "'60' is no time to live"),
    "endless": (("seal", "FILE", "--as", "lyra", "--ttl", "99999d"), "is no time to live"),
    "no session": (("seal", "FILE", "--as", "lyra", "--session", "a\nb"), "There can be no such seal"),
    "no file": (("seal", "missing.kv", "--as", "lyra"), "No such file"),
    "session alone": (("verify", "FILE", *FOR, "--session", "tea"), "are about a file's seal"),
    "once alone": (("verify", "FILE", *FOR, "--once"), "are about a file's seal"),
    "from alone": (("verify", "FILE", *FOR, "--from", "lyra"), "are about a file's seal"),
    "trust in a document": (("ask", ASKED, "--about", "doc.txt", "--trusted", *FAKE), "There is no file whose seal"),
    "no public key": (("keys", "trust", "FILE"), "is larger than 1024 bytes"),
    "a key twice": (("keys", "create", "lyra"), "There is a key 'lyra' already"),
    "a key of two": (("keys", "trust", "HOME/keys/lyra.pub", "--as", "vera"), "is known as that of 'lyra'"),
    "nobody": (("keys", "distrust", "vera"), "There is no known sender 'vera'"),
    "nothing to show": (("keys", "show", "vera"), "There is no key 'vera'"),
    "no passphrase": (("encrypt", "FILE"), "there is nobody to ask"),
    "no cache": (("encrypt", "HOME/keys/lyra.pub"), "claims a header"),
    "no name to decrypt to": (("decrypt", "FILE"), "does not end in .encrypted"),
    "nothing encrypted": (("decrypt", "FILE", "--out", "OUT", "--key-file", "KEY"), "is no encrypted file"),
    "no key file": (("encrypt", "FILE", "--key-file", "missing"), "No such file"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_cannot_work_is_one_clear_error(
    unspoken: Program, sealed: Path, home: Path, tmp_path: Path, name: str
) -> None:
    given, problem = BAD[name]
    (tmp_path / "KEY").write_bytes(bytes(32))
    (tmp_path / "KEY").chmod(0o600)
    places = {"FILE": str(sealed), "OUT": str(tmp_path / "out"), "KEY": str(tmp_path / "KEY")}
    args = [places.get(each, each.replace("HOME", str(home))) for each in given]
    before, content = folder_of(tmp_path), sealed.read_bytes()
    clear(unspoken(*args), problem)
    assert folder_of(tmp_path) == before
    assert sealed.read_bytes() == content


def test_keys_are_listed_and_shown(unspoken: Program, home: Path) -> None:
    assert unspoken("keys", "list").out == "own      none\ntrusted  none\n"
    first = unspoken("keys", "create", "lyra", "--json").data
    assert first["public_file"] == str(home / "keys" / "lyra.pub")
    known = unspoken("keys", "trust", first["public_file"], "--as", "sister", "--note", "met\x1b[2J", "--json").data
    assert (known["name"], known["key"], known["fingerprint"]) == ("sister", first["key"], first["fingerprint"])
    listed = unspoken("keys", "list").out
    assert listed == f"own      {first['fingerprint']}  lyra\ntrusted  {first['fingerprint']}  sister  met [2J\n"
    assert unspoken("keys", "list", "--json").data["own"] == [
        {key: first[key] for key in ("name", "key", "fingerprint")}
    ]
    assert first["key"] in unspoken("keys", "show", "lyra").out
    assert unspoken("keys", "show", "sister", "--json").data["trusted"]["key"] == first["key"]
    assert unspoken("keys", "distrust", "sister", "--json").data["key"] == first["key"]
    assert unspoken("keys", "list", "--json").data["trusted"] == []


def test_a_private_key_has_a_passphrase_if_the_environment_has_one(
    unspoken: Program, home: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSPOKEN_KEY_PASSPHRASE", "velvet")
    assert "encrypted" in unspoken("keys", "create", "lyra").out
    assert unspoken("seal", file, "--as", "lyra").code == 0
    monkeypatch.setenv("UNSPOKEN_KEY_PASSPHRASE", "linen")
    clear(unspoken("seal", file, "--as", "lyra"), "The passphrase does not open the private key 'lyra'")
    monkeypatch.delenv("UNSPOKEN_KEY_PASSPHRASE")
    clear(unspoken("seal", file, "--as", "lyra"), "The key 'lyra' needs a passphrase, and there is nobody to ask")
    clear(unspoken("keys", "create", "vera", "--passphrase"), "there is nobody to ask")
    (home / "keys" / "lyra.key").chmod(0o644)
    clear(unspoken("seal", file, "--as", "lyra"), "can be used by others")


def test_a_file_is_encrypted_and_decrypted(
    unspoken: Program, sealed: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sealed.read_bytes()
    monkeypatch.setenv("UNSPOKEN_FILE_PASSPHRASE", "velvet tea")
    box = sealed.with_name(sealed.name + ".encrypted")
    assert unspoken("encrypt", sealed).code == 0
    assert stat.S_IMODE(box.stat().st_mode) == 0o600
    assert b"unspoken.manifest" not in box.read_bytes()
    clear(unspoken("encrypt", sealed), "is there already")
    clear(unspoken("decrypt", box), "is there already")
    sealed.unlink()
    monkeypatch.setenv("UNSPOKEN_FILE_PASSPHRASE", "linen tea")
    clear(unspoken("decrypt", box), "does not open")
    assert not sealed.exists()
    monkeypatch.setenv("UNSPOKEN_FILE_PASSPHRASE", "velvet tea")
    told = unspoken("decrypt", box, "--json").data
    assert told == {"file": str(sealed), "bytes": len(before)}
    assert sealed.read_bytes() == before
    assert unspoken("verify", sealed, "--trusted").code == 0


def test_a_key_file_encrypts_without_a_passphrase(unspoken: Program, home: Path, file: Path, tmp_path: Path) -> None:
    key, out = tmp_path / "key", tmp_path / "out"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    assert unspoken("encrypt", file, "--key-file", key).code == 0
    assert unspoken("decrypt", f"{file}.encrypted", "--key-file", key, "--out", out).code == 0
    assert out.read_bytes() == file.read_bytes()


def test_help_and_inspecting_a_sealed_file_load_nothing_heavy(sealed: Path) -> None:
    code = (
        "import io, json, sys\n"
        "from contextlib import redirect_stdout, suppress\n"
        "from unspoken.cli import main\n"
        "loaded = []\n"
        "commands = [['keys', each, '--help'] for each in ('create', 'list', 'trust', 'show', 'distrust')]\n"
        "commands += [[each, '--help'] for each in ('seal', 'encrypt', 'decrypt', 'verify')]\n"
        "for command in (*commands, ['inspect', sys.argv[1]]):\n"
        "    sys.argv[1:] = command\n"
        "    with redirect_stdout(io.StringIO()), suppress(SystemExit): main()\n"
        "    loaded += [n for n in ('torch', 'numpy', 'transformers', 'cryptography', 'sqlite3') if n in sys.modules]\n"
        "print(json.dumps(loaded))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sealed)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_sealing_needs_no_torch(sealed: Path, home: Path) -> None:
    code = "import sys; from unspoken.cli import main; sys.argv[0] = 'unspoken'\ntry: main()\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "seal", str(sealed), "--as", "lyra"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sealed by 'lyra'" in done.stdout


def test_a_seal_cannot_steer_the_terminal(unspoken: Program, sealed: Path) -> None:
    assert unspoken("seal", sealed, "--as", "lyra", "--session", "\u202eaet").code == 0
    for told in (unspoken("inspect", sealed), unspoken("verify", sealed, "--trusted")):
        assert told.code == 0
        assert "aet" in told.out
        assert all(line.isprintable() for line in told.out.splitlines())
