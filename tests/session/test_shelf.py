"""What an agent remembers is prefilled once, and opened afterwards as it was."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from unspoken.engines.fake import FakeEngine
from unspoken.errors import StorageError
from unspoken.session import Agent, Session, read_card
from unspoken.session.shelf import Shelf

MEMORY = '{"text": "The old mill is run by Anna."}\n{"text": "The new mill is run by Bob."}\n'


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A card with a memory."""
    (tmp_path / "lyra.jsonl").write_text(MEMORY)
    path = tmp_path / "lyra.yaml"
    path.write_text("name: lyra\ncard: You are Lyra.\nmemory: lyra.jsonl\n")
    return path


def test_an_agent_has_its_memory_in_its_system_prompt(card: Path, fake: FakeEngine) -> None:
    agent = Agent.from_card(card, fake)
    expected = "You are Lyra.\n\nYou remember this:\n\nThe old mill is run by Anna.\n\nThe new mill is run by Bob."
    assert agent.card == expected
    assert expected in fake.decode(agent.prefix.manifest.token_ids or ())
    card.write_text("name: lyra\ncard: You are Lyra.\nmemory: lyra.jsonl\nmemory_letters: 30\n")
    assert read_card(card).system(card.parent).endswith("You remember this:\n\nThe new mill is run by Bob.")
    card.write_text("name: lyra\ncard: You are Lyra.\nmemory: other.jsonl\n")
    with pytest.raises(StorageError, match=r"The memory .* cannot be read"):
        Agent.from_card(card, fake)


def test_a_beginning_is_read_once_and_opened_as_it_was(card: Path, fake: FakeEngine, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", least=20)
    first = Agent.from_card(card, fake, shelf).prefix
    with mock.patch.object(FakeEngine, "prefill", side_effect=AssertionError("read again")):
        again = Agent.from_card(card, fake, shelf).prefix
    assert again.manifest == first.manifest
    for one, other in zip(first.layers, again.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
    assert shelf.folder.stat().st_mode & 0o777 == 0o700


def test_another_card_model_or_type_has_a_beginning_of_its_own(card: Path, fake: FakeEngine, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", least=20)
    others = (FakeEngine(seed=1), FakeEngine(dtype="bfloat16"))
    agents = [Agent.from_card(card, engine, shelf) for engine in (fake, *others)] + [
        Agent("vera", fake, "V" * 40, shelf)
    ]
    paths = {shelf.path(agent.engine, agent.frame.before) for agent in agents}
    assert len(paths) == 4
    for agent in agents:
        assert agent.prefix.manifest.dtype == agent.engine.dtype
    assert set(shelf.folder.iterdir()) == paths


def test_a_file_that_is_damaged_is_made_anew(card: Path, fake: FakeEngine, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", least=20)
    first = Agent.from_card(card, fake, shelf).prefix
    (path,) = shelf.folder.iterdir()
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert torch.equal(Agent.from_card(card, fake, shelf).prefix.layers[0].keys, first.layers[0].keys)
    assert path.read_bytes() == sound


def test_a_short_beginning_is_not_worth_a_file(fake: FakeEngine, tmp_path: Path) -> None:
    Agent("lyra", fake, shelf=Shelf(tmp_path / "shelf")).prefix  # noqa: B018 - made here
    assert not (tmp_path / "shelf").exists()


def test_what_is_remembered_is_known_in_a_session(card: Path, fake: FakeEngine, tmp_path: Path) -> None:
    talk = Session(Agent.from_card(card, fake, Shelf(tmp_path / "shelf")), Agent("cc", fake))
    ids = talk.mind("lyra").prefix.manifest.token_ids or ()
    assert "The old mill is run by Anna." in fake.decode(ids)
    # It is the agent's own: what is handed on is what was said.
    talk.say("lyra", "Hello.")
    (told,) = talk.say("cc", "Hello.").handed
    assert told.passages == ("1:user", "1:lyra")
