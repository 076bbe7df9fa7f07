"""A description in YAML becomes a task: fields, templates, data sets, and what is wrong with them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from unspoken.cli import cli
from unspoken.errors import StorageError, UnspokenError, UsageError
from unspoken.lab.tasks import build_task
from unspoken.lab.tasks.protocol import Item
from unspoken.lab.tasks.reading import ReadingComprehension
from unspoken.lab.tasks.templates import Filled, Row

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    {"log": "Ola rows. Piet sings.", "asks": "Who rows?", "right": "Ola", "names": ["Ola", "Piet"], "label": 0},
    {"log": "Ola rows. Piet sings.", "asks": "Who sings?", "right": "Piet", "names": ["Ola", "Piet"], "label": 1},
    {"log": "Runa paints.", "asks": "Who paints?", "right": "Runa", "names": ["Runa", "Jens"], "label": 0},
]
OPEN = {
    "task": "crew",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": "crew.jsonl"},
    "doc_to_source": "log",
    "doc_to_text": "{{ asks }} Answer briefly.",
    "doc_to_target": "right",
    "metric": "contained",
    "metadata": {"version": 2.5},
}
CHOICE = OPEN | {"doc_to_choice": "names", "doc_to_target": "label", "metric": "options"}

Describe = Callable[..., Any]


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """Make the task of a description, written beside its lines; a key that is None is left out."""

    def made(says: dict[str, Any], lines: list[Any] | None = None, **changes: Any) -> Any:
        text = "".join(f"{json.dumps(line)}\n" for line in (lines if lines is not None else LINES))
        (tmp_path / "crew.jsonl").write_text(text, encoding="utf-8")
        kept = {key: value for key, value in (says | changes).items() if value is not None}
        path = tmp_path / "crew.yaml"
        path.write_bytes(msgspec.yaml.encode(kept))
        return build_task("described", str(path))

    return made


def _items(task: Any, count: int = 3) -> dict[str, Item]:
    return {item.question: item for source in task.sources(count, 0) for item in source.items}


def _refused(task: Callable[[], object], kind: type[UnspokenError] = UsageError) -> UnspokenError:
    with pytest.raises(kind) as found:
        task()
    return found.value


def test_rows_about_the_same_text_become_one_source(describe: Describe) -> None:
    sources = describe(OPEN).sources(3, 0)
    assert {source.text: len(source.items) for source in sources} == {"Ola rows. Piet sings.": 2, "Runa paints.": 1}
    assert describe(OPEN).sources(3, 0) == sources


def test_templates_and_names_of_fields_fill_a_question_in(describe: Describe) -> None:
    item = _items(describe(OPEN, stem="It is {{ right[0] }}"))["Who rows? Answer briefly."]
    assert (item.gold, item.options, item.stem, item.others) == ("Ola", (), "It is O", ())


def test_a_task_has_its_descriptions_version_and_measure(describe: Describe) -> None:
    assert (describe(OPEN).version, describe(OPEN).measure) == ("crew/2.5", "contained")
    assert describe(CHOICE).measure == "options"


@pytest.mark.parametrize("target", ["label", "right", "{{ label }}", "{{ names[label] }}"])
@pytest.mark.parametrize("choices", ["names", "{{ names }}", "{{ [names[0], names[1]] }}"])
def test_a_choice_is_right_by_its_number_or_by_its_words(describe: Describe, target: str, choices: str) -> None:
    item = _items(describe(CHOICE, doc_to_target=target, doc_to_choice=choices))["Who sings? Answer briefly."]
    assert (item.gold, item.options) == ("Piet", ("Ola", "Piet"))


@pytest.mark.parametrize(
    ("choices", "target", "gold"),
    [(["1990", "1991"], "1991", "1991"), (["3", "1"], "1", "1"), (["red", "2"], "0", "red"), (["4", "5"], "1", "5")],
)
def test_choices_that_are_numbers_are_taken_for_what_they_are(
    describe: Describe, choices: list[str], target: str, gold: str
) -> None:
    line = LINES[0] | {"names": choices, "label": target}
    (item,) = _items(describe(CHOICE, [line]), 1).values()
    assert item.gold == gold


def test_a_target_that_could_be_either_has_to_be_told(describe: Describe) -> None:
    line = LINES[0] | {"names": ["7", "2", "5"], "label": "2"}
    error = _refused(lambda: describe(CHOICE, [line]).sources(1, 0))
    assert "is one of the choices ['7', '2', '5'] and the number of another" in error.problem
    for meant, gold in (("choice", "2"), ("number", "5")):
        assert next(iter(_items(describe(CHOICE, [line], target_is=meant), 1).values())).gold == gold
    error = _refused(lambda: describe(CHOICE, [line | {"label": "7"}], target_is="number").sources(1, 0))
    assert "which is no number of these" in error.problem


def test_choices_may_be_the_same_for_all_rows(describe: Describe) -> None:
    items = _items(describe(CHOICE, doc_to_choice=["Ola", "Piet", "Runa"], doc_to_target="right"))
    assert {item.options for item in items.values()} == {("Ola", "Piet", "Runa")}


def test_further_right_answers_are_held_once(describe: Describe) -> None:
    lines = [LINES[0] | {"all": ["Ola", "old Ola", "Ola", 7]}]
    (item,) = _items(describe(OPEN, lines, further_targets="{{ all }}"), 1).values()
    assert item.golds == ("Ola", "old Ola", "7")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dokument": "x"}, "unknown field `dokument`"),
        ({"doc_to_source": None}, "missing required field `doc_to_source`"),
        ({"doc_to_text": "  "}, "doc_to_text"),
        ({"metadata": None}, "missing required field `metadata`"),
        ({"metric": "bleu"}, "Invalid enum value 'bleu'"),
        ({"metric": "options"}, "`metric: options` and `doc_to_choice` go together"),
        ({"doc_to_choice": "names"}, "`metric: options` and `doc_to_choice` go together"),
        ({"doc_to_choice": "names", "metric": "options", "further_targets": "names"}, "`further_targets` are for open"),
        ({"dataset_kwargs": {"trust_remote_code": True}}, "unknown field `trust_remote_code`"),
    ],
)
def test_a_description_that_is_not_valid_says_where_and_which_keys_there_are(
    describe: Describe, changes: dict[str, Any], problem: str
) -> None:
    error = _refused(lambda: describe(OPEN, **changes).sources(1, 0))
    assert problem in error.problem
    assert error.hint.startswith("Its keys are task, dataset_path, doc_to_source")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"doc_to_text": "{{ question }}"},
            "`doc_to_text` of .*crew.yaml cannot be filled in for row 1: 'question' is",
        ),
        ({"doc_to_source": "{{ log.body }}"}, "`doc_to_source` .* has no attribute 'body'"),
        ({"doc_to_source": "nothing"}, "`doc_to_source` of .* is 'nothing', and row 1 has no such field"),
        ({"doc_to_target": "{{ label / 0 }}"}, "`doc_to_target` .* division by zero"),
        ({"doc_to_target": "{{ none }}"}, r"`doc_to_target` .* a value is empty \(null\)"),
        ({"doc_to_target": "{{ ''.__class__.__mro__ }}"}, "`doc_to_target` .* unsafe"),
        ({"stem": "{{ names.append('x') }}"}, "`stem` .* unsafe"),
        ({"doc_to_target": "{% if 0 %}x{% endif %}"}, "`doc_to_target` .* leaves nothing for row 1"),
        ({"further_targets": "right"}, "`further_targets` .* makes no list of texts for row 1: 'Ola'"),
    ],
)
def test_a_template_that_cannot_be_filled_in_names_itself_and_the_fields(
    describe: Describe, changes: dict[str, Any], problem: str
) -> None:
    task = describe(OPEN, **changes)
    with pytest.raises(UsageError, match=problem) as refused:
        task.sources(3, 0)
    assert "The row's fields are log, asks, right, names, label." in refused.value.hint


def test_a_template_that_is_none_is_refused(describe: Describe) -> None:
    with pytest.raises(UsageError, match=r"`doc_to_text` of .* cannot be read"):
        describe(OPEN, doc_to_text="{{ asks").sources(1, 0)


def test_a_field_that_is_null_is_refused(describe: Describe) -> None:
    with pytest.raises(UsageError, match=r"`doc_to_target` of .* leaves nothing for row 1"):
        describe(OPEN, [LINES[0] | {"right": None}]).sources(1, 0)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"label": 2}, "gives '2' for row 1, which is neither one of the choices nor the number of one"),
        ({"label": "Anna"}, "gives 'Anna' for row 1, which is neither one of the choices nor the number of one"),
        ({"names": ["Ola"]}, r"`doc_to_choice` of .* gives \['Ola'\]"),
        ({"names": ["Ola", " Ola"]}, "`doc_to_choice` of .* gives"),
        ({"names": ["Ola", " "]}, "`doc_to_choice` of .* gives"),
        ({"names": [["Ola"], ["Piet"]]}, "`doc_to_choice` of .* makes no list of texts"),
    ],
)
def test_choices_and_targets_that_do_not_fit_are_refused(describe: Describe, line: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        describe(CHOICE, [LINES[0] | line]).sources(1, 0)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=5, unique_by=str.strip), st.data())
def test_any_choices_come_through_as_they_are(names: list[str], data: Any) -> None:
    row = Row(1, {"names": names, "at": data.draw(st.integers(0, len(names) - 1))})
    expected = tuple(name.strip() for name in names)
    assert Filled("doc_to_choice", "names", "x").texts(row) == expected
    assert Filled("doc_to_choice", "{{ names }}", "x").texts(row) == expected
    assert Filled("doc_to_target", "{{ names[at] }}", "x").text(row) == expected[row.fields["at"]]


@given(st.text())
def test_any_template_is_filled_in_or_refused_in_words(text: str) -> None:
    try:
        made = Filled("doc_to_text", text, "x").text(Row(1, {"a": "b"}))
    except UsageError as error:
        made = error.problem if "`doc_to_text` of x" in error.problem else ""
    assert made.strip()


def test_local_lines_are_read_without_the_library(describe: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(_items(describe(OPEN))) == 3
    hub = describe(OPEN, dataset_path="rajpurkar/squad", dataset_kwargs=None)
    error = _refused(lambda: hub.sources(1, 0), kind=StorageError)
    assert "not installed" in error.problem
    assert 'pip install "unspoken[datasets]"' in error.hint


def test_a_library_that_may_run_a_data_sets_code_is_refused(
    describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    error = _refused(lambda: describe(OPEN, dataset_path="some/set", dataset_kwargs=None).sources(1, 0))
    assert "may run code" in error.problem


def test_files_by_split_and_several_files(describe: Describe, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps(LINES[2] | {"asks": "Who else?"}), encoding="utf-8")
    files = {"train": "none.jsonl", "test": ["crew.jsonl", "more.jsonl"]}
    task = describe(OPEN, dataset_kwargs={"data_files": files}, test_split="test")
    assert len(_items(task, 4)) == 4
    error = _refused(lambda: describe(OPEN, dataset_kwargs={"data_files": files}).sources(1, 0))
    assert "has the splits train, test, and no `test_split` is named" in error.problem
    error = _refused(lambda: describe(OPEN, test_split="dev").sources(1, 0))
    assert "has the splits train, and there is no 'dev'" in error.problem


def test_files_that_are_not_there_are_named(describe: Describe, tmp_path: Path) -> None:
    error = _refused(
        lambda: describe(OPEN, dataset_kwargs={"data_files": "gone.jsonl"}).sources(1, 0), kind=StorageError
    )
    assert str(tmp_path / "gone.jsonl") in error.problem
    assert "needs files" in _refused(lambda: describe(OPEN, dataset_kwargs=None).sources(1, 0)).problem
    assert "Line 2 of the data file" in _refused(lambda: describe(OPEN, [LINES[0], [1]]).sources(1, 0)).problem


def test_too_few_rows_are_counted(describe: Describe) -> None:
    assert "holds 3 questions, and 9 were asked for" in _refused(lambda: describe(OPEN).sources(9, 0)).problem


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library `datasets`, offline, keeping what it makes in a folder of this test."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_a_folder_and_files_of_each_kind_ask_what_the_lines_ask(
    kind: str, describe: Describe, library: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    # A table of one level, so that CSV can hold it.
    held = library.Dataset.from_list([{key: row[key] for key in ("log", "asks", "right")} for row in LINES])
    file = folder / f"test.{kind}"
    getattr(held, f"to_{kind}")(str(file))
    expected = describe(OPEN).sources(3, 1)
    assert describe(OPEN, dataset_path="set", dataset_kwargs=None).sources(3, 1) == expected
    named = {"data_files": {"test": f"set/test.{kind}"}}
    assert describe(OPEN, dataset_path=kind, dataset_kwargs=named, test_split="test").sources(3, 1) == expected


def test_lists_of_a_parquet_file_are_choices(describe: Describe, library: Any, tmp_path: Path) -> None:
    library.Dataset.from_list(LINES).to_parquet(str(tmp_path / "crew.parquet"))
    task = describe(CHOICE, dataset_path="parquet", dataset_kwargs={"data_files": "crew.parquet"})
    assert task.sources(3, 0) == describe(CHOICE).sources(3, 0)


def test_a_data_set_that_is_not_to_be_had_says_so(describe: Describe, library: Any, tmp_path: Path) -> None:
    unknown = describe(OPEN, dataset_path="nobody/nothing", dataset_kwargs=None)
    error = _refused(lambda: unknown.sources(1, 0), kind=StorageError)
    assert error.problem.startswith("The data set 'nobody/nothing' cannot be loaded: ")
    (tmp_path / "crew.parquet").write_bytes(b"no table")
    files = {"data_files": "crew.parquet"}
    broken = describe(OPEN, dataset_path="parquet", dataset_kwargs=files)
    error = _refused(lambda: broken.sources(1, 0), kind=StorageError)
    assert error.problem.startswith("The data set 'parquet' cannot be loaded: ")


@pytest.mark.parametrize(
    ("says", "path", "files"),
    [
        ({"dataset_path": "csv", "data_files": "https://example.org/a.csv"}, "csv", "https://example.org/a.csv"),
        ({"dataset_path": "nobody/set", "data_files": "data/train.jsonl"}, "nobody/set", "data/train.jsonl"),
        ({"dataset_path": "json", "data_files": "hf://datasets/a/b/x.jsonl"}, "json", "hf://datasets/a/b/x.jsonl"),
    ],
)
def test_addresses_and_a_hubs_own_files_are_passed_on_as_they_are(
    describe: Describe, library: Any, monkeypatch: pytest.MonkeyPatch, says: dict[str, str], path: str, files: str
) -> None:
    asked = []

    def load(where: str, name: str | None, data_files: Any) -> Any:
        asked.append((where, data_files))
        return {"train": library.Dataset.from_list(LINES)}

    monkeypatch.setattr(library, "load_dataset", load)
    named = {"dataset_path": says["dataset_path"], "dataset_kwargs": {"data_files": says["data_files"]}}
    assert len(_items(describe(OPEN, **named))) == 3
    assert asked == [(path, {"train": [files]})]


def test_files_of_a_folder_are_relative_to_the_description(
    describe: Describe, library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    library.Dataset.from_list(LINES).to_json(str(tmp_path / "set" / "few.jsonl"))
    task = describe(OPEN, dataset_path="set", dataset_kwargs={"data_files": "set/few.jsonl"})
    monkeypatch.chdir(tmp_path.parent)
    relative = build_task("described", f"{tmp_path.name}/{Path(task.data).name}")
    assert len(_items(relative)) == 3


def test_a_pattern_reaches_into_folders_and_brackets_may_be_part_of_a_name(tmp_path: Path) -> None:
    home = tmp_path / "[lab]"
    for at, name in enumerate(("deep/0.jsonl", "deep/a/1.jsonl", "deep/a/b/2.jsonl", "q[1].jsonl")):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"{json.dumps(LINES[at % 3])}\n")
    for files, count in (("deep/**/*.jsonl", 3), ("q[1].jsonl", 1), (f"{home}/deep/0.jsonl", 1)):
        (home / "it.yaml").write_bytes(msgspec.yaml.encode(OPEN | {"dataset_kwargs": {"data_files": files}}))
        assert len(_items(build_task("described", str(home / "it.yaml")), count)) == count


def test_a_pattern_stands_for_all_its_files(describe: Describe, tmp_path: Path) -> None:
    task = describe(OPEN, dataset_kwargs={"data_files": "part-*.jsonl"})
    assert "no data file" in _refused(lambda: task.sources(1, 0), kind=StorageError).problem
    for at, line in enumerate(LINES):
        (tmp_path / f"part-{at}.jsonl").write_text(f"{json.dumps(line)}\n")
    assert task.sources(3, 0) == describe(OPEN).sources(3, 0)


def test_the_committed_harbours_can_be_answered_from_their_texts_and_only_there() -> None:
    sources = build_task("described", str(ROOT / "data/tasks/harbours.yaml")).sources(24, 0)
    texts = [source.text for source in sources]
    for source in sources:
        for item in source.items:
            assert f"{item.stem} {item.gold}" in source.text
            assert sum(f"{item.stem} {option}" in text for text in texts for option in item.options) == 1
    assert len(texts) == 8


OF_THE_HUB: dict[str, dict[str, Any]] = {
    "arc-challenge": {"question": "Which falls?", "choices": {"text": ["Air", "Rain"], "label": ["1", "2"]}},
    "openbookqa": {"question_stem": "Which falls?", "choices": {"text": ["Air", "Rain"], "label": ["1", "2"]}},
    "mmlu-redux": {"question": "Which falls?", "choices": ["Air", "Rain"], "answer": 1, "error_type": "ok"},
}
TWICE = {"arc-challenge": {"text": ["Rain", "Rain"], "label": ["1", "2"]}, "mmlu-redux": ["Rain", "Rain"]}


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_committed_benchmarks_of_the_hub_are_asked_of_both(
    name: str, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"answerKey": "2"} | OF_THE_HUB[name]
    left_out = [row | {"choices": TWICE.get(name, TWICE["arc-challenge"])}]
    left_out += [row | {"error_type": "wrong_groundtruth"}] if "error_type" in row else []
    loaded = {"test": library.Dataset.from_list([*left_out, row])}
    monkeypatch.setattr(library, "load_dataset", lambda path, name: loaded)
    (source,) = build_task("described", str(ROOT / f"data/tasks/{name}.yaml")).sources(1, 0)
    assert source.text == "Which falls? The options are: Air; Rain."
    (item,) = source.items
    assert (item.question, item.options, item.gold) == (source.text, ("Air", "Rain"), "Rain")


@pytest.mark.parametrize("name", ["social-iqa", "intents", "strategy-qa"])
def test_committed_need_free_questions_are_asked_of_both(name: str, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "local").mkdir()
    says = (ROOT / f"data/tasks/{name}.yaml").read_bytes()
    (tmp_path / "tasks" / "it.yaml").write_bytes(says)
    line = {"question": "Do pears sink?", "choices": ["Yes", "No"], "label": 1}
    (tmp_path / "local" / f"{name}.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (source,) = build_task("described", str(tmp_path / "tasks" / "it.yaml")).sources(1, 0)
    (item,) = source.items
    assert item.question == source.text
    assert item.question.endswith("Do pears sink? The options are: Yes; No.")
    assert (item.options, item.gold) == (("Yes", "No"), "No")


def test_rows_that_are_not_to_be_kept_are_left_out(describe: Describe) -> None:
    assert set(_items(describe(OPEN, keep="{{ label == 0 }}"), 2)) == {
        "Who rows? Answer briefly.",
        "Who paints? Answer briefly.",
    }
    # What a template cannot be filled in for may be left out.
    lines = [*LINES, {"log": "Nobody.", "asks": "Who?", "right": None, "label": 2}]
    assert len(_items(describe(OPEN, lines, keep="{{ right is not none }}"))) == 3


@pytest.mark.parametrize(
    ("keep", "problem"),
    [
        ("label", "says '0' for row 1, neither True nor False"),
        ("{{ label == 0 and 'yes' }}", "says 'yes' for row 1"),
        ("{{ kind == 'ok' }}", "'kind' is undefined"),
        ("{{ label == 9 }}", "leaves none of 3 rows"),
    ],
)
def test_what_to_keep_has_to_be_said_clearly(describe: Describe, keep: str, problem: str) -> None:
    assert problem in _refused(lambda: describe(OPEN, keep=keep).sources(1, 0)).problem


def test_the_committed_squad_asks_what_the_task_reading_asks(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "id": "1", "title": "Inns", "context": "Anna runs it.", "question": "Who runs it?",
        "answers": {"text": ["Anna", "Anna", "Miss Anna"], "answer_start": [0, 0, 0]},
    }  # fmt: skip
    loaded = {"validation": library.Dataset.from_list([row])}
    monkeypatch.setattr(library, "load_dataset", lambda path, name: loaded if path == "rajpurkar/squad" else {})
    (ours,) = build_task("described", str(ROOT / "data/tasks/squad.yaml")).sources(1, 0)
    line = {"context": row["context"], "qas": [{"question": row["question"], "answers": row["answers"]["text"]}]}
    (tmp_path / "squad.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (theirs,) = ReadingComprehension(str(tmp_path / "squad.jsonl")).sources(1, 0)
    assert ours == theirs


def test_experiments_validate_checks_a_description(describe: Describe, tmp_path: Path) -> None:
    task = describe(OPEN)
    plan = {"name": "crew", "task": "described", "data": task.data, "items": 3, "arms": ["none", "kv"]}
    (tmp_path / "plan.yaml").write_bytes(msgspec.yaml.encode(plan))
    sound = CliRunner().invoke(cli, ["experiments", "validate", str(tmp_path / "plan.yaml")])
    assert (sound.exit_code, "sound" in sound.output) == (0, True)
    describe(OPEN, doc_to_text="{{ question }}")
    bad = CliRunner().invoke(cli, ["experiments", "validate", str(tmp_path / "plan.yaml")])
    assert bad.exit_code == 2
    assert "'question' is undefined" in bad.output
