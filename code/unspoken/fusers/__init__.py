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

    places = [place for place in (Path(name), SHELF / name) if (place / folder.CONFIG).is_file()]
    path = places[0] if places else folder.fetched(name, {})
    kind: Any = FUSERS.load(folder.read_config(path)["kind"])
    fuser: Translator | Enricher = kind.from_pretrained(path)
    return fuser
