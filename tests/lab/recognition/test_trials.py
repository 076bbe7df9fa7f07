"""From features to scores: planted agents are told apart, and where there is nothing to see nothing is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unspoken.identity.learning import learn
from unspoken.identity.metrics import eer
from unspoken.lab.recognition.baselines import baselines, fourier, stylometry
from unspoken.lab.recognition.collect import Collector
from unspoken.lab.recognition.scores import Scores, read_scores, write_scores
from unspoken.lab.recognition.trials import Measured, laid_out, plainly


def rate(found: Scores) -> float:
    """Return the EER."""
    trials = found.trials()
    return eer(trials.scores, trials.target)


@pytest.fixture(scope="module")
def measured(collected: Collector) -> Measured:
    """The small study with what was learned from its agents of development."""
    background = learn(
        collected.engine.spec, tuple(each.card for each in collected.people.cohort), collected.developed()
    )
    return Measured(collected, background)


class TestConditions:
    def test_every_condition_compares_each_cache_with_each_agent(self, measured: Measured) -> None:
        found = dict(measured.conditions())
        assert list(found) == list(measured.collector.plan.conditions)
        for name, scores in found.items():
            texts = 6 if name == "self-written" else 3
            assert scores.scores.shape == (5 * texts, 5)
            assert scores.trials().targets == 5 * texts
            assert np.array_equal(scores.tested, np.repeat(np.arange(5), texts))

    def test_scores_are_those_of_one_cache_at_a_time(self, measured: Measured) -> None:
        found = dict(measured.conditions())["reworded"]
        cache = measured.collector.load("reworded", measured.names[3])["deviation"][1]
        alone = measured.background.llrs(measured.background.signatures(cache)[None], measured.enrolled)
        np.testing.assert_allclose(found.scores[3 * 3 + 1], alone[0], rtol=1e-4, atol=1e-4)

    def test_codecs_change_next_to_nothing(self, measured: Measured) -> None:
        found = dict(measured.conditions())
        card, moved = found["card"].scores, found["kv+float32"].scores
        assert np.corrcoef(card.ravel(), moved.ravel())[0, 1] > 0.99

    def test_fewer_texts_of_enrolment_are_the_first_ones(self, measured: Measured) -> None:
        all_texts = measured.by_enrolment("card", 2).scores
        np.testing.assert_allclose(all_texts, dict(measured.conditions())["card"].scores, rtol=1e-5, atol=1e-5)
        assert not np.allclose(measured.by_enrolment("card", 1).scores, all_texts)


class TestSpliced:
    def test_windows_belong_to_whoever_made_them(self, measured: Measured) -> None:
        found = measured.spliced()
        counts = [windows.shape[1] for windows, _ in measured.windows()]
        assert len(found.partner) == 5 * sum(counts)
        first = counts[0]
        half = first // 2
        assert found.scores.tested[:first].tolist() == [0] * half + [1] * (first - half)
        assert found.partner[:first].tolist() == [1] * half + [0] * (first - half)

    def test_shares_count_right_windows(self, measured: Measured) -> None:
        scores = np.array([[3.0, 1.0, 9.0], [1.0, 2.0, 0.0], [5.0, 4.0, 3.0]])
        found = replace(
            measured.spliced(),
            scores=Scores(scores, np.array([0, 1, 1]), np.array([0, 0, 0])),
            partner=np.array([1, 0, 0]),
        )
        assert found.shares() == {"between_two": 2 / 3, "among_all": 1 / 3, "windows": 3, "columns": 16}


class TestNulls:
    def test_layer_zero_is_at_chance_exactly(self, measured: Measured) -> None:
        assert rate(dict(measured.nulls())["layer-0"]) == 0.5

    def test_twins_are_compared_with_their_like_alone(self, measured: Measured) -> None:
        found = dict(measured.nulls())["twins"]
        trials = found.trials()
        assert (trials.targets, trials.nontargets) == (2 * 3 * 3, 2 * 3 * 2 * 3)
        assert np.array_equal(trials.enrolled // 3, trials.tested // 3)

    def test_permuted_labels_keep_the_scores(self, measured: Measured) -> None:
        permuted, card = dict(measured.nulls())["permuted"], dict(measured.conditions())["card"]
        np.testing.assert_allclose(permuted.scores, card.scores)
        assert sorted(set(permuted.tested)) == sorted(set(card.tested))
        assert not np.array_equal(permuted.tested, card.tested)


class TestBaselines:
    def test_same_words_and_same_tokens_are_at_chance(self, measured: Measured) -> None:
        found = {(name, condition): scores for name, condition, scores in baselines(measured)}
        assert rate(found["stylometry", "card"]) == 0.5
        assert rate(found["layer-0-bag", "card"]) == 0.5
        names = {"stylometry", "layer-0-bag", "mean-keys", "fourier", "plain"}
        assert {name for name, condition in found if condition == "card"} == names
        assert ("stylometry", "self-written") in found

    def test_stylometry_tells_authors_of_different_habits_apart(self) -> None:
        shouting = [f"WOW!!! SUCH A {word}!!! AMAZING!!!" for word in ("RIVER", "MILL", "WHEEL", "DOG")]
        dry = [
            f"one notes, with care, that the {word} is there; however." for word in ("river", "mill", "wheel", "dog")
        ]
        found = stylometry([shouting[:2], dry[:2]], [shouting[2:], dry[2:]])
        assert rate(found) == 0.0

    def test_the_fingerprint_is_the_spectrum_over_layers(self) -> None:
        keys = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        spectrum = [sum(keys[n].flatten() * np.exp(-2j * np.pi * k * n / 7) for n in range(7)) for k in (0, 1)]
        expected = torch.cat([each.abs() / each.abs().norm() for each in spectrum])
        torch.testing.assert_close(fourier(keys), expected)

    def test_plain_cosines_ignore_rounding(self) -> None:
        base = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1)).expand(3, 4, 8)
        noisy = base + 1e-7 * torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
        assert rate(plainly(noisy, noisy)) == pytest.approx(0.5)


class TestScores:
    def test_written_scores_are_read_back(self, tmp_path: Path) -> None:
        scores = np.array([[1.5, np.nan], [0.25, -2.0]])
        write_scores(tmp_path, {"nulls/a": Scores(scores, np.array([0, 1]), np.array([4, 4]))}, {"names": ["x"]})
        found, facts = read_scores(tmp_path)
        np.testing.assert_array_equal(found["nulls/a"].scores, scores)
        assert found["nulls/a"].tested.tolist() == [0, 1]
        assert facts == {"names": ["x"]}

    def test_pairs_that_are_no_trial_are_left_out(self) -> None:
        trials = Scores(np.array([[1.0, np.nan], [2.0, 3.0]]), np.array([0, 1]), np.array([0, 0])).trials()
        assert trials.scores.tolist() == [1.0, 2.0, 3.0]
        assert trials.target.tolist() == [True, False, True]

    def test_laid_out_goes_agent_after_agent(self) -> None:
        found = laid_out(np.zeros((6, 3)), 3, 2)
        assert found.tested.tolist() == [0, 0, 1, 1, 2, 2]
        assert found.text.tolist() == [0, 1, 0, 1, 0, 1]
