"""The report: one file, offline, safe to open, the same bytes for the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unspoken.lab.report import examples, record, render

from .markup import Markup, fetched

EVIL = "<script>alert('x')</script>"


def rendered(run: Any) -> str:
    return render(run.experiment, run.samples, run.metrics, run.env)


@pytest.fixture(scope="module")
def page(usual: Any) -> str:
    return rendered(usual)


def test_same_run_gives_same_bytes(usual: Any, page: str) -> None:
    assert render(usual.experiment, usual.samples[::-1], usual.metrics, usual.env) == page


def test_nothing_is_fetched(page: str) -> None:
    assert fetched(page) == []


def test_page_is_well_formed(page: str) -> None:
    markup = Markup(page)
    assert markup.open == []
    assert len(markup.ids) == len(set(markup.ids))


def test_page_has_everything_in_order(page: str) -> None:
    headings = [
        "Did understanding move",
        "What was done",
        "How often the receiver was right",
        "Results",
        "What it costs: bytes",
        "What it costs: time",
        "The founding claim: 8",
        "Three questions",
        "Run record",
        "How to read the numbers",
    ]
    places = [page.index(f"{heading}", page.index("<body>")) for heading in headings]
    assert places == sorted(places)
    for text in ("Not shown (pilot)", "unspoken prove --items 8", "c0ffee", "deadbeef", "feed", "8.00 GB", "moved"):
        assert text in page


def test_words_of_models_are_escaped(build: Callable[..., Any]) -> None:
    run = build({"kv": "10", "text": "10"}, timed=0, answer=EVIL, message=EVIL * 10, question=EVIL, gold=EVIL)
    page = rendered(run)
    markup = Markup(page)
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    # The data of the list of questions, and what shows it.
    assert markup.scripts == 2


def test_untimed_run_has_no_time_section(build: Callable[..., Any]) -> None:
    page = rendered(build({"none": "10"}, timed=0, env={}))
    assert "What it costs: time" not in page
    assert "The founding claim: 8" not in page
    assert "not recorded" in page


def test_failed_items_are_shown_as_such(build: Callable[..., Any]) -> None:
    page = rendered(build({"kv": "10"}, timed=0, failed={"kv": 1}))
    assert "no answer: Too long." in page


def test_examples_are_those_that_tell(build: Callable[..., Any]) -> None:
    rows = {"kv": "011100111111", "kv-deranged": "110011111110"}
    run = build(rows, per_source=4)
    # Source 00: its third item is the first that only kv got right; 02: its last; 01 has none.
    assert [each.item for each in examples(run.samples, run.experiment.arms)] == ["00-002", "02-011", "01-004"]
    fused = build({"fused:x": rows["kv"], "fused-deranged:x": rows["kv-deranged"]}, per_source=4)
    assert [each.item for each in examples(fused.samples, fused.experiment.arms)] == ["00-002", "02-011", "01-004"]
    few = build({"kv": "11"})
    assert [each.item for each in examples(few.samples, few.experiment.arms)] == ["00-000", "00-001"]


def test_record_names_what_was_not_recorded(usual: Any) -> None:
    groups = dict(record(usual.experiment, usual.metrics, {}))
    assert dict(groups["run"])["id"] == "not recorded"
    assert dict(groups["experiment"])["seed"] == "7"


def test_a_run_with_caches_of_several_sizes_shows_what_fewer_bytes_are_worth(build: Callable[..., Any]) -> None:
    run = build({"none": "00", "kv": "11", "kv+int8": "11", "kv+int4": "10", "kv-deranged": "00"})
    metrics = run.metrics
    for at, arm in enumerate(("kv", "kv+int8", "kv+int4"), start=1):
        metrics["arms"][arm]["bytes"] = 9000.0 / at
    page = render(run.experiment, run.samples, metrics, run.env)
    assert "What fewer bytes are worth" in page
    assert "content gain, points" in page
    markup = Markup(page)
    assert len(markup.ids) == len(set(markup.ids))
    assert "What fewer bytes are worth" not in rendered(build({"none": "00", "kv": "11"}))


def test_several_senders_are_named(build: Callable[..., Any], usual: Any) -> None:
    page = rendered(build({"kv": "11"}, env=usual.env | {"task": {"name": "halves", "senders": 2}}))
    assert "The agents lyra, cc read a part of a text each" in page
    assert "An agent called lyra read a text" in rendered(usual)
