"""All lessons of a training: materials mixed in one order, of words that the receiver has and the task has not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from unspoken.engines.fake import FakeEngine
from unspoken.errors import StorageError, UsageError
from unspoken.lab.tasks import private_facts as published
from unspoken.spec import ModelSpec
from unspoken.train.choices import Choices as Reports
from unspoken.train.config import Choices, Facts, Lists, Material, Texts, Training
from unspoken.train.facts import GeneratedFacts
from unspoken.train.lessons import lessons
from unspoken.train.lists import WordLists
from unspoken.train.texts import Passages
from unspoken.train.vocabulary import Vocabulary, reserved

WORDS = ("amber", "candle", "gravity", "ribbon", "sugar", "harbour", "alice", "violin", "meadow", "copper")
FREE = ("amber", "candle", "copper", "gravity", "meadow", "ribbon", "violin")
TEXT = "The harbour of Old Marle was built in 1784 by two brothers. Its walls have never fallen since."


class Wordy(FakeEngine):
    """The fake model with a vocabulary of whole words."""

    words: tuple[str, ...] = WORDS

    @property
    def spec(self) -> ModelSpec:
        return msgspec.structs.replace(super().spec, vocabulary=len(self.words))

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(f" {self.words[token]}" for token in token_ids)


def training(*material: Material, seed: int = 4) -> Training:
    """A training on some materials."""
    return Training("x", "a", "b", material, seed=seed)


def test_a_vocabulary_has_the_whole_words_in_small_letters() -> None:
    tokens = (" house", "house", " House", " the", " ab", " table", " naïve", " x1yz", " a-bc", "", " ", " house",
              " somewhere", " everywhere", " two words", " tabl e", " ABCD")  # fmt: skip
    found = Vocabulary.of(lambda ids: "".join(tokens[at] for at in ids), len(tokens), frozenset({"table"}))
    # Four letters or more, nine or fewer, with a space in front, and none of those left out.
    assert found == Vocabulary(("house", "somewhere"))


def test_words_of_the_task_are_never_drawn() -> None:
    assert {"sugar", "harbour", "alice", "paris", "white", "mill", "northern"} <= reserved()
    assert len(reserved()) == len({*published.ADJECTIVES, *published.PLACES}) + len(
        {value.lower() for kind in published.KINDS for value in kind.values}
    )
    made = lessons(training(Facts(30), Lists(20, 5)), Wordy())
    assert not any(word in lesson.text.split() for lesson in made for word in ("sugar", "harbour"))


def test_materials_are_mixed_in_an_order_that_the_seed_gives(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("\n\n".join(f"Number {at}. {TEXT}" for at in range(3)))
    given = (Facts(4, 4), Lists(3, 5), Choices(2), Texts(str(path)))
    made = lessons(training(*given), Wordy())
    words, passages = Vocabulary(FREE), Passages.of(path, 700)
    expected = [GeneratedFacts(words, 4).lesson(4, at) for at in range(4)]
    expected += [WordLists(words, 5).lesson(4, at) for at in range(3)]
    expected += [Reports().lesson(4, at) for at in range(2)]
    expected += [passages.lesson(4, at) for at in range(3)]
    assert sorted(made, key=lambda each: each.text) == sorted(expected, key=lambda each: each.text)
    assert list(made) != expected
    assert made == lessons(training(*given), Wordy())
    other = lessons(training(*given, seed=5), Wordy())
    assert {each.text for each in made} & {each.text for each in other} == set(passages.passages)


def test_of_texts_there_are_no_more_lessons_than_passages(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("\n\n".join(f"Number {at}. {TEXT}" for at in range(3)))
    for wanted, there in ((None, 3), (2, 2), (9, 3)):
        assert len(lessons(training(Texts(str(path), wanted)), Wordy())) == there


def test_passages_that_nothing_can_be_asked_about_make_no_lesson(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(f"1. 2. 3. 4. 5. 6. 7. 8. 9. 10. 11. 12.\n\n{TEXT}")
    (only,) = lessons(training(Texts(str(path))), Wordy())
    assert only.text == TEXT
    path.write_text("1. 2. 3. 4. 5. 6. 7. 8. 9. 10. 11. 12.")
    with pytest.raises(UsageError, match="materials make no lesson"):
        lessons(training(Texts(str(path))), Wordy())


def test_no_lessons_are_refused() -> None:
    with pytest.raises(UsageError, match="materials make no lesson"):
        lessons(training(Choices(0)), Wordy())


def test_a_vocabulary_with_too_few_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokenizer has 7 whole words, too few"):
        lessons(training(Lists(1, 8)), Wordy())
    assert lessons(training(Lists(1, 7)), Wordy())
    for material in (Facts(1), Lists(1, 2)):
        with pytest.raises(UsageError, match="tokenizer has 0 whole words, too few"):
            lessons(training(material), FakeEngine())
    assert lessons(training(Choices(1)), FakeEngine())  # It needs none.
    with pytest.raises(StorageError, match="cannot be read"):
        lessons(training(Texts(str(tmp_path / "none"))), FakeEngine())
