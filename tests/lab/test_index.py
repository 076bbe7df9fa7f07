"""All runs at a glance, whatever state they are in, and a page that links to their reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unspoken.errors import StorageError
from unspoken.lab.index import index
from unspoken.lab.report import page


@pytest.fixture
def results(usual: Any, tmp_path: Path) -> Path:
    """A folder with a run, a sweep of two, a benchmark, one that is not finished, and one that is damaged."""
    kept: dict[str, Any] = {
        "prove/20260101T000000Z-a": usual.metrics,
        "claims/20260105T000000Z-b": {"cells": {"one/m/e": usual.metrics, "two/m/e": usual.metrics}},
        "bench-serve/20260103T000000Z-c": {"model": "m", "rows": []},
        "prove/20260104T000000Z-d": None,
        "prove/20260102T000000Z-e": {"arms": {"kv": 3}},
    }
    for name, metrics in kept.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "env.json").write_text("{}")
        if metrics is not None:
            (folder / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "prove/20260101T000000Z-a/report.html").write_text("<html></html>")
    (tmp_path / "prove" / "empty").mkdir()
    return tmp_path


def test_the_newest_comes_first_and_cells_are_told_each(results: Path) -> None:
    found = index(results)
    assert [(each.experiment, each.cell, each.state) for each in found] == [
        ("claims", "one/m/e", "finished"),
        ("claims", "two/m/e", "finished"),
        ("prove", "", "unfinished"),
        ("bench-serve", "", "finished"),
        ("prove", "", "damaged"),
        ("prove", "", "finished"),
    ]
    last = found[-1]
    assert (last.items, last.pilot, last.verdict) == (8, True, "not shown")
    assert last.told.startswith("content gain +50.0 [")
    assert last.report == "prove/20260101T000000Z-a/report.html"


def test_of_a_sweep_that_is_not_finished_the_cells_that_are_are_told(usual: Any, tmp_path: Path) -> None:
    folder = tmp_path / "claims" / "20260101T000000Z-a"
    cell = folder / "cells" / "private-facts-m-fake"
    cell.mkdir(parents=True)
    (folder / "env.json").write_text("{}")
    (folder / "config.yaml").write_text("name: claims\nmodel: m\nengine: fake\ncells: [{label: ''}, {label: more}]\n")
    (cell / "metrics.json").write_text(json.dumps(usual.metrics))
    (cell / "report.html").write_text("<html></html>")
    done, left = index(tmp_path)
    assert (done.cell, done.state, done.items) == ("private-facts/m/fake", "finished", 8)
    assert done.report == "claims/20260101T000000Z-a/cells/private-facts-m-fake/report.html"
    assert (left.cell, left.state, left.told) == ("", "unfinished", "1 of 2 cells are finished")
    (folder / "config.yaml").write_text("name: claims\ncells: 3\n")
    assert [each.state for each in index(tmp_path)] == ["damaged"]


def test_a_run_without_the_right_and_the_wrong_cache_has_no_verdict(build: Any, tmp_path: Path) -> None:
    folder = tmp_path / "concat" / "20260101T000000Z-a"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(build({"none": "1000", "full-text": "1111"}).metrics))
    (found,) = index(tmp_path)
    assert found.verdict is None
    assert found.told == "none 25.0 %, full-text 100.0 %"


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"at_once": {"requests": 50, "outcomes": {"right": 49, "busy": 1}}}, "49 of 50 requests at once right"),
        ({"peak_rss_bytes": 3 << 30, "planned_bytes": 5 << 29}, "at most 3.00 GiB, 2.50 planned"),
        (
            {"trained_parameters": 1, "parameters": 2_500_000, "seconds": {"columns": 60.0, "steps": 120.0}},
            "2.5 million numbers, 3 minutes",
        ),
        ({"rows": [{"first_token_ratio": 24.1, "tokens": 2700}]}, "first token 24.1 times as fast, 2,700 tokens"),
        (
            {"rows": [{"codec": "int4", "bytes_ratio_bf16": 0.31}, {"codec": "int8", "bytes_ratio_bf16": 0.5}]},
            "fewest bytes: int4, 31 % of bfloat16's",
        ),
        ({"rows": [{"way": "plain"}]}, ""),
    ],
)
def test_a_benchmark_tells_its_main_figure(metrics: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = tmp_path / "bench" / "20260101T000000Z-a"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert index(tmp_path)[0].told == told


def test_the_page_links_to_the_reports_and_asks_nobody(results: Path) -> None:
    shown = page("index.html.j2", entries=index(results), prefix="results/")
    assert 'href="results/prove/20260101T000000Z-a/report.html"' in shown
    assert shown.count("<tr><td") == 6
    assert "8 (pilot)" in shown
    assert "http" not in shown.replace("http-equiv", "")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no results folder"):
        index(tmp_path / "away")
