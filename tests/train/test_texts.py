"""Running text: passages of whole sentences, gaps that their answers fill again, quotes that go on as the text does."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.errors import StorageError, UsageError
from unspoken.session import BRIEFLY
from unspoken.train.lesson import Asked
from unspoken.train.texts import FILL, GAP, LONGEST, QUOTE, QUOTED_WORDS, SENTENCE, SHORTEST, STEM, Passages, _cut

ROOT = Path(__file__).resolve().parents[2]
PARAGRAPHS = ROOT / "data" / "paragraphs.jsonl"
TEXT = (
    "The harbour of Old Marle was built in 1784 by two brothers. Its walls are of grey stone, and they have never "
    "fallen. Each autumn the fishermen bring their boats behind them! Who would have thought so? Not even Captain "
    "Rourke had believed it."
)


def written(folder: Path, text: str, name: str = "t.txt") -> Path:
    """A file with a text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def gapped(asked: Asked) -> str | None:
    """The sentence with a gap that a question shows, or None for a quote."""
    question = re.fullmatch(BRIEFLY.replace("{question}", "(.+)"), asked.question)
    if question is None:
        return None
    (shown,) = {found[1] for form in FILL if (found := re.fullmatch(_pattern(form, "gapped"), question[1]))}
    return shown


def begun(asked: Asked) -> str:
    """The words that a quote begins with."""
    (shown,) = {found[1] for form in QUOTE if (found := re.fullmatch(_pattern(form, "begun"), asked.question))}
    return shown


def _pattern(form: str, mark: str) -> str:
    return re.escape(form).replace(re.escape("{" + mark + "}"), "(.+)")


@pytest.mark.parametrize("source", ["data", "made"])
def test_an_answer_put_into_its_gap_restores_the_sentence(source: str, tmp_path: Path) -> None:
    passages = Passages.of(PARAGRAPHS if source == "data" else written(tmp_path, TEXT), 700)
    gaps = quotes = 0
    for number in range(min(120, len(passages.passages)) if source == "data" else 1):
        lesson = passages.lesson(20261128, number)
        sentences = SENTENCE.split(lesson.text)
        assert lesson.text == passages.passages[number]
        for asked in lesson.asked:
            shown = gapped(asked)
            if shown is None:
                known = begun(asked)
                # Two sentences may begin alike; the answer is that of one of them.
                whole = next(each for each in sentences if each.startswith(f"{known} {asked.answer}"))
                assert len(asked.answer.split()) <= QUOTED_WORDS
                assert len(asked.answer.split()) == QUOTED_WORDS or whole.rstrip(".!?") == f"{known} {asked.answer}"
                assert asked.stem == known
                quotes += 1
            else:
                assert shown.count(GAP) == 1
                assert shown.replace(GAP, asked.answer) in sentences
                assert asked.stem == STEM
                gaps += 1
    assert gaps >= (200 if source == "data" else 4)
    assert quotes >= 1


def test_passages_are_whole_sentences_in_order(tmp_path: Path) -> None:
    sentences = SENTENCE.split(TEXT)
    assert len(sentences) == 5
    for letters in (1, 80, 130, 200, 10_000):
        cut = Passages.of(written(tmp_path, TEXT), letters).passages
        assert " ".join(cut) == TEXT
        for piece in cut:
            assert len(piece) <= letters or piece in sentences
            assert set(SENTENCE.split(piece)) <= set(sentences)
        # No two neighbours would have fitted into one.
        assert all(len(a) + 1 + len(SENTENCE.split(b)[0]) > letters for a, b in pairwise(cut))


@given(st.lists(st.sampled_from(["One.", "Is it so?", "It is a longer sentence with some words in it.", "x", "Ah!"])),
       st.integers(1, 200))  # fmt: skip
def test_nothing_is_lost_but_a_short_end(sentences: list[str], letters: int) -> None:
    text = " ".join(sentences)
    cut = list(_cut(text, letters))
    joined = " ".join(cut)
    assert text.startswith(joined)
    assert len(text) - len(joined) <= SHORTEST


def test_paragraphs_of_a_text_file_are_apart_and_of_one_line(tmp_path: Path) -> None:
    text = "This is the first paragraph,\nover two lines.\n\n \t\nThis is the second   one, with spaces.\n\n\nShort."
    assert Passages.of(written(tmp_path, text), 700).passages == (
        "This is the first paragraph, over two lines.",
        "This is the second one, with spaces.",
    )


def test_lines_of_json_are_passages(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"This is passage number {at}, in one line.", "id": at}) for at in range(3)]
    found = Passages.of(written(tmp_path, lines[0] + "\n\n" + "\n".join(lines[1:]) + "\n", "t.jsonl"), 700)
    assert [each[:24] for each in found.passages] == [f"This is passage number {at}" for at in range(3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\n{"text": ', "Line 2 of .*t.jsonl is not JSON"),
        ('{"text": "a"}\n\nplain\n', "Line 3 of .*t.jsonl is not JSON"),
        ('{"words": "a"}', "Line 1 of .*t.jsonl has no field 'text'"),
        ('{"text": 3}', "Line 1 of .* has no field 'text'"),
        ('["text"]', "Line 1 of .* has no field 'text'"),
        ('{"text": "Too short."}', "has no passage to train on"),
        ("", "has no passage to train on"),
    ],
)
def test_bad_lines_are_refused_with_their_number(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Passages.of(written(tmp_path, text, "t.jsonl"), 700)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(StorageError, match="cannot be read"):
            Passages.of(path, 700)
    path = tmp_path / "bytes.txt"
    path.write_bytes(b"\xff\xfe words")
    with pytest.raises(UsageError, match="is not UTF-8"):
        Passages.of(path, 700)
    with pytest.raises(UsageError, match="has no passage to train on"):
        Passages.of(written(tmp_path, " \n\n "), 700)


def test_the_same_seed_and_number_give_the_same_lesson(tmp_path: Path) -> None:
    passages = Passages.of(written(tmp_path, TEXT), 130)
    count = len(passages.passages)
    first = [passages.lesson(1, number) for number in range(3 * count)]
    assert first == [passages.lesson(1, number) for number in range(3 * count)]
    assert [lesson.text for lesson in first] == list(passages.passages) * 3
    # The same passage comes again with other questions.
    assert len({lesson.asked for lesson in first}) > count
    assert first != [passages.lesson(2, number) for number in range(3 * count)]


def test_a_lesson_does_not_change(tmp_path: Path) -> None:
    # Source of the oracle: the lesson as it was when the published fusers were trained.
    lesson = Passages.of(written(tmp_path, TEXT), 130).lesson(7, 1)
    assert lesson.text == TEXT[TEXT.index("Each autumn") :]
    assert [(each.question, each.answer, each.stem) for each in lesson.asked] == [
        (
            "What is missing? Each autumn the ____ bring their boats behind them! Answer briefly.",
            "fishermen",
            "Answer:",
        ),
        (
            "Each ____ the fishermen bring their boats behind them! What belongs in the gap? Answer briefly.",
            "autumn",
            "Answer:",
        ),
        ("Fill the gap: Each autumn the fishermen ____ their boats behind them! Answer briefly.", "bring", "Answer:"),
        ("Not even Captain Rourke had ____ it. What belongs in the gap? Answer briefly.", "believed", "Answer:"),
        ("Not even ____ had believed it. What belongs in the gap? Answer briefly.", "Captain Rourke", "Answer:"),
        (
            'Quote the sentence that begins with "Not even Captain Rourke had".',
            "believed it",
            "Not even Captain Rourke had",
        ),
        (
            'Quote the sentence that begins with "Each autumn the".',
            "fishermen bring their boats behind them",
            "Each autumn the",
        ),
    ]


def test_sentences_too_short_or_too_long_are_not_asked_about(tmp_path: Path) -> None:
    long = "It goes on " + "and on " * 40 + "forever."
    lesson = Passages.of(written(tmp_path, f"Yes. {long} The carpenter opened the window at noon."), 700).lesson(0, 0)
    assert len(long) > LONGEST
    assert len({(each.question, each.answer) for each in lesson.asked}) == len(lesson.asked)
    assert {each.answer for each in lesson.asked[:-1]} <= {"carpenter", "opened", "window"}
    assert all("carpenter" in f"{each.question} {each.answer}" for each in lesson.asked)
