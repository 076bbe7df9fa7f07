"""The sender's columns on disk are those it makes, each computed once, and never those of other lessons or models."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from unspoken.channels.fused import sent_rows
from unspoken.engines.fake import FakeEngine
from unspoken.errors import StorageError, UsageError
from unspoken.fusers.pair import Pair
from unspoken.session import Agent
from unspoken.train import store as module
from unspoken.train.lesson import Asked, Lesson
from unspoken.train.store import AGENTS, Store

SHARD, COUNT = 4, 6
LESSONS = [Lesson(f"Mill number {at} is run by Anna.", (Asked("Who?", "Anna"),)) for at in range(COUNT)]
SENDER, RECEIVER = FakeEngine(1), FakeEngine(2)
PAIR = Pair.of(SENDER.spec, RECEIVER.spec)


def quiet(what: str, done: int, total: int) -> None:
    """Watch without a word."""


def filled(folder: Path, lessons: list[Lesson] = LESSONS, pair: Pair = PAIR) -> Store:
    """A store with all columns computed."""
    store = Store(folder, lessons, pair, "transformers")
    store.fill(SENDER, RECEIVER, quiet)
    return store


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", SHARD)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the agents that read, in order."""
    names: list[str] = []

    def counted(reading: object, receiver: object) -> Tensor:
        names.append(reading.reader.name)  # type: ignore[attr-defined]
        return sent_rows(reading, receiver)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "sent_rows", counted)
    return names


def test_columns_are_the_senders_in_turn_by_its_agents(tmp_path: Path, reads: list[str]) -> None:
    store = filled(tmp_path)
    assert reads == [AGENTS[at % len(AGENTS)] for at in range(COUNT)]
    for number in (0, 1, 2, SHARD - 1, SHARD, COUNT - 1):
        agent = Agent(AGENTS[number % len(AGENTS)], SENDER)
        rows = sent_rows(agent.read(LESSONS[number].text), RECEIVER)
        assert store.rows(number).dtype == torch.float32
        # Kept as float16: half a unit in its last place is 2^-11 of a number.
        assert torch.allclose(store.rows(number), rows, rtol=2**-11, atol=2**-25)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2


def test_what_is_done_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    Store(tmp_path, LESSONS, PAIR, "transformers").fill(SENDER, RECEIVER, lambda *each: told.append(each))
    assert told == [("sender's columns", done, COUNT) for done in (0, SHARD, COUNT)]


def test_what_a_killed_run_has_finished_is_kept(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module.save_file

    def killed(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        whole(tensors, path, metadata=metadata)
        if path.name.startswith(f"{SHARD:06d}"):
            path.write_bytes(path.read_bytes()[:50])
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path)
    monkeypatch.setattr(module, "save_file", whole)
    reads.clear()
    again = filled(tmp_path)
    assert len(reads) == COUNT - SHARD
    reads.clear()
    assert torch.equal(filled(tmp_path).rows(3), again.rows(3))
    assert reads == []
    fresh = filled(tmp_path / "other")
    assert all(torch.equal(again.rows(at), fresh.rows(at)) for at in range(COUNT))


@pytest.mark.parametrize("cut", [0, 30, -1])
def test_a_damaged_file_is_made_again(tmp_path: Path, reads: list[str], cut: int) -> None:
    kept = filled(tmp_path)
    before = kept.rows(SHARD)
    (path,) = tmp_path.glob(f"*/{SHARD:06d}.safetensors")
    path.write_bytes(path.read_bytes()[:cut])
    reads.clear()
    assert torch.equal(filled(tmp_path).rows(SHARD), before)
    assert len(reads) == COUNT - SHARD


def test_other_lessons_and_models_have_files_of_their_own(tmp_path: Path, reads: list[str]) -> None:
    first = filled(tmp_path)
    rows = first.rows(0)
    reads.clear()
    weights = msgspec.structs.replace(PAIR, sender=msgspec.structs.replace(PAIR.sender, weights="other"))
    tokens = msgspec.structs.replace(PAIR, receiver=msgspec.structs.replace(PAIR.receiver, tokenizer="other"))
    changed = [Lesson("Another mill is run by Bob.", LESSONS[0].asked), *LESSONS[1:]]
    for lessons, pair in ((changed, PAIR), (LESSONS, weights), (LESSONS, tokens), (LESSONS[:-1], PAIR)):
        filled(tmp_path, lessons, pair)
        assert len(reads) == len(lessons)
        reads.clear()
    assert torch.equal(first.rows(0), rows)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_file_of_others_under_its_name_is_made_again(tmp_path: Path, reads: list[str]) -> None:
    filled(tmp_path)
    (mine,) = tmp_path.iterdir()
    filled(tmp_path, [Lesson(f"{each.text} So it is.", each.asked) for each in LESSONS])
    (other,) = (each for each in tmp_path.iterdir() if each != mine)
    expected = Store(tmp_path, LESSONS, PAIR, "transformers").rows(0)
    (other / "000000.safetensors").replace(mine / "000000.safetensors")
    reads.clear()
    assert torch.equal(filled(tmp_path).rows(0), expected)
    assert len(reads) == SHARD


def test_columns_too_large_for_what_they_are_kept_as_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "sent_rows", lambda reading, receiver: torch.full((2, 4), 7e4))
    with pytest.raises(UsageError, match=r"numbers up to 7e\+04, more than float16 has"):
        filled(tmp_path)


def test_what_cannot_be_read_or_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="Columns of lesson 3 cannot be read"):
        Store(tmp_path, LESSONS, PAIR, "transformers").rows(3)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Columns cannot be written"):
        filled(tmp_path / "file")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(StorageError, match=r"Columns cannot be written .*No space left"):
        filled(tmp_path / "more")
    monkeypatch.undo()
    assert filled(tmp_path / "more").rows(3).shape[0] == len(LESSONS[3].text)
