"""Maps from one model's cache to another's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.registry import Registry

if TYPE_CHECKING:
    from unspoken.fusers.protocol import Enricher, Translator

FUSERS = Registry(
    "fuser",
    "unspoken.fusers",
    {
        "bottleneck": "unspoken.fusers.bottleneck:Bottleneck",
        "ridge": "unspoken.fusers.ridge:Ridge",
        "c2c": "unspoken.fusers.c2c_kept:C2C",
    },
)
SHELF = Path("models")
"""Where fusers are looked for by name, below the current directory."""


def load_fuser(name: str) -> Translator | Enricher:
    """Return the fuser of a folder, of a name below `models/`, or of a repository on the hub.

    Raises:
        StorageError: If there is none, or its files cannot be read.
        UsageError: If they are no sound fuser.
    """
    from unspoken.fusers import folder

    path = found(name)
    kind: Any = FUSERS.load(folder.read_config(path)["kind"])
    fuser: Translator | Enricher = kind.from_pretrained(path)
    return fuser


def found(name: str) -> Path:
    """Return the folder of a fuser, fetched from the hub if neither a folder nor a name below `models/` is meant.

    Raises:
        StorageError: If there is none.
    """
    from unspoken.fusers import folder

    places = (Path(name), SHELF / name)
    sound = [place for place in places if (place / folder.CONFIG).is_file()]
    # A folder that is there but holds no fuser is what was meant, too, and is told so; the hub is not asked.
    meant = [*sound, *(place for place in places if place.is_dir())]
    return meant[0] if meant else folder.fetched(name, {})
