"""The page of a study and its verdict: one file, offline, safe to open, and words that turn with the numbers."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from tests.lab.markup import Markup, fetched
from unspoken.lab.recognition import tables
from unspoken.lab.recognition.page import baselines, enrolment, layers, open_set, record, render
from unspoken.lab.recognition.plan import CONDITIONS, RecognitionPlan

from . import made_up

EVIL = "<script>alert('x')</script>"
PLAN = RecognitionPlan(agents=8, test_texts=6)
METRICS = made_up.metrics()
SCORES = made_up.scores()
SECTIONS = {
    "What was done": None,
    "How often agents are mistaken": "conditions",
    "Misses against false alarms": "scores",
    "Scores of an agent's own caches": "scores",
    "Other ways to look": "baselines",
    "<h2>Strangers": "open_set",
    "<h2>Spliced caches": "spliced",
    "How many texts it takes": "enrolment",
    "Where in the model": "layers",
    "A map of the agents": "map",
    "What was learned beforehand": "background",
    "What this does not show": None,
    "Run record": None,
    "How to read the numbers": None,
}


@pytest.fixture(scope="module")
def page() -> str:
    return render(PLAN, METRICS, SCORES, made_up.ENV)


@pytest.fixture
def metrics() -> dict[str, Any]:
    return copy.deepcopy(METRICS)


def rate(eer: float, low: float | None = None, high: float | None = None, enough: bool = True) -> dict[str, Any]:
    return {"eer": eer, "low": low, "high": high, "targets": 600, "nontargets": 17400, "enough_errors": enough}


def met() -> dict[str, Any]:
    """A study in which every goal is met."""
    asked = [name for name in CONDITIONS if name in {name for name, *_ in (*tables.GOALS, *tables.KEPT)}]
    return {
        "conditions": {name: rate(0.004, 0.001, 0.008) for name in asked},
        "nulls": {name: rate(0.49, 0.45, 0.54) for name in made_up.NULLS},
        "baselines": {"stylometry": {"card": rate(0.5, 0.5, 0.5)}},
        "gate": {"passed": True},
    }


def test_same_study_gives_same_bytes(page: str) -> None:
    plain = {name.removeprefix("conditions/"): found for name, found in reversed(SCORES.items())}
    assert render(PLAN, copy.deepcopy(METRICS), plain, made_up.ENV) == page


def test_nothing_is_fetched(page: str) -> None:
    assert fetched(page) == []


def test_page_is_well_formed(page: str) -> None:
    markup = Markup(page)
    assert markup.open == []
    assert len(markup.ids) == len(set(markup.ids))


def test_page_has_everything_in_order(page: str) -> None:
    places = [page.index(heading, page.index("<body>")) for heading in SECTIONS]
    assert places == sorted(places)
    for text in (
        "unspoken identity evaluate study.yaml",
        "c0ffee",
        "feed",
        "8.00 GB",
        "gate",
        "3,600 caches",
        "facade",
    ):
        assert text in page
    for name in (*METRICS["conditions"], *METRICS["nulls"], *METRICS["baselines"]):
        assert tables.meaning(name).replace("'", "&#39;") in page
    assert all(f">{sentence}</span>" in page for sentence in tables.sentences(METRICS))
    # Eight agents read six texts: few errors, and the page explains what that means.
    assert "the rule of 30" in page


def test_what_is_missing_is_left_out() -> None:
    page = render(PLAN, {"conditions": {}, "model": {"name": "made-up"}}, {}, {})
    body = page[page.index("<body>") :]
    assert [heading for heading in SECTIONS if heading in body] == [
        heading for heading, needs in SECTIONS.items() if needs is None
    ]
    assert "Not shown" in body
    assert "not recorded" in body
    assert "<svg" not in body
    assert Markup(page).open == []


def test_parts_are_left_out_one_by_one(metrics: dict[str, Any]) -> None:
    for key in ("baselines", "spliced", "layers", "layers_reworded", "map"):
        del metrics[key]
    del metrics["conditions"]["unshared"]
    page = render(PLAN, metrics, {"conditions/card": SCORES["conditions/card"]}, made_up.ENV)
    gone = {"Other ways to look", "<h2>Spliced caches", "Where in the model", "A map of the agents"}
    assert [heading for heading in SECTIONS if heading not in page] == [each for each in SECTIONS if each in gone]
    assert "Condition <b>card</b>" in page
    assert "det_handed" not in page
    assert "Not measured: unshared." in page


def test_words_of_others_are_escaped(metrics: dict[str, Any]) -> None:
    metrics["conditions"][EVIL] = metrics["conditions"].pop("memory")
    metrics["model"] = {"name": EVIL}
    metrics["map"]["names"][0] = EVIL
    metrics["background"]["learner"] = EVIL
    metrics["baselines"][EVIL] = metrics["baselines"].pop("plain")
    for key in ("layers", "layers_reworded", "enrolment"):
        del metrics[key]
    scores = {"conditions/card": SCORES["conditions/card"], f"conditions/{EVIL}": SCORES["conditions/memory"]}
    page = render(PLAN, metrics, scores, {"run": EVIL, "machine": {EVIL: [EVIL]}})
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert Markup(page).scripts == 1


def test_record_groups_what_was_recorded() -> None:
    groups = record(PLAN, METRICS, made_up.ENV)
    assert groups["study"]["agents"] == 8
    assert groups["code"] == {"commit": "c0ffee", "changed since": "nothing"}
    assert groups["machine"]["memory"] == "8.00 GB"
    assert groups["gate"]["passed"] is True
    assert groups["other"] == {"task": made_up.ENV["task"]}
    # What the environment lacks, the metrics may have.
    assert record(PLAN, METRICS, {})["model"] == METRICS["model"]


def test_a_study_that_meets_everything_says_so() -> None:
    found = tables.findings(met())
    assert [each.standing for each in found] == ["met"] * len(found)
    assert len(found) == len(tables.GOALS) + 5
    assert tables.answer(met()) == "yes"
    assert all(each.text.endswith(": met.") for each in found)
    assert "at an equal error rate of 0.40 % (95 % interval 0.10 to 0.80); at most 1 %" in found[0].text


CASES = {
    "card": ({"conditions": {"card": rate(0.0101, 0.005, 0.02)}}, "As they were", "missed, though the interval", "no"),
    "reworded": ({"conditions": {"reworded": rate(0.021, 0.0201, 0.03)}}, "in other words", "2 % was asked for: missed",
                 "in part"),
    "wide": ({"conditions": {"reworded": rate(0.02, 0.01, 0.03)}}, "in other words",
             "met, though the interval reaches above it.", "yes"),
    "dialogue": ({"conditions": {"dialogue": rate(0.12, 0.11, 0.13)}}, "conversation", "12.0 % (95 % interval 11.0 to",
                 "in part"),
    "int8": ({"conditions": {"kv+int8": rate(0.0241)}}, "kv+int8", "+2.01 points; at most 2 more were allowed: missed.",
             "in part"),
    "int8 just": ({"conditions": {"kv+int8": rate(0.024)}}, "kv+int8", "+2.00 points; at most 2 more were allowed: met",
                  "yes"),
    "int8 in floats": ({"conditions": {"card": rate(0.009), "kv+int8": rate(0.029)}}, "kv+int8", "allowed: met",
                       "yes"),
    "better": ({"conditions": {"llamacpp": rate(0.0)}}, "llama.cpp", "-0.40 points; at most 2 more were allowed: met.",
               "yes"),
    "null": ({"nulls": {"twins": rate(0.4, 0.3, 0.49)}}, "nothing to see", "is not: twins 40.0 % [30.0, 49.0]: missed",
             "not shown"),
    "null below": ({"nulls": {"layer-0": rate(0.6, 0.51, 0.7)}}, "nothing to see", "no other figure here counts",
                   "not shown"),
    "exact null": ({"nulls": {"layer-0": rate(0.5, 0.5, 0.5)}}, "nothing to see", "layer-0 50.0 % [50.0, 50.0]", "yes"),
    "style": ({"baselines": {"stylometry": {"card": rate(0.003)}}}, "stylometry", "0.40 %: missed.", "in part"),
    "gate": ({"gate": {"passed": False}}, "gate", "no figure counts", "not shown"),
    "few": ({"conditions": {"card": rate(0.004, 0.001, 0.008, enough=False)}}, "Fewer than 30", "seen with card: such",
            "yes"),
    "no error": ({"conditions": {"card": rate(0.0, 0.0, 0.0)}}, "As they were", "(no error in 600 trials of the same",
                 "yes"),
    "pilot": ({"pilot": True}, "pilot", "3,000 comparisons", "yes"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_turns_with_the_numbers(case: str) -> None:
    change, which, words, answer = CASES[case]
    study = met()
    for key, value in change.items():
        study[key] = study[key] | value if isinstance(value, dict) and key in study else value
    (sentence,) = [each for each in tables.sentences(study) if which in each]
    assert words in sentence
    assert tables.answer(study) == answer
    # A sentence says in words what its standing is.
    for each in tables.findings(study):
        assert each.standing == "open" or "gate" in each.text or f": {each.standing}" in each.text


@pytest.mark.parametrize(
    ("gone", "said"),
    [("memory", "memory"), ("kv+int8", "kv+int8"), ("llamacpp", "another engine"), ("nulls", "controls with nothing")],
)
def test_what_was_not_measured_is_named(gone: str, said: str) -> None:
    study = met()
    study.pop(gone, None) or study["conditions"].pop(gone)
    assert any(each.startswith(f"Not measured: {said}") for each in tables.sentences(study))
    assert tables.answer(study) == ("not shown" if gone == "nulls" else "yes")


def test_nothing_measured_shows_nothing() -> None:
    assert tables.answer({}) == "not shown"
    assert [each.standing for each in tables.findings({})] == ["open"]


def test_the_terminal_shows_the_same_cells_in_eighty_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables.terminal(made_up.metrics()))
    shown = console.export_text()
    assert "…" not in shown
    lines = tables.results(METRICS).lines
    assert [line.cells["name"].text for line in lines] == [*METRICS["conditions"], *METRICS["nulls"]]
    for line in lines:
        (row,) = [each for each in shown.splitlines() if each.startswith(f"{line.cells['name'].text} ")]
        assert all(line.cells[key].text in row for key in tables.SHORT)


def test_cells() -> None:
    study = {"conditions": {"card": rate(0.0, 0.0, 0.0, enough=False), "memory": rate(0.1, 0.0905, 0.11)}}
    card, memory = tables.results(study).lines
    assert card.cells["eer"].text == f"0.00 {tables.FEW}"
    assert memory.cells["eer"].text == "10.0 [9.05, 11.0]"
    assert (memory.cells["errors"].text, memory.cells["nontargets"].text) == ("60", "17,400")
    assert memory.cells["cllr"].text == "-"


def test_baselines_stand_in_columns() -> None:
    grid = baselines({"conditions": {"card": rate(0.01), "kv": rate(0.02)}, "baselines": {"a": {"card": rate(0.3)}}})
    assert [column.title for column in grid.columns] == ["condition", "this signature", "a"]
    assert [[cell.text for cell in line.cells.values()] for line in grid.lines] == [["card", "1.00", "30.0"]]


def test_enrolment_and_layers_are_sorted_by_number() -> None:
    grid = enrolment({"enrolment": {"10": {"card": 0.01}, "9": {"card": 0.02, "memory": 0.3}}})
    assert [line.cells["name"].text for line in grid.lines] == ["9", "10"]
    assert grid.lines[1].cells["of memory"].text == "-"
    grid = layers({"layers": {"values": [0.5, 0.1], "keys": [0.5]}})
    assert [[cell.text for cell in line.cells.values()] for line in grid.lines] == [
        ["0", "50.0", "50.0"],
        ["1", "10.0", "-"],
    ]


def test_an_open_set_may_have_no_threshold_of_its_background() -> None:
    told = {"dir": 0.98, "false_alarm": None, "threshold": 3.2, "known": 300, "unknown": 0, "fixed": None}
    (line,) = open_set({"open_set": {"card": told}}).lines
    texts = [line.cells[key].text for key in ("dir", "false_alarm", "threshold", "fixed_dir", "known")]
    assert texts == ["98.0", "-", "3.20", "-", "300"]


def test_every_condition_of_a_study_is_explained() -> None:
    assert set(CONDITIONS) <= {*tables.TOLD, *tables.HANDED}
    assert tables.meaning("kv+int8+blosc2").startswith("the sender's cache")
    assert tables.kind_of("kv+anything") == "handed"
