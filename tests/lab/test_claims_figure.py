"""The founding claim's figure: a line for each cell that tests it, and marks where the figures are."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from unspoken.lab.claims_figure import claims_figure


def test_only_cells_with_text_and_a_cache_are_drawn(build: Callable[..., Any]) -> None:
    tested = build({"text@32": "0011", "text-asked": "0111", "kv": "1111", "kv-deranged": "0000"}).metrics
    untested = build({"none": "0000", "kv": "1111"}).metrics
    drawn = claims_figure({"facts/tiny/fake": tested, "reading/tiny/fake": untested})
    assert drawn == claims_figure({"facts/tiny/fake": tested})
    # Two text arms, each with a mark for accuracy, one for time, and one in the legend.
    assert drawn.count("<use ") >= 6
    assert "<text" not in drawn


def test_the_same_figures_give_the_same_bytes_and_other_figures_do_not(build: Callable[..., Any]) -> None:
    def drawn(row: str) -> str:
        return claims_figure({"facts/tiny/fake": build({"text": "0011", "kv": row, "kv-deranged": "0000"}).metrics})

    assert drawn("1111") == drawn("1111")
    assert drawn("1111") != drawn("0111")
    assert all(each.startswith("claims-") for each in re.findall(r'\bid="([^"]+)"', drawn("1111")))


def test_a_cell_without_content_gain_bears_a_dagger(build: Callable[..., Any]) -> None:
    def daggers(wrong: str) -> int:
        metrics = build({"text": "00110011" * 8, "kv": "1111" * 16, "kv-deranged": wrong * 16}).metrics
        return claims_figure({"facts/tiny/fake": metrics}).count("†")

    # One in the legend; letters are drawn as outlines, with what they say in comments.
    assert (daggers("0000"), daggers("1111")) == (1, 2)
