"""Learning a background: error rates of made-up agents that differ or do not, on whom nobody was learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unspoken.engines.fake import FakeEngine
from unspoken.errors import UsageError
from unspoken.identity import learning
from unspoken.identity.background import Alarm, Background, enrolled_as, normalised
from unspoken.identity.learning import SHARES, _alarms, learn
from unspoken.identity.projection import Projection, Site, default_sites

SPEC = FakeEngine().spec
AGENTS, TEXTS, SHAPE = 10, 3, (2, 2, 2, 8)
COHORT = ("You are nobody.", "You are somebody.")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(strength: float, seed: int = 0, agents: int = AGENTS, texts: int = TEXTS) -> dict[str, Tensor]:
    """Agents that differ by so much, told in two ways, and noise."""
    own = strength * normal(agents, 1, *SHAPE, seed=seed)
    return {way: own + normal(agents, texts, *SHAPE, seed=seed + at) for at, way in enumerate(("card", "reworded"), 1)}


@pytest.fixture(scope="module")
def learned() -> Background:
    return learn(SPEC, COHORT, drawn(3))


def test_agents_that_differ_are_told_apart(learned: Background) -> None:
    assert learned.info.error_rates.keys() == {"card", "reworded"}
    assert max(learned.info.error_rates.values()) < 0.02
    assert learned.info.calibration.scale > 0


@pytest.mark.parametrize("learner", ["plain", "whitened", "lda"])
def test_labels_that_mean_nothing_recognise_nobody(learner: str) -> None:
    # Left-out trials are few, so the mean of many draws is looked at; learning by heart would bring it to 0.
    rates = [learn(SPEC, COHORT, drawn(0, 10 * seed), learner=learner).info.error_rates for seed in range(12)]
    for way in ("card", "reworded"):
        assert np.mean([each[way] for each in rates]) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("learner", ["plain", "lda"])
def test_every_learner_can_be_chosen(learner: str) -> None:
    found = learn(SPEC, COHORT, drawn(8), learner=learner)
    assert found.info.learner == learner
    assert max(found.info.error_rates.values()) < 0.15


def test_ratios_of_agents_nobody_learned_from_are_above_0_for_their_own_caches(learned: Background) -> None:
    fresh = drawn(3, seed=100)
    signatures = learned.signatures(fresh["card"])
    enrolled = enrolled_as(list(signatures))
    found = learned.llrs(learned.signatures(fresh["reworded"]).flatten(0, 1), enrolled)
    own = np.repeat(np.arange(AGENTS), TEXTS)[:, None] == np.arange(AGENTS)
    assert (found[own] > 0).mean() > 0.9
    assert (found[~own] < 0).mean() > 0.9


def test_the_description_says_what_was_learned_from(learned: Background) -> None:
    info = learned.info
    assert (info.spec, info.cohort, info.learner, info.sites) == (SPEC, COHORT, "whitened", default_sites(SPEC))
    assert (info.agents, info.caches) == (AGENTS, 2 * AGENTS * TEXTS)
    assert learned.impostors.shape[0] == AGENTS
    torch.testing.assert_close(learned.impostors, enrolled_as(list(learned.signatures(drawn(3)["card"]))))
    elsewhere = learn(SPEC, COHORT, drawn(3), sites=[Site("keys", 0), Site("values", 1)])
    assert elsewhere.info.sites == (Site("keys", 0), Site("values", 1))
    assert learn(SPEC, COHORT, drawn(3)).digest() == learned.digest() != elsewhere.digest()


def test_ratios_are_exactly_the_same_after_a_file(learned: Background, tmp_path: Path) -> None:
    learned.write(tmp_path / "a")
    read = Background.read(tmp_path / "a", SPEC)
    tests = drawn(3, seed=100)["card"].flatten(0, 1)
    before, after = (each.llrs(each.signatures(tests), each.impostors) for each in (learned, read))
    assert np.array_equal(before, after)
    assert read.digest() == learned.digest()


@dataclass(frozen=True, eq=False)
class Spy(Projection):
    """Turns a cache into a direction of its own, so that every score tells which caches it is made of."""

    def __call__(self, features: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(features[..., 0, 0].long(), 2 * AGENTS * TEXTS).float()


def numbered() -> dict[str, Tensor]:
    """Deviations that hold nothing but the number of their cache."""
    numbers = torch.arange(2 * AGENTS * TEXTS, dtype=torch.float32).reshape(2, AGENTS, TEXTS, 1, 1, 1, 1)
    return dict(zip(("card", "reworded"), numbers.expand(2, AGENTS, TEXTS, *SHAPE), strict=True))


def whose(caches: set[int]) -> set[int]:
    return {each // TEXTS % AGENTS for each in caches}


def support(rows: Tensor) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in rows]


@dataclass(frozen=True)
class Trial:
    """Caches that were learned from, and those of one call of the scoring."""

    learned_from: set[int]
    tests: list[set[int]]
    enrolled: list[set[int]]
    impostors: list[set[int]]


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Every call of the scoring while a background is learned by the spy."""
    seen: list[set[int]] = []
    calls: list[Trial] = []

    def spying(features: Tensor, agents: Tensor) -> Spy:
        caches = features[:, 0, 0].long()
        pairs = set(zip((caches // TEXTS % AGENTS).tolist(), agents.tolist(), strict=True))
        assert len(pairs) == len(whose(set(caches.tolist()))) == len(set(agents.tolist()))  # One number for each agent.
        seen.append(set(caches.tolist()))
        return Spy(torch.ones(2), torch.zeros(32), torch.eye(32))

    def noting(tests: Tensor, enrolled: Tensor, impostors: Tensor) -> Any:
        calls.append(Trial(seen[-1], support(tests), support(enrolled), support(impostors)))
        return normalised(tests, enrolled, impostors)

    monkeypatch.setattr("unspoken.identity.projection.plain", spying)
    monkeypatch.setattr(learning, "normalised", noting)
    learn(SPEC, COHORT, numbered(), learner="plain")
    assert len(seen) == 6
    assert seen[-1] == set(range(2 * AGENTS * TEXTS))
    return calls


def test_nobody_is_tested_with_what_enrolled_it_or_by_who_has_seen_it(trials: list[Trial]) -> None:
    for trial in trials:
        tested = {each for test in trial.tests for each in test}
        enrolled = {each for agent in trial.enrolled for each in agent}
        impostors = {each for agent in trial.impostors for each in agent}
        assert all(len(test) == 1 for test in trial.tests)
        assert all(len(whose(agent)) == 1 for agent in (*trial.enrolled, *trial.impostors))
        assert not tested & enrolled
        assert whose(tested) == whose(enrolled)
        assert not whose(tested) & whose(trial.learned_from)
        assert whose(impostors) == whose(trial.learned_from)
        assert max(enrolled | impostors) < AGENTS * TEXTS  # By their cards, whatever way is tested.


def test_everybody_is_tested_once_in_every_way(trials: list[Trial]) -> None:
    tested = [each for trial in trials for test in trial.tests for each in test]
    assert len(tested) == len(set(tested))
    cards = {each for each in tested if each < AGENTS * TEXTS}
    assert whose(cards) == set(range(AGENTS))
    assert set(tested) - cards == set(range(AGENTS * TEXTS, 2 * AGENTS * TEXTS))


def without(ways: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {way: each for way, each in ways.items() if way != name}


FEW: dict[str, tuple[dict[str, Tensor], str]] = {
    "five agents": (drawn(1, agents=5), "5 agents with 3 texts each are too few"),
    "one text": (drawn(1, texts=1), "10 agents with 1 texts each are too few"),
    "no card": (without(drawn(1), "card"), "10 agents by reworded"),
    "others in another way": (drawn(1) | {"memory": drawn(1, agents=9)["card"]}, "9 agents by memory"),
    "nothing": ({}, "The deviations are of"),
}


@pytest.mark.parametrize("name", sorted(FEW))
def test_too_little_is_refused_before_anything_is_learned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways, problem = FEW[name]
    monkeypatch.setattr("unspoken.identity.projection.plain", lambda *_: pytest.fail("it learned"))
    with pytest.raises(UsageError, match=problem):
        learn(SPEC, COHORT, ways, learner="plain")


def test_as_many_agents_as_are_asked_for_are_enough() -> None:
    found = learn(SPEC, COHORT, drawn(3, agents=6, texts=2))
    assert found.info.calibration.scale > 0


def test_an_unknown_learner_is_refused() -> None:
    with pytest.raises(UsageError, match="no projection named 'magic'"):
        learn(SPEC, COHORT, drawn(1), learner="magic")


def test_it_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    learn(SPEC, COHORT, drawn(3), learner="plain", watch=lambda done, total, _: told.append((done, total)))
    assert told == [(at, 6) for at in range(7)]


@pytest.mark.parametrize("count", [10_000, 20_000, 70_000])
def test_alarms_are_quantiles_of_strangers(count: int) -> None:
    strangers = np.random.default_rng(0).normal(size=count)
    found = _alarms(strangers)
    assert [alarm.share for alarm in found] == list(SHARES)
    for alarm in found:
        assert alarm.llr == -np.quantile(-strangers, alarm.share, method="inverted_cdf")


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=600, unique=True))
def test_no_more_strangers_reach_an_alarm_than_it_says(strangers: list[float]) -> None:
    scores, found = np.array(strangers), _alarms(np.array(strangers))
    assert [alarm.share for alarm in found] == sorted((alarm.share for alarm in found), reverse=True)
    for alarm in found:
        reached = int((scores >= alarm.llr).sum())
        assert 1 <= reached <= alarm.share * len(scores) * (1 + 1e-9) < reached + 1
    if len(scores) < 100:
        assert found == (Alarm(max(strangers), 1 / len(scores)),)
