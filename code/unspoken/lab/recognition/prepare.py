"""Learn how to tell agents on a model apart: generated agents read, and a background comes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError
from unspoken.identity.background import Background
from unspoken.identity.learning import learn
from unspoken.lab.recognition.collect import Collector
from unspoken.lab.recognition.plan import RecognitionPlan
from unspoken.lab.runner import Watcher

# Without a file of texts, all of the package's passages but those that a study would set aside.
OWN_TEXTS = 29
PLAN = RecognitionPlan(name="prepare", agents=5, enrolment_texts=1, test_texts=2, twins=0, conditions=("card",))


def prepare(engine: Engine, data: str | None, agents: int, folder: Path, watch: Watcher) -> Background:
    """Let agents of development read, and learn a background from them; stopped at any moment, it goes on.

    Args:
        engine: The model.
        data: File of texts, one JSON object with a `context` per line; None for the package's own passages.
        agents: How many agents; more tell others apart better, 100 are a good number.
        folder: For what was read so far; deleted at the end.
        watch: Told how far it is.

    Raises:
        StorageError: If a file cannot be read or written.
        UsageError: If there are too few texts or agents, or scipy and scikit-learn are missing.
    """
    plan = msgspec.structs.replace(PLAN, development=agents, data=data)
    if data is None:
        plan = msgspec.structs.replace(plan, development_texts=OWN_TEXTS)
    collector = Collector(plan, engine, folder, _nowhere)
    collector.run(collector.development(), watch)
    cohort = tuple(persona.card for persona in collector.people.cohort)
    background = learn(engine.spec, cohort, collector.developed(), watch=watch)
    shutil.rmtree(folder)
    return background


def _nowhere(engine: str) -> Engine:
    raise UsageError(f"A background is learned on one engine, not on {engine} as well.", "Leave the condition out.")
