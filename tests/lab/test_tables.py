"""The results table in its forms."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from unspoken.channels import CHANNELS
from unspoken.channels.activation import HOW
from unspoken.channels.compose import COMPOSERS
from unspoken.channels.scorers import SCORERS
from unspoken.lab import columns, tables
from unspoken.lab.arms import CONTROLS


def test_terminal_and_markdown_show_the_same_cells(usual: Any) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables.terminal(usual.metrics))
    shown = console.export_text()
    written = tables.markdown(usual.metrics).replace("\\*", "*")
    for row in tables.rows(usual.metrics):
        for column in columns.COMPACT:
            text = row.cells[column.key].text.strip()
            assert text in shown
            assert f"| {text} |" in written


def test_terminal_fits_eighty_columns(usual: Any) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables.terminal(usual.metrics))
    assert "…" not in console.export_text()


def test_markdown_is_a_table(usual: Any) -> None:
    lines = tables.markdown(usual.metrics).splitlines()
    bars = {line.count("|") for line in lines if line.startswith("|")}
    assert bars == {len(columns.COMPACT) + 1}
    assert sum(line.startswith("|") for line in lines) == 2 + 5


def test_cells(usual: Any) -> None:
    cells = {row.arm: row.cells for row in tables.rows(usual.metrics)}
    kv, text = cells["kv"], cells["text@8"]
    assert kv["accuracy"].text.startswith("75.0 [")
    assert kv["bytes"].text == "1.71 MB"
    assert kv["pgr"].text == "67"
    assert kv["vs_kv"].text == tables.MISSING
    assert text["vs_kv"].text.strip() == "-25.0"
    assert text["total"].text == "3.00"
    assert text["vs_kv_interval"].order == -0.25


def test_star_marks_a_difference_that_is_more_than_chance(build: Callable[..., Any]) -> None:
    metrics = build({"kv": "1" * 12, "none": "0" * 12}).metrics
    assert tables.rows(metrics)[0].cells["vs_kv"].text == "-100.0 *"


def test_untimed_run_has_no_times(build: Callable[..., Any]) -> None:
    (row,) = tables.rows(build({"none": "10"}, timed=0).metrics)
    assert row.cells["total"].text == row.cells["first"].text == tables.MISSING


def test_rows_go_by_family() -> None:
    arms = ("kv-zero", "kv", "text", "full-text", "none")
    assert tables.ordered(arms) == ["none", "text", "full-text", "kv", "kv-zero"]
    assert [tables.family(arm) for arm in arms] == ["control", "content", "text", "text", "control"]


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("none", "only the question"),
        ("text@32", "at most 32 tokens, written by the sender not knowing the question"),
        ("text-asked@16", "at most 16 tokens, written by the sender knowing the question"),
        ("kv+int8", "the sender's cache of the text, sent as int8"),
        ("kv+bfloat16+blosc2", "the sender's cache of the text, sent as bfloat16+blosc2"),
        ("need@0.3", "30 % of the sender's cache of the text: what the sender looks at for the question"),
        ("need:random@0.15+int8", "15 % of the sender's cache of the text: columns drawn at random, sent as int8"),
        ("need:backfill=2@0.3", "for the question, 2 directions of the rest added to the values"),
        ("layers", "in 70 % of the layers"),
        ("layers:published@0.3", "in 30 % of the layers; in the others the question can see ahead"),
        ("layers:alpha=0.8@0.3", "in 30 % of the layers, attention counting for 0.8 in the choice"),
        ("compose", "one behind the other"),
        ("compose:legolink", "the first 16 tokens of each later one read again"),
        ("compose:blend@0.15", "15 % of the tokens read again"),
        ("latent", "0 steps of thought"),
        ("latent:realign@20", "20 steps of thought without words, mapped back"),
        ("embedding:temperature=0.5", "at most 32 mixtures of words, written by the sender not knowing the question"),
        ("activation:sum@20", "added to its own"),
        ("finetune", "a sender with other weights"),
        ("finetune:10-19+int8", "other weights, its layers 10-19 computed anew, sent as int8"),
        ("kv-half", "what the channel 'kv-half' hands over"),
        ("need:opening@0.3+int8", "what the channel 'need:opening@0.3' hands over, sent as int8"),
        ("kv:fast=1", "what the channel 'kv:fast=1' hands over"),
        ("kv+", "what the channel 'kv' hands over"),
    ],
)
def test_what_was_received_in_words(arm: str, words: str) -> None:
    assert words in tables.received(arm)


def test_every_channel_and_variant_has_a_sentence() -> None:
    variants = {
        "need": SCORERS.names(),
        "layers": ("causal", "published"),
        "compose": tuple(COMPOSERS),
        "latent": ("realign",),
        "activation": tuple(HOW),
        "finetune": ("0-1",),
    }
    arms = [*CHANNELS, *CONTROLS, *(f"{name}:{each}" for name, found in variants.items() for each in found)]
    assert [arm for arm in arms if "hands over" in tables.received(arm)] == []


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (1_712_169.2, "1.71 MB"),
        (3e13, "30.0 TB"),
    ],
)
def test_size(count: float | None, shown: str) -> None:
    assert tables.size(count) == shown


def test_small_numbers() -> None:
    assert tables.points(-0.0001) == tables.points(0.0) == "0.0"
    assert tables.percent(-0.0001) == "0.0"
    assert tables.points(0.1) == "+10.0"
    assert tables.probability(1e-9) == "<0.001"
    assert tables.probability(0.04321) == "0.043"
    assert tables.seconds(14.85) == "14.8"
    assert tables.seconds(123.4) == "123"


def test_frontier_table_measures_every_arm_by_kv(build: Callable[..., Any]) -> None:
    rows = {"none": "0000", "text@8": "1100", "kv": "1110", "kv+int8": "1100", "kv-deranged": "1000"}
    metrics = build({arm: row * 8 for arm, row in rows.items()}, per_source=4).metrics
    metrics["arms"]["kv+int8"]["bytes"] = metrics["arms"]["kv"]["bytes"] / 2
    cells = {row.arm: row.cells for row in tables.rows(metrics)}
    assert [cells[arm]["bytes_share"].text for arm in ("none", "kv", "kv+int8")] == ["0.0", "100.0", "50.0"]
    assert cells["kv"]["gain_share"].text == "100 [100, 100]"
    assert cells["kv+int8"]["gain_share"].text.startswith("50 [")
    assert cells["text@8"]["gain_share"].text == tables.MISSING
    assert cells["kv"]["score"].text == cells["kv"]["accuracy"].text
    written = tables.frontier_markdown(metrics)
    assert {line.count("|") for line in written.splitlines()} == {len(columns.FRONTIER) + 1}


def test_the_short_table_of_open_answers_shows_f1_in_place_of_what_was_said(usual: Any) -> None:
    shown, note = columns.compact(usual.metrics | {"measure": "f1"})
    assert [column.key for column in shown][:3] == ["arm", "accuracy", "f1"]
    assert shown[-1].title.startswith("F1 vs kv")
    assert "F1" in note
    assert "right or wrong" in note
    assert columns.compact(usual.metrics)[0] == columns.COMPACT


def test_the_full_table_has_the_columns_of_its_measure(usual: Any) -> None:
    def shown(**more: Any) -> dict[str, columns.Column]:
        return {column.key: column for column in columns.full(usual.metrics | more)}

    options, said, words = shown(), shown(measure="contained"), shown(measure="f1", subject="fused:x")
    assert "most probable" in options["accuracy"].hint
    assert "contained" in options
    assert "stands in the words" in said["accuracy"].hint
    assert not {"contained"} & (said.keys() | words.keys())
    assert "own" in shown(twins={"questions": 8})["accuracy"].hint
    # Differences are those of the score that stands beside them.
    assert list(words)[4] == "score"
    assert words["vs_kv_interval"].title == "F1 difference to fused, points"
    assert "score" not in options.keys() | said.keys()
    assert not any("{" in column.hint for column in options.values())


def test_few_bytes_are_not_shown_as_none(build: Callable[..., Any]) -> None:
    metrics = build({"none": "00", "text@8": "11", "kv": "11"}).metrics
    shares = {row.arm: row.cells["bytes_share"].text for row in tables.rows(metrics)}
    assert shares == {"none": "0.0", "text@8": "<0.1", "kv": "100.0"}
