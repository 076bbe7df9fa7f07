"""Private facts as a harness' contexts, what the lab says of them, and harnesses that stay offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from unspoken.engines.protocol import Engine
    from unspoken.lab.record import Sample

ITEMS = 12


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no harness look for anything on the network."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")


@pytest.fixture(scope="session")
def facts() -> list[dict[str, Any]]:
    """Questions of private facts as rows: two sources, six questions each."""
    from unspoken.lab.tasks.private_facts import PrivateFacts

    return [
        {
            "id": item.id,
            "text": source.text,
            "question": item.question,
            "stem": item.stem,
            "options": list(item.options),
            "label": item.options.index(item.gold),
            "gold": item.gold,
        }
        for source in PrivateFacts().sources(ITEMS, 7)
        for item in source.items
    ]


@pytest.fixture(scope="session")
def smollm() -> Engine:
    """The real model."""
    from unspoken import load_model

    return load_model("smollm2-135m")


@pytest.fixture(scope="session")
def in_the_lab() -> Callable[[Engine, str], dict[str, Sample]]:
    """Ask the same in the lab, and return its samples by item."""
    from unspoken.lab.experiment import Experiment
    from unspoken.lab.runner import Runner
    from unspoken.lab.tasks.private_facts import PrivateFacts

    def asked(engine: Engine, arm: str) -> dict[str, Sample]:
        plan = Experiment(arms=(arm,), items=ITEMS, seed=7, timed_items=0)
        runner = Runner(plan, engine, PrivateFacts().sources(ITEMS, 7))
        samples = [each for batch in runner.batches() for cell in runner.work(batch, ()) for each in cell]
        assert len(samples) == ITEMS
        return {each.item: each for each in samples}

    return asked
