"""A background is learned for any model, and what was read on the way does not stay."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.identity.recognition import Recogniser
from unspoken.lab.recognition import prepare as module
from unspoken.lab.recognition.people import WAYS
from unspoken.lab.recognition.prepare import prepare


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few agents read few texts."""
    monkeypatch.setattr(module, "PLAN", msgspec.structs.replace(module.PLAN, cohort=2, development_readings=2))
    monkeypatch.setattr(module, "OWN_TEXTS", 3)


@pytest.mark.usefixtures("few")
def test_a_stopped_preparation_goes_on_and_leaves_nothing_behind(reader: TransformersEngine, tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"

    def kill(done: int, total: int, what: str) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(reader, None, 6, folder, kill)
    made = len(list(folder.rglob("*.safetensors")))
    assert made == 20

    starts: list[int] = []
    background = prepare(reader, None, 6, folder, lambda done, total, what: starts.append(done))
    assert starts[0] == 20
    assert not folder.exists()
    assert (background.info.agents, background.info.caches) == (6, 6 * 2 * len(WAYS))
    assert set(background.info.error_rates) == set(WAYS)
    assert background.info.spec == reader.spec
    recogniser = Recogniser(reader, background)
    profile = recogniser.enrol_card("nils", "You are Nils, a baker who whistles at work.", readings=2)
    assert profile.info.background == background.digest()


def test_too_few_texts_are_told_before_anything_is_read(
    reader: TransformersEngine, texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="are asked for"):
        prepare(reader, str(texts), 6, tmp_path / "unfinished", lambda done, total, what: None)
    assert not list(tmp_path.rglob("*.safetensors"))
