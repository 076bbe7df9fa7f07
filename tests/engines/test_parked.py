"""Engines that take turns on one device: one is loaded at a time, and what they hand over outlives them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from unspoken.engines.fake import FakeEngine
from unspoken.engines.parked import Parked, Slot
from unspoken.engines.protocol import Engine, Limits, Prompt, Turn
from unspoken.session import Agent, Session

SOURCE = "The old mill is run by Anna. The new mill is run by Bob."
PromptOf = Callable[[Engine, str], Prompt]


class Device:
    """Counts what is loaded on it, as a small GPU would."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.most = 0
        self.loads: list[str] = []

    def load(self, name: str, seed: int = 0) -> Engine:
        """Load a fake model that says when it is unloaded."""
        device = self

        class Loaded(FakeEngine):
            def close(self) -> None:
                device.loaded.remove(name)

        self.loaded.append(name)
        self.loads.append(name)
        self.most = max(self.most, len(self.loaded))
        return Loaded(seed)


@pytest.fixture
def device() -> Device:
    """A device with nothing loaded."""
    return Device()


def _parked(device: Device, slot: Slot, name: str, seed: int = 0) -> Parked:
    return Parked(lambda: device.load(name, seed), slot)


def test_a_parked_engine_is_an_engine(device: Device) -> None:
    assert isinstance(_parked(device, Slot(), "one"), Engine)


@pytest.mark.parametrize("channel", ["kv", "kv-continue", "text", "full-text"])
def test_agents_of_one_slot_answer_as_with_both_models_loaded_and_never_have_both(device: Device, channel: str) -> None:
    slot = Slot()
    lyra, vera = (Agent(name, _parked(device, slot, name)) for name in ("lyra", "vera"))
    apart = Session(lyra, vera, channel=channel).ask("vera", "Who runs the old mill?", about=SOURCE)
    both = Session(Agent("lyra", FakeEngine()), Agent("vera", FakeEngine()), channel=channel)
    assert apart.text == both.ask("vera", "Who runs the old mill?", about=SOURCE).text
    assert device.most == 1
    assert device.loaded == ["vera"]


def test_a_hand_over_by_cache_loads_each_model_once_more_at_most(device: Device) -> None:
    slot = Slot()
    lyra, vera = (Agent(name, _parked(device, slot, name)) for name in ("lyra", "vera"))
    del device.loads[:]
    Session(lyra, vera, channel="kv").ask("vera", "Who runs the old mill?", about=SOURCE)
    assert device.loads == ["lyra", "vera"]  # Both were looked at; vera's stood in the slot.


def test_what_is_asked_of_the_other_side_does_not_wake_it(device: Device) -> None:
    slot = Slot()
    one, other = _parked(device, slot, "one"), _parked(device, slot, "other", seed=1)
    del device.loads[:]
    assert one.spec.weights != other.spec.weights
    assert (one.name, one.version, one.dtype, one.precision) == ("fake", FakeEngine.version, "float32", "float32")
    assert device.loads == []


def test_a_cache_outlives_the_model_that_made_it(device: Device, content: PromptOf) -> None:
    slot = Slot()
    one, other = _parked(device, slot, "one"), _parked(device, slot, "other")
    cache = one.prefill(content(one, SOURCE))
    one.close()
    assert device.loaded == []
    (made,) = other.generate([Turn(content(other, "\n\nWho runs the new mill?"), cache)], Limits(8))
    assert made.text == "Bob"
    assert device.loaded == ["other"]


def test_closing_unloads_only_what_is_ones_own(device: Device) -> None:
    slot = Slot()
    one, other = _parked(device, slot, "one"), _parked(device, slot, "other")
    one.close()
    assert device.loaded == ["other"]
    other.close()
    other.close()
    assert device.loaded == []
    assert other.decode(other.encode("again")) == "again"
    assert device.loaded == ["other"]


def test_slots_are_apart(device: Device) -> None:
    one, other = _parked(device, Slot(), "one"), _parked(device, Slot(), "other")
    assert one.encode("a") == other.encode("a")
    assert device.loaded == ["one", "other"]
