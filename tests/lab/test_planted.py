"""What is planted is found, what is not there is not: a synthetic model, through the whole runner, many times over."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from unspoken.cache import KVCache
from unspoken.engines.fake import LIKELY, UNLIKELY, VOCABULARY, FakeEngine
from unspoken.engines.protocol import Generation, Prompt, Turn
from unspoken.lab.experiment import Experiment
from unspoken.lab.metrics import compute
from unspoken.lab.power import power
from unspoken.lab.runner import Runner, load_task

from .begin import begin

pytestmark = pytest.mark.timeout(900)
RUNS, ITEMS, OPTIONS = 200, 24, 6
KNOWN = 0.45
EXPERIMENT = Experiment(
    name="planted", items=ITEMS, arms=("kv", "kv-deranged"), answer_tokens=2, batch_sources=8, timed_items=0
)


class Planted(FakeEngine):
    """Knows what the columns say of some questions, drawn anew in each run, and guesses at all others.

    Args:
        known: Share of the questions that it answers from the columns.
        run: Number of the run.
    """

    def __init__(self, known: float, run: int) -> None:
        super().__init__()
        self.known, self.run = known, run
        self._read: dict[bytes, list[int | None]] = {}

    def logits(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> Any:
        """Nothing asks for these here, and they are what takes the fake its time."""
        return torch.zeros((len(prompt.token_ids), VOCABULARY))

    def generate(self, turns: Any, limits: Any, hear: Any = None) -> tuple[Generation, ...]:
        """Answer."""
        made = super().generate(turns, limits, hear)
        return tuple(self._drawn(turn, each) for turn, each in zip(turns, made, strict=True))

    def _readable(self, cache: KVCache) -> list[int | None]:
        spelt = cache.layers[0].values.numpy().tobytes()
        if spelt not in self._read:
            self._read[spelt] = super()._readable(cache)
        return self._read[spelt]

    def _drawn(self, turn: Turn, made: Generation) -> Generation:
        asked = self.decode(turn.prompt.token_ids)
        seen = b"" if turn.past is None else turn.past.layers[0].values.numpy().tobytes()
        read, guessed = (self._number(kind, asked, seen) for kind in ("read", "guess"))
        if read < self.known and LIKELY in made.option_logprobs:
            return made
        scores = [UNLIKELY] * len(made.option_logprobs)
        scores[int(guessed * len(scores))] = LIKELY
        return replace(made, option_logprobs=tuple(scores))

    def _number(self, kind: str, asked: str, seen: bytes) -> float:
        """Return a number from 0 to 1, the same for the same question, columns and run."""
        return zlib.crc32(f"{kind}/{self.run}/{asked}".encode() + seen) / 2**32


@pytest.fixture
def found(request: pytest.FixtureRequest, tmp_path: Path) -> list[dict[str, Any]]:
    """The metrics of many runs with some share of known questions, each on texts of its own."""
    metrics = []
    for run in range(RUNS):
        experiment = msgspec.structs.replace(EXPERIMENT, seed=run)
        _, sources = load_task(experiment)
        folder = begin(tmp_path / str(run), experiment, {"model": "planted"}, {})
        samples = Runner(experiment, Planted(request.param, run), sources).run(folder, lambda *_: None)
        metrics.append(compute(experiment, samples, {}))
    return metrics


def rejected(found: list[dict[str, Any]]) -> float:
    """Return the share of runs whose test says that the right columns make a difference."""
    return sum(each["content_gain"]["p"] < 0.05 for each in found) / len(found)


@pytest.mark.parametrize("found", [KNOWN], indirect=True)
def test_a_planted_effect_is_found_with_the_power_that_is_stated(found: list[dict[str, Any]]) -> None:
    right, guess = KNOWN + (1 - KNOWN) / OPTIONS, 1 / OPTIONS
    stated = power(ITEMS, right - guess, right * (1 - guess) + (1 - right) * guess)
    assert 0.5 < stated < 0.9  # Neither hopeless nor sure: a test that always or never rejects would not pass.
    assert rejected(found) == pytest.approx(stated, abs=3.5 * (stated * (1 - stated) / RUNS) ** 0.5)


@pytest.mark.parametrize("found", [0.0], indirect=True)
def test_a_planted_null_is_found_no_more_often_than_the_level(found: list[dict[str, Any]]) -> None:
    assert rejected(found) <= 0.05 + 3.5 * (0.05 * 0.95 / RUNS) ** 0.5
    assert sum(each["content_gain"]["low"] > 0 for each in found) / RUNS < 0.12
