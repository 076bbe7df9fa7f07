"""Figures of made-up runs against values worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unspoken.lab.metrics import compute
from unspoken.lab.statistics import holm, mcnemar


def test_arm_figures_are_those_of_the_batch(usual: Any) -> None:
    arms = usual.metrics["arms"]
    assert {arm: of["accuracy"] for arm, of in arms.items()} == {
        "none": 0.25,
        "full-text": 1.0,
        "text@8": 0.5,
        "kv": 0.75,
        "kv-deranged": 0.25,
    }
    assert arms["kv"]["contained"] == 0.75
    assert arms["kv"]["bytes"] == 1_712_169
    assert all(of["n"] == 8 and of["failures"] == 0 for of in arms.values())
    assert all(of["low"] <= of["accuracy"] <= of["high"] for of in arms.values())


def test_times_are_those_of_items_run_alone(usual: Any, build: Callable[..., Any]) -> None:
    text = usual.metrics["arms"]["text@8"]
    assert text["timed_items"] == 2
    assert text["seconds_total"] == 3.0
    assert text["seconds_first_token"] == pytest.approx(3.0 * 3 / 4)
    assert build({"kv": "10"}, timed=0).metrics["arms"]["kv"]["seconds_total"] is None


def test_content_gain_is_paired(usual: Any) -> None:
    gain = usual.metrics["content_gain"]
    assert gain["mean"] == 0.5
    # Four items only kv got right, none only kv-deranged: two tails of one in sixteen.
    assert gain["p"] == pytest.approx(2 / 16)
    assert usual.metrics["presence_effect"]["mean"] == 0.0


def test_no_spread_between_sources_gives_no_interval(build: Callable[..., Any]) -> None:
    # Each source has one item that only kv gets right and one that both do: every resample gives one half.
    gain = build({"kv": "11111111", "kv-deranged": "01010101"}).metrics["content_gain"]
    assert (gain["mean"], gain["low"], gain["high"]) == (0.5, 0.5, 0.5)


def test_clusters_widen_the_interval(build: Callable[..., Any]) -> None:
    row = "1111" * 4 + "0000" * 4
    widths = []
    for per_source in (1, 4):
        kv = build({"kv": row}, per_source=per_source).metrics["arms"]["kv"]
        widths.append(kv["high"] - kv["low"])
    assert widths[1] > 1.5 * widths[0]


def test_pgr(usual: Any) -> None:
    gap = usual.metrics["pgr"]
    assert gap["none"]["mean"] == 0.0
    assert gap["full-text"]["mean"] == 1.0
    assert gap["kv"]["mean"] == pytest.approx((0.75 - 0.25) / (1.0 - 0.25))


def test_pgr_is_undefined_where_reading_does_not_help(build: Callable[..., Any]) -> None:
    metrics = build({"none": "1100", "full-text": "1100", "kv": "1111"}).metrics
    assert metrics["pgr"]["kv"]["mean"] is None


def test_claims(usual: Any) -> None:
    claim = usual.metrics["claims"]["text@8"]
    assert claim["accuracy_difference"]["mean"] == 0.25
    assert claim["accuracy_holds"] is False
    assert claim["time_ratio"]["mean"] == pytest.approx(3.0)
    assert claim["time_holds"] is True
    assert claim["timed_items"] == 2


def test_claims_of_an_untimed_run(build: Callable[..., Any]) -> None:
    claim = build({"kv": "1111", "text": "0000"}, timed=0).metrics["claims"]["text"]
    assert claim["accuracy_holds"] is True
    assert claim["time_holds"] is False
    assert claim["time_ratio"]["mean"] is None


def test_failures_stay_in_the_denominator(build: Callable[..., Any]) -> None:
    kv = build({"kv": "1111"}, failed={"kv": 1}).metrics["arms"]["kv"]
    assert (kv["n"], kv["failures"], kv["accuracy"]) == (4, 1, 0.75)


def test_equality_needs_the_whole_interval_within_the_margin(build: Callable[..., Any]) -> None:
    same = build({"full-text": "1110", "kv": "1110"}).metrics["kv_equals_full_text"]
    other = build({"full-text": "1110", "kv": "1000"}).metrics["kv_equals_full_text"]
    assert same["equal"] is True
    assert other["equal"] is False
    assert other["mean"] == -0.5


def test_comparisons_with_kv_are_corrected_as_one_family(usual: Any) -> None:
    against = usual.metrics["against_kv"]
    assert set(against) == {"none", "full-text", "text@8", "kv-deranged"}
    assert against["text@8"]["mean"] == 0.25
    assert {arm: of["p_holm"] for arm, of in against.items()} == holm({arm: of["p"] for arm, of in against.items()})


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_mcnemar_by_hand() -> None:
    # Five differ, four one way and one the other: 2 * (1 + 5) / 32.
    assert mcnemar([True] * 4 + [False], [False] * 4 + [True]) == pytest.approx(12 / 32)
    assert mcnemar([True, False], [True, False]) == 1.0


def test_run_without_kv_lacks_what_needs_it(build: Callable[..., Any]) -> None:
    metrics = build({"none": "00", "full-text": "11"}).metrics
    assert not {"content_gain", "presence_effect", "kv_equals_full_text"} & set(metrics)
    assert metrics["claims"] == {}
    assert metrics["against_kv"] == {}


def test_fewer_than_620_items_are_a_pilot(build: Callable[..., Any]) -> None:
    assert build({"kv": "1" * 619}, per_source=20).metrics["pilot"] is True
    assert build({"kv": "1" * 620}, per_source=20).metrics["pilot"] is False


def test_same_samples_in_any_order_give_same_figures(usual: Any) -> None:
    assert compute(usual.experiment, usual.samples[::-1], usual.env) == usual.metrics
