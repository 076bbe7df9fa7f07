"""A run's table for other programs: the figures of the metrics, no more and no less."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import Any

import pytest

from unspoken.lab.export import as_csv, as_latex, as_markdown


def test_csv_has_every_figure_unrounded(usual: Any) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(usual.metrics))))
    assert [line["arm"] for line in lines] == ["none", "full-text", "text@8", "kv", "kv-deranged"]
    for line in lines:
        told = usual.metrics["arms"][line["arm"]]
        assert float(line["accuracy"]) == told["accuracy"]
        assert [float(line[f"score{end}"]) for end in ("", "_low", "_high")] == list(told["score"].values())
        assert (line["seconds_total"] == "") is (told["seconds_total"] is None)
    against = usual.metrics["against_kv"]["text@8"]
    assert float(lines[2]["less_subject"]) == against["mean"]
    assert float(lines[2]["p_holm"]) == against["p_holm"]
    assert lines[3]["less_subject"] == ""
    assert float(lines[3]["content_gain"]) == usual.metrics["gain"]["kv"]["mean"]


def test_a_sweep_has_its_cells_named(usual: Any, build: Callable[..., Any]) -> None:
    sweep = {"cells": {"one/m/e": usual.metrics, "two/m/e": build({"kv": "10", "none": "00"}).metrics}}
    lines = list(csv.DictReader(io.StringIO(as_csv(sweep))))
    assert [line["cell"] for line in lines] == ["one/m/e"] * 5 + ["two/m/e"] * 2
    assert as_markdown(sweep).count("| --- |") == 2
    assert "**two/m/e**" in as_markdown(sweep)
    assert as_latex(sweep).count(r"\begin{tabular}") == 2


def test_latex_has_a_cell_for_each_column_and_escapes_what_it_must(build: Callable[..., Any]) -> None:
    latex = as_latex(build({"none": "0000", "full-text": "1111", "kv": "1110", "kv-deranged": "0001"}).metrics)
    (layout,) = re.findall(r"\\begin\{tabular\}\{(l?r*)\}", latex)
    lines = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 5
    assert {line.count("&") + 1 for line in lines} == {len(layout)}
    body = latex.partition("\n")[2]
    assert not re.search(r"(?<!\\)[%#_]", body)
    assert "$-$75.0" in body


@pytest.mark.parametrize("form", [as_csv, as_latex, as_markdown])
def test_the_same_run_gives_the_same_bytes(usual: Any, form: Callable[..., str]) -> None:
    assert form(usual.metrics) == form(usual.metrics)
