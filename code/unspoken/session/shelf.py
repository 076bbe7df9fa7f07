"""Beginnings that are prefilled once and opened afterwards: an agent's card with its memory, as a cache file.

A long memory takes seconds to read and milliseconds to open. Eyuboglu et al. call such a cache a cartridge (arXiv
2506.06266) and train it; this one is what the model computes, to the last bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from unspoken.cache import KVCache
from unspoken.cachefile import read_cache, write_cache
from unspoken.engines.protocol import Engine, Prompt
from unspoken.errors import UnspokenError
from unspoken.manifest import require_compatible
from unspoken.trust.files import private_folder

LEAST_TOKENS = 256


@dataclass(frozen=True)
class Shelf:
    """Beginnings in a folder.

    Attributes:
        folder: The folder; made, for its owner alone, when the first is put there.
        least: Beginnings of fewer tokens are not worth a file.
    """

    folder: Path
    least: int = LEAST_TOKENS

    def path(self, engine: Engine, prompt: Prompt) -> Path:
        """Return where the beginning with these tokens lies, or would lie: it depends on model, engine and type."""
        made_by = (engine.spec.weights, engine.spec.tokenizer, engine.name, engine.version, engine.dtype)
        key = hashlib.sha256(repr((made_by, prompt.pieces)).encode()).hexdigest()
        return self.folder / f"{key[:32]}.kv.safetensors"

    def get(self, engine: Engine, prompt: Prompt) -> KVCache | None:
        """Return the cache of a prompt; None if there is none, or none that can be used: it is then made anew."""
        path = self.path(engine, prompt)
        if not path.exists():
            return None
        try:
            found = read_cache(path)
            require_compatible(found.spec, engine.spec)
        except UnspokenError:
            return None
        sound = found.manifest.token_ids == prompt.token_ids and found.manifest.dtype == engine.dtype
        return found if sound and found.manifest.rope == "applied" else None

    def put(self, engine: Engine, prompt: Prompt, cache: KVCache) -> None:
        """Keep the cache of a prompt, if it is worth it.

        Raises:
            StorageError: If it cannot be written.
        """
        if len(prompt.token_ids) >= self.least:
            private_folder(self.folder, "beginnings")
            write_cache(cache, self.path(engine, prompt))
