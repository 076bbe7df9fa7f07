"""A study small enough for a tiny random model: six agents of development, five to tell apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unspoken.engines.transformers import TransformersEngine
from unspoken.lab.recognition.collect import Collector
from unspoken.lab.recognition.plan import RecognitionPlan

WORDS = "the mill stands by a river and nobody who lives near it knows how old that wheel may be today".split()


def nobody(engine: str) -> Any:
    """Open no other engine."""
    raise AssertionError(engine)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of short texts, none twice."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = []
    for at in range(14):
        turned = WORDS[at:] + WORDS[:at]
        lines.append(json.dumps({"context": f"{' '.join(turned[:9]).capitalize()}. {' '.join(turned[9:])}. End."}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def plan(texts: Path) -> RecognitionPlan:
    """The smallest study there can be."""
    return RecognitionPlan(
        name="small",
        data=str(texts),
        seed=3,
        development=6,
        cohort=2,
        agents=5,
        development_texts=6,
        development_readings=2,
        enrolment_texts=2,
        test_texts=3,
        text_tokens=70,
        written_tokens=8,
        twins=2,
        conditions=("card", "reworded", "mimicry", "self-written", "kv+float32", "kv+int8", "need@0.3", "two-hops"),
        draws=100,
    )


@pytest.fixture(scope="session")
def reader(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """A tiny random model with room for cards spelt in bytes."""
    return tiny_engine(max_position_embeddings=2048, num_hidden_layers=3)


@pytest.fixture(scope="session")
def collected(plan: RecognitionPlan, reader: TransformersEngine, tmp_path_factory: pytest.TempPathFactory) -> Collector:
    """The study's features."""
    collector = Collector(plan, reader, tmp_path_factory.mktemp("run"), nobody)
    collector.run(collector.jobs(), lambda done, total, what: None)
    return collector
