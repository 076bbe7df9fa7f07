"""Records are read one by one, with their lines, past whatever is broken between them."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.memory import stream
from unspoken.memory.stream import array, jsonl

RECORDS = st.lists(
    st.fixed_dictionaries(
        {"mapping": st.dictionaries(st.text(), st.text() | st.lists(st.integers() | st.floats(allow_nan=False)))}
    )
)
INDENTS = st.sampled_from([None, 0, 2])


def known(value: Any) -> bool:
    """Whether something is a record of these tests."""
    return isinstance(value, dict) and "mapping" in value


@given(RECORDS, INDENTS, st.booleans(), st.integers(1, 40))
def test_an_array_gives_what_json_reads_in_it(records: list[Any], indent: int | None, plain: bool, chunk: int) -> None:
    data = json.dumps(records, indent=indent, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    if b"\xed" in data and not plain:  # Lone surrogates are no UTF-8; that has a test of its own.
        data = json.dumps(records, indent=indent).encode()
    with mock.patch.object(stream, "CHUNK_BYTES", chunk):
        found = list(array(io.BytesIO(data), known))
    assert [each.value for each in found] == records
    assert not any(each.problem for each in found)
    for each in found:
        before = data[: each.stop]
        assert each.stop_line == before.count(b"\n") + 1
        assert before.decode().rstrip().endswith("}")


@given(RECORDS.filter(len), INDENTS, st.data())
def test_reading_goes_on_at_any_place_where_it_stopped(records: list[Any], indent: int | None, data: Any) -> None:
    whole = json.dumps(records, indent=indent).encode()
    first = list(array(io.BytesIO(whole), known))
    at = data.draw(st.integers(0, len(first) - 1))
    file = io.BytesIO(whole)
    file.seek(first[at].stop)
    rest = list(array(file, known, first[at].stop, first[at].stop_line))
    assert rest == first[at + 1 :]


@given(RECORDS)
def test_lines_give_what_json_reads_in_them_and_go_on_anywhere(records: list[Any]) -> None:
    whole = "".join(json.dumps(record) + "\n" for record in records).encode()
    found = list(jsonl(io.BytesIO(whole)))
    assert [each.value for each in found] == records
    assert [each.line for each in found] == list(range(1, len(records) + 1))
    for at, each in enumerate(found):
        file = io.BytesIO(whole)
        file.seek(each.stop)
        assert list(jsonl(file, each.stop, each.stop_line)) == found[at + 1 :]


GOOD, OTHER = '{"mapping": {"a": {"b": 1}, "c": {"d": 2}}}', '{"mapping": {"e": {}}}'
BROKEN = {
    "a missing brace": '{"mapping": {"a": {"b": 1}, "c": {"d": 2}}',
    "a missing colon": '{"mapping" {"a": {"b": 1}, "c": {"d": 2}}}',
    "a bad escape": '{"mapping": {"a": "\\x"}, "c": {"d": {}}, "e": {}}',
    "a bare word": '{"mapping": {"a": nothing}}',
    "a quote too few": '{"mapping": {"a": b"}, "c": {"d": {}}}',
    "two commas": '{"mapping": {"a": 1,, "c": {"d": {}}}}',
    "deep nesting": '{"mapping": ' + "[" * 100_000 + "]" * 100_000 + "}",
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_what_is_broken_is_told_with_its_line_and_nothing_else_is_lost(broken: str, chunk: int) -> None:
    chunk = max(chunk, len(BROKEN[broken]) // 4) if chunk < 100 else chunk
    data = f"[\n{GOOD},\n{BROKEN[broken]},\n\n{OTHER},\n{GOOD}\n]".encode()
    with mock.patch.object(stream, "CHUNK_BYTES", chunk):
        found = list(array(io.BytesIO(data), known))
    assert [(each.line, bool(each.problem)) for each in found] == [(2, False), (3, True), (5, False), (6, False)]
    assert found[1].problem.startswith("is no JSON: ")
    assert found[2].value == json.loads(OTHER)


def test_a_part_of_something_broken_is_not_taken_for_a_record() -> None:
    broken = '{"mapping": nothing, "list": [{"a": 1}, {"b": 2}]}'
    found = list(array(io.BytesIO(f"[{broken}, {GOOD}]".encode()), known))
    assert [each.value for each in found] == [None, json.loads(GOOD)]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (f"[{GOOD}", "the array is not closed"),
        (f"[{GOOD}, ", "the array is not closed"),
        ("[", "the array is not closed"),
        (f"[{GOOD}] {GOOD}", "stands behind the end of the array"),
        ('[{"mapping": {', "is no JSON, and neither is what follows"),
        ('[{"mapping": "\udcff"}]', "is no UTF-8"),
    ],
)
def test_what_is_wrong_at_the_end_is_told(data: str, problem: str) -> None:
    *good, bad = array(io.BytesIO(data.encode("utf-8", "surrogateescape")), known)
    if "what follows" in problem:
        *good, bad = [*good, bad][:1]
    assert problem in bad.problem
    assert all(not each.problem for each in good)


@pytest.mark.parametrize("data", [b"", b"[]", b" [ ]\n", b"\xef\xbb\xbf[]"])
def test_nothing_is_no_record(data: bytes) -> None:
    assert list(array(io.BytesIO(data), known)) == []


def test_one_object_and_objects_one_after_the_other_are_records_too() -> None:
    assert [each.value for each in array(io.BytesIO(GOOD.encode()), known)] == [json.loads(GOOD)]
    found = list(array(io.BytesIO(f"{GOOD}\n{OTHER}\n".encode()), known))
    assert [(each.value, each.line) for each in found] == [(json.loads(GOOD), 1), (json.loads(OTHER), 2)]


@pytest.mark.parametrize(
    ("line", "problem"), [(b"{", "is no JSON: "), (b"\xff", "is no UTF-8"), (b"[" * 100_000, "nested too deeply")]
)
def test_a_broken_line_is_told(line: bytes, problem: str) -> None:
    found = list(jsonl(io.BytesIO(GOOD.encode() + b"\n\n" + line + b"\n" + OTHER.encode())))
    assert [each.line for each in found] == [1, 3, 4]
    assert problem in found[1].problem


def test_a_line_without_end_is_told_and_not_kept() -> None:
    with mock.patch.object(stream, "MOST_LETTERS", 1000), mock.patch.object(stream, "CHUNK_BYTES", 100):
        found = list(jsonl(io.BytesIO(b"x" * 5000 + b"\n" + GOOD.encode())))
    assert [(each.line, each.problem) for each in found] == [(1, "is longer than 1000 bytes"), (2, "")]
    assert found[0].stop == 5001


def test_memory_does_not_grow_with_the_file() -> None:
    record = json.dumps({"mapping": {"a": "x" * 20_000}})
    peaks = []
    for records in (100, 1600):
        data = io.BytesIO(("[" + ",".join([record] * records) + "]").encode())
        tracemalloc.start()
        assert sum(not each.problem for each in array(data, known)) == records
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
