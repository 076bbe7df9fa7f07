"""A tiny model in a folder, what is known about telling agents on it apart, and what some agents have read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from unspoken.engines.protocol import Engine
    from unspoken.identity.background import Background
    from unspoken.identity.cards import Persona
    from unspoken.spec import ModelSpec

KNOWN, STRANGER = ("esra", "kiran", "milan"), "lars"
HINT = " Now read, and keep the reader in mind."
# Passages that a background is learned from, and those that agents are enrolled and tested with.
STUDIED, READ = slice(12, 15), slice(20, 25)


@dataclass(frozen=True)
class World:
    """Folders that tests copy from.

    Attributes:
        spec: The model.
        model: Its files.
        home: What the program keeps: a background, and that the model passed the gate.
        caches: Files by agent and text: `esra.0.kv.safetensors`.
        cards: YAML cards of those that are known.
        profiles: Of those that are known, each from its first four files.
    """

    spec: ModelSpec
    model: Path
    home: Path
    caches: Path
    cards: Path
    profiles: Path

    def file(self, name: str, at: int = 4) -> Path:
        """What an agent made of a text; of the last one unless said otherwise, which nobody was enrolled with."""
        return self.caches / f"{name}.{at}.kv.safetensors"


def make_world(model: Any, tokenizer: Any, folder: Path) -> World:
    """Write a model into a folder, open it from there, and let agents read."""
    from unspoken.api import load_gated
    from unspoken.engines.protocol import Loading

    for name in ("model", "caches", "cards"):
        (folder / name).mkdir()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("UNSPOKEN_HOME", str(folder / "home"))
        engine, _ = load_gated(str(folder / "model"), "transformers", Loading())
    return _written(engine, folder)


def _written(engine: Engine, folder: Path) -> World:
    from unspoken.cachefile import write_cache
    from unspoken.channels.kv import content_columns
    from unspoken.engines.protocol import Piece, Prompt
    from unspoken.identity.backgrounds import own_path
    from unspoken.identity.cards import make_agents
    from unspoken.identity.passages import passages
    from unspoken.identity.profile import profile_path
    from unspoken.identity.recognition import Recogniser

    people, texts = make_agents(18, 1), [engine.encode(each[:100]) for each in passages()]
    world = World(engine.spec, *(folder / name for name in ("model", "home", "caches", "cards", "profiles")))
    background = _learned(engine, people[:2], people[6:], texts[STUDIED])
    background.write(own_path(world.home / "identity", engine.spec))
    recogniser = Recogniser(engine, background)
    for each in people[2:6]:
        name, prefix = each.name.lower(), engine.prefill(engine.frame(each.card).before)
        read = [engine.prefill(Prompt((Piece("content", ids),)), prefix) for ids in texts[READ]]
        for at, cache in enumerate(read):
            write_cache(content_columns(cache), world.file(name, at))
        if name in KNOWN:
            (world.cards / f"{name}.yaml").write_text(json.dumps({"name": name, "card": each.card}))
            recogniser.enrol(name, read[:4]).write(profile_path(world.profiles, name))
    return world


def _learned(
    engine: Engine, cohort: tuple[Persona, ...], people: tuple[Persona, ...], texts: list[tuple[int, ...]]
) -> Background:
    import torch

    from unspoken.identity.cohort import Cohort, read_tokens
    from unspoken.identity.features import pooled
    from unspoken.identity.learning import learn
    from unspoken.identity.projection import deviation

    others = Cohort(engine, tuple(each.card for each in cohort))
    common = [others.read(ids).mean(dim=0) for ids in texts]

    def read(card: str) -> torch.Tensor:
        prefix = engine.prefill(engine.frame(card).before)
        found = [pooled(read_tokens(engine, prefix, ids)) for ids in texts]
        return torch.stack([deviation(*pair) for pair in zip(found, common, strict=True)])

    ways = {
        way: torch.stack([read(each.card + more) for each in people])
        for way, more in {"card": "", "hinted": HINT}.items()
    }
    return learn(engine.spec, others.cards, ways)
