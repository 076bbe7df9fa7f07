"""Which background a model has: the user's own, or one that comes with the package."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from unspoken.errors import UsageError
from unspoken.identity.background import SUFFIX, Background
from unspoken.spec import ModelSpec

SHIPPED = "backgrounds"


def own_path(folder: Path, spec: ModelSpec) -> Path:
    """Return where a user's background of a model lies.

    Args:
        folder: What the program keeps about identities.
        spec: The model.
    """
    return folder / f"{spec.weights}{SUFFIX}"


def background_for(folder: Path, spec: ModelSpec) -> Background:
    """Return the background of a model: the user's own if there is one, or the package's.

    Args:
        folder: What the program keeps about identities.
        spec: The model.

    Raises:
        UsageError: If there is none, or it is damaged.
    """
    if own_path(folder, spec).exists():
        return Background.read(own_path(folder, spec), spec)
    shipped = files("unspoken.identity").joinpath(SHIPPED, f"{spec.weights}{SUFFIX}")
    if not shipped.is_file():
        raise UsageError(
            f"Nothing is known yet about telling agents on '{spec.name}' apart.",
            "Let it be learned once: `unspoken identity prepare --model ...`; SmolLM2's comes with the package.",
        )
    with as_file(shipped) as path:
        return Background.read(path, spec)
