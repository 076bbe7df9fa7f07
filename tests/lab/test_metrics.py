"""Figures of made-up runs against values worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from unspoken.lab.metrics import compute
from unspoken.lab.record import open_finished
from unspoken.lab.report import render
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
    assert metrics["reading_gain"]["mean"] == 0


def test_pgr_is_undefined_where_reading_may_not_help(build: Callable[..., Any]) -> None:
    # Reading helps on average, but half of the texts speak against it.
    metrics = build({"none": "00110011", "full-text": "11101110", "kv": "11111111"}).metrics
    gain = metrics["reading_gain"]
    assert gain["mean"] > 0 >= gain["low"]
    assert metrics["pgr"]["kv"] == {"mean": None, "low": None, "high": None}


def test_claims(usual: Any) -> None:
    claim = usual.metrics["claims"]["text@8"]
    assert claim["accuracy_difference"]["mean"] == 0.25
    assert claim["accuracy_holds"] is False
    assert claim["time_ratio"]["mean"] == pytest.approx(3.0)
    assert claim["time_ratio"]["low"] == pytest.approx(3.0)
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
    same = build({"full-text": "1110" * 30, "kv": "1110" * 30}).metrics["kv_equals_full_text"]
    other = build({"full-text": "1110" * 30, "kv": "1000" * 30}).metrics["kv_equals_full_text"]
    for arm, equal in (("1110", True), ("1000", False)):
        found = build({"kv": "1110" * 30, "kv-deranged": arm * 30}).metrics["no_content"]
        assert found["equal"] is equal
        assert (found["level"], found["margin"]) == (0.9, 0.05)
    assert same["equal"] is True
    assert other["equal"] is False
    assert other["mean"] == -0.5


def test_few_texts_show_no_equality(build: Callable[..., Any]) -> None:
    # 58 texts of which none differs: if one in twenty does, that happens 5.1 % of the time; with 59, 4.9 %.
    assert 0.95**58 > 0.05 > 0.95**59
    for sources, equal in ((58, False), (59, True)):
        found = build({"kv": "10" * sources, "full-text": "10" * sources}).metrics["kv_equals_full_text"]
        assert (found["low"], found["high"], found["equal"]) == (0, 0, equal)


def test_equality_is_rarely_said_of_what_differs_by_the_margin(build: Callable[..., Any]) -> None:
    rng, said = np.random.default_rng(20261129), 0
    for _ in range(60):
        # On 59 texts of one question each; kv is wrong on one in twenty that reading has right.
        kv = "".join("01"[int(each)] for each in rng.random(59) >= 0.05)
        said += build({"full-text": "1" * 59, "kv": kv}, per_source=1).metrics["kv_equals_full_text"]["equal"]
    assert said <= 8


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
    assert not {"content_gain", "no_content", "presence_effect", "kv_equals_full_text"} & set(metrics)
    assert metrics["claims"] == {}
    assert metrics["against_kv"] == {}


def test_fewer_than_620_items_are_a_pilot(build: Callable[..., Any]) -> None:
    assert build({"kv": "1" * 619}, per_source=20).metrics["pilot"] is True
    assert build({"kv": "1" * 620}, per_source=20).metrics["pilot"] is False


def test_same_samples_in_any_order_give_same_figures(usual: Any) -> None:
    assert compute(usual.experiment, usual.samples[::-1], usual.env) == usual.metrics


def test_score_is_accuracy_where_nothing_else_was_judged(usual: Any) -> None:
    for of in usual.metrics["arms"].values():
        assert of["score"] == {"mean": of["accuracy"], "low": of["low"], "high": of["high"]}
    assert usual.metrics["measure"] == "options"


def test_differences_are_those_of_the_score_and_mcnemar_counts_right_and_wrong(build: Callable[..., Any]) -> None:
    run = build({"none": "0000", "kv": "1110", "kv-deranged": "1000", "full-text": "1111"}, per_source=1, timed=0)
    scores = {"none": 0.0, "kv": 0.5, "kv-deranged": 0.2, "full-text": 0.8}
    samples = [msgspec.structs.replace(each, score=scores[each.arm]) for each in run.samples]
    metrics = compute(run.experiment, samples, run.env)
    assert metrics["arms"]["kv"]["accuracy"] == 0.75
    assert metrics["arms"]["kv"]["score"]["mean"] == 0.5
    assert metrics["content_gain"]["mean"] == pytest.approx(0.3)
    assert metrics["presence_effect"]["mean"] == pytest.approx(0.2)
    assert metrics["pgr"]["kv"]["mean"] == pytest.approx(0.5 / 0.8)
    assert metrics["kv_equals_full_text"]["mean"] == pytest.approx(-0.3)
    # Two items only kv got right, none only kv-deranged: two tails of one in four.
    assert metrics["content_gain"]["p"] == pytest.approx(2 / 4)


def test_every_cache_arm_has_its_content_gain_and_its_share_of_kvs(build: Callable[..., Any]) -> None:
    rows = {"none": "00000000", "text@8": "11110000", "kv": "11111100", "need@0.3": "11110000", "kv+int4": "11000000"}
    metrics = build(rows | {"kv-zero": "00000000", "kv-deranged": "11000000"}).metrics
    assert set(metrics["gain"]) == {"kv", "need@0.3", "kv+int4"}
    assert [metrics["gain"][arm]["mean"] for arm in ("kv", "need@0.3", "kv+int4")] == [0.5, 0.25, 0.0]
    shares = {arm: of["share_of_kv_gain"] for arm, of in metrics["gain"].items()}
    assert {of["mean"] for of in shares.values()} == {None}, "four texts, one of which kv gains nothing on"
    metrics = build({arm: row * 8 for arm, row in (rows | {"kv-deranged": "11000000"}).items()}).metrics
    shares = {arm: of["share_of_kv_gain"] for arm, of in metrics["gain"].items()}
    assert shares["kv"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert shares["need@0.3"]["mean"] == pytest.approx(0.5)
    assert shares["need@0.3"]["low"] <= 0.5 <= shares["need@0.3"]["high"]
    assert (
        metrics["gain"]["kv"].items() >= {key: metrics["content_gain"][key] for key in ("mean", "low", "high")}.items()
    )


def test_a_way_is_measured_against_its_own_control_where_that_was_run(build: Callable[..., Any]) -> None:
    rows = {"kv": "11111100", "need@0.3": "11110000", "kv+int4": "11110000", "kv-deranged": "00000000"}
    gain = build(rows | {"deranged:need@0.3": "11000000"}).metrics["gain"]
    assert set(gain) == {"kv", "need@0.3", "kv+int4"}
    assert (gain["need@0.3"]["mean"], gain["need@0.3"]["control"]) == (0.25, "deranged:need@0.3")
    assert (gain["kv+int4"]["mean"], gain["kv"]["mean"]) == (0.5, 0.75)
    assert "control" not in gain["kv+int4"]


def test_without_a_gain_of_kv_its_share_is_undefined(build: Callable[..., Any]) -> None:
    metrics = build({"kv": "1100", "kv-deranged": "1100", "kv+int8": "1111"}).metrics
    assert metrics["gain"]["kv+int8"]["share_of_kv_gain"]["mean"] is None
    assert "share_of_kv_gain" not in build({"kv-deranged": "10", "kv+int8": "11"}).metrics["gain"]["kv+int8"]


PROVEN = Path(__file__).resolve().parents[2] / "results" / "prove"
COMMITTED = [path.parent for path in sorted(PROVEN.glob("*/metrics.json"))]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_runs_still_decode_render_and_give_the_figures_they_gave(path: Path) -> None:
    folder = open_finished(path)
    samples = folder.samples()
    metrics = compute(folder.experiment(), samples, folder.env())
    _require_held(json.loads((path / "metrics.json").read_bytes()), json.loads(json.dumps(metrics)), path.name)
    page = render(folder.experiment(), samples, metrics, folder.env())
    assert page.startswith("<!DOCTYPE html>")
    # Figures that have no scores yet can be drawn, too.
    assert render(folder.experiment(), samples, json.loads((path / "metrics.json").read_bytes()), folder.env())


def _require_held(old: Any, new: Any, where: str) -> None:
    """Require every figure of the old metrics in the new ones, which may have more."""
    if isinstance(old, dict):
        for key, value in old.items():
            assert key in new, where
            _require_held(value, new[key], f"{where}/{key}")
    else:
        assert new == (pytest.approx(old, rel=1e-12) if isinstance(old, float) else old), where
