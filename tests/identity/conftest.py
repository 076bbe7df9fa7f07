"""A tiny random model on which agents can be told apart, and what was learned about it.

Its tokens are bytes, and what it averages over a card differs from card to card: enough for every decision, in seconds.
Nothing of the package is imported before a fixture runs, so that `--jaxtyping-packages` can hook in first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from unspoken.cache import KVCache
    from unspoken.engines.transformers import TransformersEngine
    from unspoken.identity.background import Background
    from unspoken.identity.cards import Persona
    from unspoken.identity.recognition import Recogniser

    Heard = Callable[[str, str], KVCache]


@pytest.fixture(scope="session")
def reader(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """The model everybody runs on: three layers, and room for a card and a text in bytes."""
    return tiny_engine("llama", 1, num_hidden_layers=3, max_position_embeddings=1024)


@pytest.fixture(scope="session")
def people() -> tuple[Persona, ...]:
    """Generated agents: two of the cohort, four to be recognised, and those to learn from."""
    from unspoken.identity.cards import make_agents

    return make_agents(18, 1)


@pytest.fixture(scope="session")
def texts() -> tuple[str, ...]:
    """Texts of a hundred tokens."""
    from unspoken.identity.passages import passages

    return tuple(each[:100] for each in passages())


@pytest.fixture(scope="session")
def heard(reader: TransformersEngine) -> Heard:
    """Return the whole cache of an agent, by its card, that has read a text."""
    from functools import cache

    from unspoken.engines.protocol import Piece, Prompt

    prefix = cache(lambda card: reader.prefill(reader.frame(card).before))
    return lambda card, text: reader.prefill(Prompt((Piece("content", reader.encode(text)),)), prefix(card))


@pytest.fixture(scope="session")
def background(
    reader: TransformersEngine, people: tuple[Persona, ...], texts: tuple[str, ...], heard: Heard
) -> Background:
    """What twelve agents, told by their cards and by their cards with a hint, teach about the model."""
    import torch

    from unspoken.identity.cohort import Cohort
    from unspoken.identity.features import content, pooled
    from unspoken.identity.learning import learn
    from unspoken.identity.projection import deviation

    cohort, used = Cohort(reader, tuple(each.card for each in people[:2])), texts[12:15]
    common = [cohort.read(reader.encode(text)).mean(dim=0) for text in used]

    def read(card: str) -> torch.Tensor:
        found = [pooled(content(heard(card, text))) for text in used]
        return torch.stack([deviation(*pair) for pair in zip(found, common, strict=True)])

    hint = " Now read, and keep the reader in mind."
    ways = {
        way: torch.stack([read(each.card + more) for each in people[6:]])
        for way, more in {"card": "", "hinted": hint}.items()
    }
    return learn(reader.spec, cohort.cards, ways)


@pytest.fixture(scope="session")
def recogniser(reader: TransformersEngine, background: Background) -> Recogniser:
    """Who tells agents on the model apart."""
    from unspoken.identity.recognition import Recogniser

    return Recogniser(reader, background)
