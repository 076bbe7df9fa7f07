"""Every registered task asks the same again, and can be answered from its source and from nothing else."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from unspoken.errors import StorageError, UsageError
from unspoken.lab.record import open_finished
from unspoken.lab.runner import load_task, task_hash
from unspoken.lab.tasks import TASKS, build_task
from unspoken.lab.tasks.forms import form_named
from unspoken.lab.tasks.private_facts import FACTS, KINDS, OPENINGS, OPTIONS, PLACES, REMARKS, PrivateFacts
from unspoken.lab.tasks.protocol import Item, Measure, Source, state_of

SEEDS = (0, 1, 20261123)
SHEETS = """
task: sheets
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
doc_to_source: prompt_A
doc_to_text: prompt_B
doc_to_choice: options
doc_to_target: label
metric: options
metadata: {{version: 1}}
"""


def _rows(task: str) -> list[dict[str, Any]]:
    """Made-up lines of the file of a task that has one."""
    if task == "reading":
        return [
            {
                "title": "Inns",
                "context": f"Inn {at} is run by Anna{at}. It has {at + 2} rooms.",
                "qas": [
                    {"id": f"{at}a", "question": f"Who runs inn {at}?", "answers": [f"Anna{at}", f"by Anna{at}"]},
                    {"id": f"{at}b", "question": f"How many rooms has inn {at}?", "answers": [f"{at + 2}"]},
                ],
            }
            for at in range(40)
        ]
    if task == "countries":
        return [
            {"prompt_A": f"Uma is at tower {at}.", "prompt_B": "Which country is Uma located in?", "country": "Peru"}
            for at in range(70)
        ]
    names = ["Atlas LLC", "Sable LLC", "Trace LLC"]
    ask = "You must invest in exactly one of Atlas LLC, Sable LLC, Trace LLC.\nThe company name is:"
    return [
        {"prompt_A": f"Sales {at}. Atlas LLC is fine.", "prompt_B": ask, "options": names, "label": names[at % 3]}
        for at in range(70)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., str]:
    """Write a task's made-up lines, or others, into a file."""

    def written(task: str, lines: Sequence[object] | None = None) -> str:
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines or _rows(task)), encoding="utf-8")
        return str(path)

    return written


@pytest.fixture(params=sorted(TASKS))
def task(request: pytest.FixtureRequest, data: Callable[..., str]) -> Any:
    """A registered task: a test that takes it runs for each."""
    kind = TASKS.load(request.param)
    if request.param == "described":
        lines = Path(data("tipsheets"))
        description = lines.with_name("sheets.yaml")
        description.write_text(SHEETS.format(file=lines.name), encoding="utf-8")
        return kind(str(description))
    return kind(data(request.param)) if hasattr(kind, "FORMAT") else kind()


@pytest.fixture(params=SEEDS)
def facts(request: pytest.FixtureRequest) -> list[tuple[Source, Item]]:
    """Three hundred questions of the private facts, with their sources."""
    return [(source, item) for source in PrivateFacts().sources(300, request.param) for item in source.items]


def _count(words: str, text: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(words)}(?!\w)", text))


def test_a_task_is_known_by_its_registered_name(task: Any) -> None:
    assert task.name in TASKS
    assert task.version
    assert task.measure in get_args(Measure)


def test_the_same_seed_asks_the_same_and_another_seed_something_else(task: Any) -> None:
    assert task.sources(30, 5) == task.sources(30, 5)
    assert task.sources(30, 5) != task.sources(30, 6)


def test_there_are_at_least_as_many_questions_as_asked_for(task: Any) -> None:
    for wanted in (2, 7, 48):
        assert sum(len(source.items) for source in task.sources(wanted, 0)) >= wanted


def test_questions_and_sources_are_named_apart(task: Any) -> None:
    sources = task.sources(60, 0)
    items = [item.id for source in sources for item in source.items]
    assert len(set(items)) == len(items)
    read = {(source.text, state_of(source.id)) for source in sources}
    assert len({source.id for source in sources}) == len(read) == len(sources)


def test_the_gold_answer_is_one_of_the_options(task: Any) -> None:
    for source in task.sources(60, 0):
        for item in source.items:
            assert item.question.strip()
            assert item.gold.strip()
            assert not item.options or item.options.count(item.gold) == 1


def test_more_questions_go_on_where_fewer_ended(task: Any) -> None:
    few, more = task.sources(24, 9), task.sources(60, 9)
    assert more[: len(few)] == few


def test_a_task_judged_by_options_has_them_and_an_open_one_has_none(task: Any) -> None:
    for source in task.sources(60, 0):
        for item in source.items:
            assert bool(item.options) == (task.measure == "options")


FROM_FILES = ("countries", "reading", "tipsheets")


@pytest.mark.parametrize("name", FROM_FILES)
def test_a_task_from_a_file_needs_one_and_says_which(name: str, data: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match="asks from a file") as refused:
        build_task(name)
    assert "one JSON object per line" in refused.value.hint
    assert build_task(name, data(name)).sources(10, 0)
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        build_task(name, "missing.jsonl").sources(10, 0)


def test_a_task_that_needs_no_file_refuses_one() -> None:
    with pytest.raises(UsageError, match="reads no file"):
        build_task("private-facts", "facts.jsonl")


def test_options_of_a_task_are_those_of_its_constructor() -> None:
    assert build_task("private-facts") == PrivateFacts()
    for text, problem in (
        ("private-facts:colour=red", "has no option 'colour'"),
        ("private-facts:version=2", "has no option 'version'"),
        ("private-facts@", "empty or given twice"),
        ("riddles@4", "no task named 'riddles'"),
    ):
        with pytest.raises(UsageError, match=problem):
            build_task(text)


@pytest.mark.parametrize("name", FROM_FILES)
def test_a_malformed_line_is_named_by_its_number(name: str, data: Callable[..., str], tmp_path: Path) -> None:
    good = _rows(name)[0]
    key = {"reading": "context", "countries": "country", "tipsheets": "label"}[name]
    for bad in ([1], {}, good | {key: "  "}, good | {key: 7}):
        with pytest.raises(UsageError, match=r"Line 2 of the data file .* is not what it should be") as refused:
            build_task(name, data(name, [good, bad, good])).sources(2, 0)
        assert refused.value.hint.startswith("Expected: one JSON object per line")
    path = tmp_path / "bytes.jsonl"
    for content in (b"{\n", b'{"a": "\xff"}\n', b"\x00"):
        path.write_bytes(b"\n" + content)
        with pytest.raises(UsageError, match="Line 2 of the data file"):
            build_task(name, str(path)).sources(2, 0)
    path.write_bytes(b"\n \n")
    with pytest.raises(UsageError, match="has no lines"):
        build_task(name, str(path)).sources(2, 0)


def test_a_label_that_is_no_option_is_malformed(data: Callable[..., str]) -> None:
    bad = _rows("tipsheets")[0] | {"label": "Nobody LLC"}
    with pytest.raises(UsageError, match="is not one of the options"):
        build_task("tipsheets", data("tipsheets", [bad])).sources(2, 0)


@pytest.mark.parametrize("name", FROM_FILES)
def test_a_file_with_too_few_questions_says_how_many_it_holds(name: str, data: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match=r"holds \d+ questions, and 500 were asked for"):
        build_task(name, data(name)).sources(500, 0)


def test_the_same_text_on_two_lines_is_one_source(data: Callable[..., str]) -> None:
    first, second = _rows("countries")[:2]
    sources = build_task("countries", data("countries", [first, second, first | {"prompt_B": "Where?"}])).sources(3, 0)
    assert sorted(len(source.items) for source in sources) == [1, 2]


def test_reading_keeps_every_right_answer_once(data: Callable[..., str]) -> None:
    row = {"context": "A b.", "qas": [{"question": " Who? ", "answers": ["Anna", "by Anna", "Anna"]}]}
    ((item,),) = [source.items for source in build_task("reading", data("reading", [row])).sources(1, 0)]
    assert item.golds == ("Anna", "by Anna")
    assert item.question == "Who? Answer briefly."


def test_the_open_end_of_a_tip_sheets_question_begins_the_answer(data: Callable[..., str]) -> None:
    item = build_task("tipsheets", data("tipsheets")).sources(2, 0)[0].items[0]
    assert item.stem == "The company name is:"
    assert item.question == "You must invest in exactly one of Atlas LLC, Sable LLC, Trace LLC."


def test_what_committed_runs_asked_is_asked_still() -> None:
    results = Path(__file__).resolve().parents[2] / "results" / "prove"
    for path in sorted(results.glob("*/metrics.json")):
        folder = open_finished(path.parent)
        assert task_hash(load_task(folder.experiment())[1]) == folder.env()["task"]["hash"]


def test_the_gold_answer_is_in_the_text_exactly_once(facts: list[tuple[Source, Item]]) -> None:
    for source, item in facts:
        assert _count(item.gold, source.text) == 1
        assert _count(f"{item.stem} {item.gold}.", source.text) == 1
        assert _count(item.stem, source.text) == 1


def test_the_question_alone_does_not_hold_the_answer(facts: list[tuple[Source, Item]]) -> None:
    for _, item in facts:
        assert not any(_count(option, f"{item.question} {item.stem}") for option in item.options)


def test_six_options_of_one_kind_two_of_them_in_the_text(facts: list[tuple[Source, Item]]) -> None:
    kinds = [set(kind.values) for kind in KINDS]
    for source, item in facts:
        assert len(set(item.options)) == len(item.options) == OPTIONS == 6
        assert list(item.options) == sorted(item.options)
        assert sum(set(item.options) <= kind for kind in kinds) == 1
        assert sum(_count(option, source.text) for option in item.options) == 2


def test_no_place_in_a_source_is_used_twice(facts: list[tuple[Source, Item]]) -> None:
    for source in {source.id: source for source, _ in facts}.values():
        assert len(source.items) == FACTS == 6
        stems = [item.stem for item in source.items]
        assert len({stem.split()[1] for stem in stems}) == len({stem.split()[2] for stem in stems}) == FACTS


def test_guessing_gets_one_in_six(facts: list[tuple[Source, Item]]) -> None:
    # No position in the list of options is favoured: a receiver that always takes the same one is at chance.
    count = len(facts)
    hits = [sum(item.options[at] == item.gold for _, item in facts) for at in range(OPTIONS)]
    assert sum(hits) == count
    # Four standard deviations of a binomial with one in six.
    spread = 4 * (count * (1 / 6) * (5 / 6)) ** 0.5
    assert all(abs(hit - count / 6) < spread for hit in hits)


def test_values_of_different_kinds_do_not_overlap() -> None:
    values = [value for kind in KINDS for value in kind.values]
    assert len(set(values)) == len(values)


def test_longer_texts_say_the_same_and_nothing_more() -> None:
    usual, long = (build_task(f"private-facts:fillers={count}").sources(12, 5) for count in (3, 400))
    assert usual == build_task("private-facts").sources(12, 5)
    values = {value for kind in KINDS for value in kind.values}
    for short, source in zip(usual, long, strict=True):
        assert source.items == short.items
        sentences = source.text.split(". ")
        facts = [at for at, sentence in enumerate(sentences) if set(sentence.rstrip(".").split()) & values]
        assert (len(facts), len(sentences), len(set(sentences))) == (FACTS, FACTS + 400, FACTS + 400)
        # Facts stand all over the text.
        assert max(after - before for before, after in itertools.pairwise([0, *facts, len(sentences)])) < 80
        assert not any(place in filler for filler in (*OPENINGS, *REMARKS) for place in PLACES)
    assert len(build_task("private-facts:fillers=0").sources(6, 5)[0].text.split(". ")) == FACTS
    with pytest.raises(UsageError, match="'500' fillers"):
        build_task("private-facts:fillers=500")


@pytest.mark.parametrize("form", ["list", "table", "json", "german", "spanish"])
def test_another_form_has_the_same_facts_and_questions(form: str) -> None:
    stated = form_named(form)
    assert len(stated.statements) == len(KINDS)
    values = {value for kind in KINDS for value in kind.values}
    assert stated.values.keys() <= values
    # Two values of a kind must not become one.
    assert all(len({stated.values.get(value, value) for value in kind.values}) == len(kind.values) for kind in KINDS)
    for usual, source in zip(
        build_task("private-facts").sources(60, 5), build_task(f"private-facts:form={form}").sources(60, 5), strict=True
    ):
        assert source.items == usual.items
        assert source.text != usual.text
        for item in source.items:
            assert stated.values.get(item.gold, item.gold) in source.text
    if form == "json":
        assert len(json.loads(source.text)) == FACTS


def test_a_form_that_there_is_not_or_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UsageError, match="stated as 'verse'"):
        build_task("private-facts:form=verse")
    with pytest.raises(UsageError, match="cannot be shared out"):
        build_task("private-facts:form=list@2")


def test_two_senders_contradict_each_other_in_every_fact() -> None:
    first, second = (build_task(f"conflict:says={who}").sources(24, 3) for who in ("first", "second"))
    for one, other in zip(first, second, strict=True):
        assert (one.text, one.parts, len(one.parts)) == (other.text, other.parts, 2)
        for item, same in zip(one.items, other.items, strict=True):
            assert (item.id, item.question, item.options) == (same.id, same.question, same.options)
            assert item.gold != same.gold
            assert f"{item.stem} {item.gold}." in one.parts[0]
            assert f"{item.stem} {same.gold}." in one.parts[1]
            assert f"{item.stem} {same.gold}." not in one.parts[0]
    with pytest.raises(UsageError, match="no sender 'third'"):
        build_task("conflict:says=third")
