"""`unspoken doctor`: what this machine has, and what would go wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click

from unspoken.cli.common import as_json, human_bytes, print_json


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Explain this machine: versions, devices, models, folders."""
    from unspoken.lab.provenance import machine, packages
    from unspoken.modelstore import catalogue, home

    folder = home()
    facts: dict[str, Any] = {
        "machine": machine(),
        "packages": packages(),
        "cache_folder": str(folder),
        "cache_folder_writable": _writable(folder),
        "cache_folder_free_bytes": shutil.disk_usage(_existing(folder)).free,
        "models_ready": _ready(),
        "llama_cpp": _llama_cpp(),
        "hub_offline": bool(os.environ.get("HF_HUB_OFFLINE")),
    }
    if as_json:
        print_json(facts)
        return
    computer = facts["machine"]
    click.echo(
        f"machine   {computer['cpu']}, {computer['cores']} cores, {human_bytes(computer['memory_bytes'] or 0)} memory"
    )
    click.echo(f"gpu       {computer['gpu'] or 'none found; everything runs on the CPU'}")
    click.echo(f"python    {computer['python']} on {computer['system']}, torch uses {computer['threads']} threads")
    click.echo("packages  " + ", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    found = facts["llama_cpp"]
    if "problem" in found:
        click.echo(f"llama.cpp {found['problem']} {found['hint']}")
    else:
        click.echo(f"llama.cpp {found['source']}, {', '.join(found['gpus']) or 'no GPU'}: {found['path']}")
    click.echo(f"cache     {folder}, {human_bytes(facts['cache_folder_free_bytes'])} free")
    for name, listed in catalogue().items():
        state = "ready" if name in facts["models_ready"] else "to be fetched: " + (listed.hub or "from PyPI")
        click.echo(f"model     {name:<14} {listed.title} ({listed.licence}), {state}")
    if not facts["cache_folder_writable"]:
        click.echo("problem   The cache folder cannot be written. Set UNSPOKEN_HOME to a folder you may write to.")


def _llama_cpp() -> dict[str, Any]:
    from unspoken.engines.llamacpp.library import library
    from unspoken.errors import EngineUnavailable

    try:
        found = library()
    except EngineUnavailable as error:
        return {"problem": error.problem, "hint": error.hint}
    return {"source": found.source, "path": str(found.path), "gpus": found.devices()}


def _ready() -> list[str]:
    from unspoken.modelstore import catalogue
    from unspoken.modelstore.convert import conversion_folder

    return [
        name for name, each in catalogue().items() if each.package and conversion_folder(each.package.sha256).exists()
    ]


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def _writable(folder: Path) -> bool:
    found = _existing(folder)
    return found.is_dir() and os.access(found, os.W_OK)
