"""How an answer is judged, against the rules of SQuAD's evaluation script."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unspoken.lab.measures import chosen, contained, exact_match, f1, kl_divergence, normalised

logits = st.lists(st.floats(-8, 8, width=32), min_size=5, max_size=5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Old Mill.", "old mill"),
        ("  an   apple, a day ", "apple day"),
        ("Theatre another", "theatre another"),
        ("Anna's", "annas"),
        ("12,345.67", "1234567"),
        ("naïve", "naïve"),
        ("", ""),
    ],
)
def test_text_is_normalised_as_for_squad(text: str, expected: str) -> None:
    assert normalised(text) == expected


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    # Removing punctuation can join letters to an article ("t.he"); from then on nothing is left to remove.
    once = normalised(normalised(text))
    assert normalised(once) == once


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "inside", "score"),
    [
        ("Bob.", "bob", True, True, 1.0),
        ("the Bob", "Bob", True, True, 1.0),
        ("It is Bob", "Bob", False, True, 0.5),
        ("Bobby", "Bob", False, False, 0.0),
        ("old red mill", "old mill", False, False, 0.8),
        # Precision 1/2, recall 1: their harmonic mean is 2/3.
        ("cat sat", "cat", False, True, 2 / 3),
        ("Bob Bob", "Bob", False, True, 2 / 3),
        ("", "Bob", False, False, 0.0),
        ("mill old", "old mill", False, False, 1.0),
    ],
)
def test_answers_are_judged_by_their_words(answer: str, gold: str, exact: bool, inside: bool, score: float) -> None:
    assert exact_match(answer, gold) is exact
    assert contained(answer, gold) is inside
    assert f1(answer, gold) == pytest.approx(score)


@given(st.text("ab c", max_size=12), st.text("ab c", max_size=12))
def test_f1_is_symmetric_and_one_only_for_the_same_words(left: str, right: str) -> None:
    assert f1(left, right) == f1(right, left)
    assert 0.0 <= f1(left, right) <= 1.0
    if f1(left, right) == 1.0:
        assert sorted(normalised(left).split()) == sorted(normalised(right).split())


def test_the_most_probable_option_is_chosen_and_the_first_of_equals() -> None:
    assert chosen((-3.0, -1.0, -2.0)) == 1
    assert chosen((-1.0, -1.0, -2.0)) == 0
    assert chosen((-5.0,)) == 0


def test_kl_divergence_of_two_coins_is_the_known_value() -> None:
    fair, biased = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    # Cover and Thomas, Elements of Information Theory, eq. 2.26, in nats.
    assert kl_divergence(fair, biased) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-5)
    assert kl_divergence(biased, fair) == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-5)


@given(logits, logits)
def test_kl_divergence_equals_a_loop_and_is_never_negative(left: list[float], right: list[float]) -> None:
    p, q = (torch.tensor(each).log_softmax(dim=0) for each in (left, right))
    loop = sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    assert kl_divergence(p, q) == pytest.approx(max(loop, 0.0), abs=1e-5)
    assert kl_divergence(p, q) >= 0.0
    assert kl_divergence(p, p) == 0.0


@pytest.mark.parametrize("gold", ["A", "The", "?!"])
def test_an_empty_answer_is_not_a_right_one_that_is_an_article(gold: str) -> None:
    assert not exact_match("", gold)
    assert not contained("", gold)
    assert exact_match(gold.lower(), gold)
    assert contained(gold, gold)
