"""Projections against the formulas written out in numpy, against scikit-learn, and on data whose agents are known."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from unspoken.engines.fake import FakeEngine
from unspoken.errors import UsageError
from unspoken.identity import projection
from unspoken.identity.metrics import eer
from unspoken.identity.projection import (
    PROJECTIONS,
    RIDGE,
    Learner,
    Projection,
    Site,
    at_sites,
    cosines,
    default_sites,
    deviation,
    lda,
    plain,
    unit,
    whitened,
)

LEARNERS = [plain, whitened, lda]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def agents(count: int, caches: int) -> Tensor:
    return torch.arange(count).repeat_interleave(caches)


def layers(count: int) -> list[int]:
    sites = default_sites(msgspec.structs.replace(FakeEngine().spec, layers=count))
    half = len(sites) // 2
    assert [site.part for site in sites] == ["values"] * half + ["keys"] * half
    assert [site.layer for site in sites[:half]] == [site.layer for site in sites[half:]]
    return [site.layer for site in sites[:half]]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [0]),
        (2, [1]),
        (3, [1, 2]),
        (10, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (30, [2, 5, 8, 11, 14, 17, 20, 23, 26, 29]),
        (32, [2, 5, 8, 11, 15, 18, 21, 24, 27, 31]),
    ],
)
def test_signatures_are_read_at_even_distances(count: int, expected: list[int]) -> None:
    assert layers(count) == expected


@given(st.integers(2, 200))
def test_the_last_layer_is_always_looked_at_and_layer_0_never(count: int) -> None:
    found = layers(count)
    assert found == sorted(set(found))
    assert 0 < found[0] <= found[-1] == count - 1
    assert len(found) == min(10, count) - (count <= 19)
    gaps = np.diff(found)
    assert not gaps.size or gaps.max() - gaps.min() <= 1


def test_a_deviation_is_the_difference_and_zero_where_only_rounding_differs() -> None:
    baseline = normal(3, 2, 2, 4)
    features = baseline.clone()
    features[0] *= 1 + 1e-6
    features[1, 0] += 0.5
    features[2, 1, 0, 0] += 1e-3
    found = deviation(features, baseline)
    assert not found[0].any()
    assert torch.equal(found[1, 0], features[1, 0] - baseline[1, 0])
    assert torch.equal(found[2, 1], features[2, 1] - baseline[2, 1])
    assert not found[1, 1].any()
    assert not found[2, 0].any()
    many = deviation(torch.stack([features, baseline]), baseline)
    assert torch.equal(many[0], found)
    assert not many[1].any()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_does_not_pass_for_rounding(wrong: float) -> None:
    features = torch.ones(1, 2, 1, 4)
    features[0, 1, 0, 2] = wrong
    found = deviation(features, torch.ones(1, 2, 1, 4))
    assert not found[0, 0].any()
    assert not found[0, 1].isfinite().all()


def test_sites_are_picked_with_heads_side_by_side() -> None:
    features = normal(5, 3, 2, 2, 4)
    found = at_sites(features, [Site("values", 2), Site("keys", 0), Site("values", 0)])
    assert found.shape == (5, 3, 8)
    for at, (layer, part) in enumerate([(2, 1), (0, 0), (0, 1)]):
        expected = torch.cat([features[:, layer, part, 0], features[:, layer, part, 1]], dim=-1)
        assert torch.equal(found[:, at], expected)


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(UsageError, match=f"no layer {layer} among 3"):
        at_sites(normal(3, 2, 1, 4), [Site("keys", layer)])


def by_formula(features: Tensor, whose: Tensor) -> Any:
    """W^(-1/2) as the docstring says, in float64 and in the full space."""
    given = features.to(torch.float64).numpy()
    rows = (given / np.linalg.norm(given, axis=-1).mean(axis=0)[:, None]).reshape(len(given), -1)
    apart = np.concatenate([rows[whose == each] - rows[whose == each].mean(axis=0) for each in set(whose.tolist())])
    within = apart.T @ apart / len(apart)
    values, vectors = np.linalg.eigh(within + RIDGE * np.trace(within) / len(within) * np.eye(len(within)))
    white = (rows - rows.mean(axis=0)) @ vectors @ np.diag(values**-0.5) @ vectors.T
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    return white @ white.T


@pytest.mark.parametrize(("sites", "dims", "each"), [(2, 3, 5), (1, 6, 3), (3, 40, 2)])
def test_whitening_is_the_formula(sites: int, dims: int, each: int) -> None:
    # The last case has fewer caches than dimensions, and a covariance of less than full rank.
    whose = agents(8, each)
    noise = normal(8 * each, sites, dims, seed=2) * torch.linspace(0.1, 1, dims)
    features = normal(8, sites, dims, seed=1)[whose] + noise
    found = whitened(features, whose)(features)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(whose)))
    assert cosines(found, found).numpy() == pytest.approx(by_formula(features, whose), abs=2e-4)


def test_agents_with_one_cache_each_but_for_one_agent_are_enough() -> None:
    whose = torch.tensor([0, 0, 1, 2, 3, 4])
    features = normal(6, 2, 5)
    found = whitened(features, whose)(features)
    assert cosines(found, found).numpy() == pytest.approx(by_formula(features, whose), abs=2e-4)


@pytest.mark.parametrize("learn", LEARNERS)
@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_a_sites_unit_does_not_matter(learn: Learner, factor: float) -> None:
    whose = agents(6, 4)
    features = normal(6, 3, 5, seed=1)[whose] + 0.5 * normal(24, 3, 5, seed=2)
    scaled = features * torch.tensor([1.0, factor, 1.0])[:, None]
    once, again = (learn(each, whose)(each) for each in (features, scaled))
    torch.testing.assert_close(cosines(again, again), cosines(once, once), atol=1e-3, rtol=0)


@pytest.mark.parametrize("learn", LEARNERS)
def test_no_evidence_stays_none(learn: Learner) -> None:
    whose = agents(6, 4)
    found = learn(normal(6, 3, 5, seed=1)[whose] + normal(24, 3, 5, seed=2), whose)
    mixed = normal(2, 4, 3, 5)
    mixed[1, 2] = 0
    projected = found(mixed)
    assert projected.shape[:2] == (2, 4)
    assert not projected[1, 2].any()
    assert projected.norm(dim=-1).flatten().tolist() == pytest.approx([1.0] * 6 + [0.0, 1.0])


@pytest.mark.parametrize("learn", LEARNERS)
def test_a_site_at_which_nobody_showed_anything_says_nothing_later(learn: Learner) -> None:
    whose = agents(6, 4)
    features = normal(6, 2, 5, seed=1)[whose] + 0.5 * normal(24, 2, 5, seed=2)
    features[:, 1] = 0
    later = torch.stack([features[:, 0], 100 * normal(24, 5, seed=3)], dim=1)
    found = learn(features, whose)
    torch.testing.assert_close(found(later), found(features), atol=1e-4, rtol=0)


def test_only_the_directions_of_most_variance_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "KEPT", 3)
    features, whose = normal(20, 1, 8) * torch.arange(1, 9), agents(10, 2)
    found = plain(features, whose)
    assert found.matrix.shape == (8, 3)
    rows = (features.flatten(1) / features.norm(dim=-1).mean()).to(torch.float64).numpy()
    rows -= rows.mean(axis=0)
    leading = np.linalg.svd(rows, full_matrices=False)[2][:3]
    assert (found.matrix @ found.matrix.T).numpy() == pytest.approx(leading.T @ leading, abs=1e-4)
    assert whitened(features, whose).matrix.shape == (8, 3)


def test_discriminants_are_scikit_learns() -> None:
    whose = agents(5, 6)
    features = 3 * normal(5, 2, 4, seed=1)[whose] + normal(30, 2, 4, seed=2)
    white = whitened(features, whose)
    rows = ((features / white.scale[:, None]).flatten(1) - white.shift) @ white.matrix
    expected = LinearDiscriminantAnalysis(solver="eigen", shrinkage=RIDGE).fit_transform(rows.numpy(), whose.numpy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = lda(features, whose)
    assert found.matrix.shape == (8, 4)
    assert cosines(found(features), found(features)).numpy() == pytest.approx(expected @ expected.T, abs=2e-3)


def test_discriminants_tell_separable_agents_apart() -> None:
    whose, centres = agents(5, 6), normal(5, 2, 4, seed=1)
    found = lda(3 * centres[whose] + 0.3 * normal(30, 2, 4, seed=2), whose)
    fresh = found(3 * centres[whose] + 0.3 * normal(30, 2, 4, seed=3))
    assert torch.equal(cosines(fresh, found(3 * centres)).argmax(dim=1), whose)


def error_rate(found: Projection, features: Tensor, whose: Tensor, caches: int) -> float:
    """EER of all pairs of caches with agents enrolled from their first cache."""
    signatures = found(features)
    scores = cosines(signatures, signatures[::caches])
    tested = torch.arange(len(whose)) % caches != 0
    return eer(scores[tested].flatten().double().numpy(), (whose[:, None] == whose[::caches])[tested].flatten().numpy())


def test_whitening_tells_agents_apart_where_a_nuisance_hides_them() -> None:
    nuisance, caches = normal(5, 2, 20, seed=1), 4

    def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
        whose = agents(count, caches)
        strong = torch.einsum("cn,nsd->csd", 4 * normal(len(whose), 5, seed=seed), nuisance)
        noise = 0.2 * normal(len(whose), 2, 20, seed=seed + 2)
        return normal(count, 2, 20, seed=seed + 1)[whose] + strong + noise, whose

    learned_from, tested_on = drawn(30, 10), drawn(20, 20)
    rates = {learn.__name__: error_rate(learn(*learned_from), *tested_on, caches) for learn in (plain, whitened, lda)}
    assert rates["plain"] > 0.3
    assert rates["whitened"] < 0.05
    assert rates["lda"] < 0.05


@pytest.mark.parametrize("learn", [whitened, lda])
def test_agents_with_one_cache_each_are_refused(learn: Learner) -> None:
    with pytest.raises(UsageError, match="No agent has two caches"):
        learn(normal(6, 2, 5), torch.arange(6))
    assert plain(normal(6, 2, 5), torch.arange(6)).matrix.shape == (10, 5)


@pytest.mark.parametrize("learn", LEARNERS)
@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_caches_that_all_look_the_same_are_refused(learn: Learner, seed: int | None) -> None:
    # The mean of equal numbers is off by rounding, and that is no difference between agents.
    one = torch.zeros(3, 4) if seed is None else normal(3, 4, seed=seed)
    with pytest.raises(UsageError, match="All caches look the same"):
        learn(one.repeat(7, 1, 1), torch.tensor([0, 0, 1, 1, 2, 2, 3]))


def test_lengths_are_one_or_zero() -> None:
    assert unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


def test_projections_have_names() -> None:
    assert {name: PROJECTIONS.load(name) for name in PROJECTIONS} == {"lda": lda, "plain": plain, "whitened": whitened}
    with pytest.raises(UsageError, match="no projection named 'whitend'") as told:
        PROJECTIONS.load("whitend")
    assert "'whitened'" in told.value.hint
