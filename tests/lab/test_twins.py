"""Twins: pairs are told apart by what differs between them, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.errors import UsageError
from unspoken.lab.arms import derangement
from unspoken.lab.compare import compare, open_run
from unspoken.lab.experiment import Experiment
from unspoken.lab.metrics import compute
from unspoken.lab.record import RunFolder, Sample
from unspoken.lab.tasks import build_task
from unspoken.lab.tasks.protocol import cluster_of, state_of, twin_id, words_of
from unspoken.lab.twins import TIE, paired, summary

NATS = st.floats(-5, 5, allow_nan=False)


def twins(
    margins: dict[str, tuple[float, float]], arm: str = "kv", golds: tuple[str, str] = ("yes", "no")
) -> list[Sample]:
    """Make two samples of each pair of words, with the right answer so much more probable in either state."""
    return [
        Sample(f"{twin_id(words, state)}-0", twin_id(words, state), arm, False, "Q", gold, correct=of > 0, margin=of)
        for words, both in margins.items()
        for state, gold, of in zip("ab", golds, both, strict=True)
    ]


def test_an_id_says_words_state_and_cluster() -> None:
    name = twin_id("bank.2", "b")
    assert (words_of(name), state_of(name), cluster_of(name)) == ("bank.2", "b", "bank")
    assert (words_of("0007"), state_of("0007"), cluster_of("0007")) == ("0007", "", "0007")
    assert cluster_of("a.b") == "a.b"


@given(st.dictionaries(st.sampled_from("uvwxyz"), st.tuples(NATS, NATS), min_size=1), NATS)
def test_leaning_to_one_answer_changes_nothing(margins: dict[str, tuple[float, float]], leaning: float) -> None:
    leaned = {words: (of[0] + leaning, of[1] - leaning) for words, of in margins.items()}
    clear = {words for words, of in margins.items() if abs(abs(sum(of)) - TIE) > 1e-6}
    found = {each.item: (each.correct, each.score) for each in paired(twins(margins))}
    again = {each.item: (each.correct, each.score) for each in paired(twins(leaned))}
    assert {words: found[words] for words in clear} == {words: again[words] for words in clear}


def test_a_pair_is_right_where_the_state_raises_the_right_answer() -> None:
    found = {each.item: each for each in paired(twins({"u": (3.0, -1.0), "v": (3.0, -4.0), "w": (1.0, -1.0)}))}
    assert [(found[words].correct, found[words].score) for words in "uv"] == [(True, 1.0), (False, 0.0)]
    # The same odds in both states: whoever goes by the words is right in one of two.
    assert found["w"].score == 0.5
    other = paired(twins({"w": (1.0, -1.0)}, arm="full-text"))
    assert other[0].correct == found["w"].correct


def test_ties_fall_evenly() -> None:
    right = [each.correct for each in paired(twins({f"{at:04d}": (0.0, 0.0) for at in range(1000)}))]
    assert 0.45 < np.mean(right) < 0.55


def test_a_pair_that_failed_is_wrong_and_says_why() -> None:
    samples = twins({"u": (3.0, 3.0)})
    samples[1] = Sample("u/b-0", "u/b", "kv", False, "Q", "no", error="Too long.")
    (found,) = paired(samples)
    assert (found.correct, found.score, found.error) == (False, 0.0, "Too long.")


def test_what_is_no_twin_or_alone_is_left_as_it_is() -> None:
    usual = Sample("0001-0", "0001", "kv", False, "Q", "G", correct=True)
    alone = Sample("u/a-0", "u/a", "kv", True, "Q", "yes", margin=1.0)
    assert paired([usual, alone]) == [usual, alone]
    assert summary([usual], ["kv"], 1) == {}


def test_the_area_under_the_curve_is_that_of_another_library() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(3)
    margins = {f"{at:03d}": (round(draw.normal(1), 2), round(draw.normal(0.3), 2)) for at in range(80)}
    samples = twins(margins)
    odds = [(each.margin or 0) * (1 if each.gold == "no" else -1) for each in samples]
    expected = metrics.roc_auc_score([each.gold == "no" for each in samples], odds)
    found = summary(samples, ["kv"], 1)["arms"]["kv"]
    assert found["auroc"]["mean"] == pytest.approx(expected)
    assert found["auroc"]["low"] < expected < found["auroc"]["high"]
    assert found["ties"] == 0
    # Questions with answers of their own have no curve.
    assert "auroc" not in summary([*samples, *twins({"x": (1.0, 1.0)}, golds=("red", "blue"))], ["kv"], 1)["arms"]["kv"]


def test_pairs_are_the_items_of_a_run() -> None:
    margins = {f"{at:02d}": (2.0, 1.0) for at in range(40)}
    words_alone = dict.fromkeys(margins, (2.0, -2.0))
    samples = (
        twins(margins) + twins(words_alone, "full-text") + twins(dict.fromkeys(margins, (0.5, -1.0)), "kv-deranged")
    )
    found = compute(Experiment(items=80, arms=("full-text", "kv", "kv-deranged")), samples, {})
    assert (found["items"], found["sources"]) == (40, 40)
    assert found["arms"]["full-text"]["score"]["mean"] == 0.5
    assert (found["arms"]["kv"]["accuracy"], found["content_gain"]["mean"]) == (1.0, 1.0)
    assert found["twins"]["questions"] == 80
    assert found["twins"]["arms"]["full-text"]["ties"] == 40


def test_wrong_columns_are_of_other_words_in_the_same_state() -> None:
    lengths = {
        twin_id(f"{word}.{at}", state): at for word in ("bank", "bat", "seal") for at in range(4) for state in "ab"
    }
    found = derangement(lengths)
    assert found.keys() == lengths.keys()
    for source, donor in found.items():
        assert state_of(source) == state_of(donor)
        assert cluster_of(source) != cluster_of(donor)
    with pytest.raises(UsageError, match="one source only"):
        derangement({"bank.1/a": 1, "bank.2/a": 1, "bank.1/b": 1, "bank.2/b": 1})


@pytest.mark.parametrize("variant", ["sense", "persona", "knowing"])
def test_only_the_senders_card_differs_between_twins(variant: str) -> None:
    sources = build_task(f"unsaid:{variant}").sources(60, 3)
    assert len(sources) == 60
    for first, second in zip(sources[::2], sources[1::2], strict=True):
        assert words_of(first.id) == words_of(second.id)
        assert (first.text, first.cast and first.cast.receiver) == (second.text, second.cast and second.cast.receiver)
        (one,), (other,) = first.items, second.items
        assert (one.question, one.options, one.stem) == (other.question, other.options, other.stem)
        assert {one.gold, other.gold} == set(one.options)
        assert first.cast is not None
        assert second.cast is not None
        assert first.cast.sender.card != second.cast.sender.card
        # The words do not tell: no answer stands in them.
        assert not any(f" {option} " in f" {first.text} ".replace(".", " ") for option in one.options)
    assert sources[:20] == build_task(f"unsaid:{variant}").sources(20, 3)[:20]


@pytest.mark.parametrize("variant", ["persona", "knowing"])
def test_the_names_of_the_states_tell_nothing(variant: str) -> None:
    firsts = [source for source in build_task(f"unsaid:{variant}").sources(400, 3) if state_of(source.id) == "a"]
    assert 70 < sum(source.items[0].gold == source.items[0].options[0] for source in firsts) < 130


def test_notes_have_the_answer_in_one_state_alone() -> None:
    for source in build_task("unsaid:knowing").sources(40, 1):
        place = source.text.partition(" the ")[2].rstrip("?")
        assert source.cast is not None
        assert (place.split()[0] + " " + place.split()[1] in source.cast.sender.card) == (source.items[0].gold == "yes")


def test_an_unknown_state_of_mind_is_refused() -> None:
    with pytest.raises(UsageError, match="'moods'"):
        build_task("unsaid:moods")
    with pytest.raises(UsageError, match="600 questions"):
        build_task("unsaid:sense").sources(2000, 1)


def test_two_runs_are_compared_by_their_pairs(tmp_path: Path) -> None:
    told_apart = {f"w{at}": (2.0, -1.0) for at in range(8)}
    runs = []
    for name, margins in (("all", told_apart), ("half", told_apart | {f"w{at}": (1.0, -2.0) for at in range(4)})):
        path = tmp_path / name
        path.mkdir()
        folder = RunFolder.start(path, Experiment(items=16, arms=("kv",), timed_items=0), {})
        folder.append(samples := twins(margins))
        folder.finish(samples, {}, "")
        runs.append(open_run(path))
    found = compare(*runs)
    # Single answers are right half the time in both: of those, nothing could be told.
    assert (found["paired"], found["items"]) == (True, 8)
    assert (found["arms"]["kv"]["left"], found["arms"]["kv"]["right"]) == (1.0, 0.5)
    assert found["arms"]["kv"]["p"] == 2 / 16
