"""Controls carry no message, or the wrong one, and cost the receiver what the real channel costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.channels import CHANNELS
from unspoken.channels.protocol import Delivery, Reading, Request
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.errors import UsageError
from unspoken.lab.arms import (
    CONTROLS,
    DEFAULT_ARMS,
    NEUTRAL,
    ChannelArm,
    build_arm,
    control_in,
    derangement,
    in_running_order,
)
from unspoken.session import Agent

# Of twins, whose ids have a stroke, tests are in test_twins.py.
NAMES = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=4)
SOURCE = "The old mill is run by Anna. The new mill is run by Bob. It was a calm week in the district."
DONOR = "The old mill is run by Carl. The new mill is run by Dora. It was a busy week in the city."
QUESTION = "Who runs the new mill?"
# Every registered control with what the receiver of the fake engine answers: never "Bob".
ANSWERS = {
    "kv-deranged": "Dora",
    "kv-zero": "unknown",
    "kv-random": "unknown",
    "kv-self": "unknown",
    "kv-shifted": "unknown",
}


@pytest.fixture
def receiver(fake: FakeEngine) -> Agent:
    """The agent that answers."""
    return Agent("vera", fake)


@pytest.fixture
def deliver(fake: FakeEngine, receiver: Agent) -> Callable[..., Delivery]:
    """Deliver the source in an arm of a name, the donor's at hand."""
    sender = Agent("lyra", fake)
    readings = {text: sender.read(text) for text in (SOURCE, DONOR)}

    def once(arm: str) -> Delivery:
        (made,) = build_arm(arm).deliver([Request((readings[SOURCE],), QUESTION)], receiver, lambda _: readings[DONOR])
        return made

    return once


def test_every_registered_control_is_tested_here() -> None:
    assert set(CONTROLS) == set(ANSWERS)


@pytest.mark.parametrize("arm", sorted(ANSWERS))
def test_the_receiver_cannot_answer_from_a_control(arm: str, deliver: Callable[..., Delivery], receiver: Agent) -> None:
    (reply,) = receiver.answer([QUESTION], [deliver(arm)], Limits())
    assert reply.text == ANSWERS[arm]


@pytest.mark.parametrize("arm", sorted(ANSWERS))
def test_a_control_stands_where_the_real_columns_would(arm: str, deliver: Callable[..., Delivery]) -> None:
    real, control = deliver("kv"), deliver(arm)
    assert control.channel == arm
    assert real.past is not None
    assert control.past is not None
    columns = control.past.columns if arm != "kv-deranged" else control.past.columns + len(SOURCE) - len(DONOR)
    assert columns == real.past.columns
    assert control.past.positions.tolist() == list(range(control.past.columns))
    assert control.past.manifest.spans[:-1] == real.past.manifest.spans[:-1]
    assert control.lossy
    if arm in ("kv-zero", "kv-random", "kv-shifted"):
        assert (control.bytes_moved, control.tokens_skipped) == (real.bytes_moved, real.tokens_skipped)


@pytest.mark.parametrize("arm", sorted(ANSWERS))
def test_requests_about_one_reading_share_one_delivery(arm: str, fake: FakeEngine, receiver: Agent) -> None:
    reading, donor = (Agent("lyra", fake).read(text) for text in (SOURCE, DONOR))
    first, second = build_arm(arm).deliver(
        [Request((reading,), "A?"), Request((reading,), "B?")], receiver, lambda _: donor
    )
    assert first is second


def test_deranged_columns_are_the_donors(deliver: Callable[..., Delivery], fake: FakeEngine) -> None:
    past = deliver("kv-deranged").past
    assert past is not None
    assert fake.decode(past.span("content").manifest.token_ids or ()) == DONOR


def test_the_control_of_kv_by_its_channel_is_kv_deranged(deliver: Callable[..., Delivery]) -> None:
    by_channel, by_name = deliver("deranged:kv").past, deliver("kv-deranged").past
    assert by_channel is not None
    assert by_name is not None
    for ours, theirs in zip(by_channel.layers, by_name.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


@pytest.mark.parametrize("channel", ["text", "full-text", "kv-continue", "kv+int8"])
def test_any_channel_has_a_control_of_its_own(
    channel: str, deliver: Callable[..., Delivery], fake: FakeEngine, receiver: Agent
) -> None:
    (reply,) = receiver.answer([QUESTION], [deliver(f"deranged:{channel}")], Limits())
    assert reply.text == "Dora"
    (made,) = build_arm(channel).deliver([Request((Agent("lyra", fake).read(DONOR),), QUESTION)], receiver, _nobody)
    assert made.bytes_moved == deliver(f"deranged:{channel}").bytes_moved


def _nobody(_: Reading) -> Reading:
    raise AssertionError("a channel takes no donor")


def test_the_control_of_an_arm_is_its_own_if_that_was_run() -> None:
    assert control_in("need@0.3", ("need@0.3", "kv-deranged", "deranged:need@0.3")) == "deranged:need@0.3"
    assert control_in("need@0.3", ("need@0.3", "kv-deranged", "deranged:need@0.5")) == "kv-deranged"
    assert control_in("fused:a-b", ("kv-deranged", "fused-deranged:a-b")) == "fused-deranged:a-b"
    assert control_in("fused:a-b", ("kv-deranged",)) is None
    assert control_in("kv", ("kv", "none")) is None


def test_zero_and_noise_leave_the_receivers_own_columns(deliver: Callable[..., Delivery], receiver: Agent) -> None:
    own = receiver.prefix.columns
    for arm in ("kv-zero", "kv-random"):
        past = deliver(arm).past
        assert past is not None
        for layer, prefix in zip(past.layers, receiver.prefix.layers, strict=True):
            assert torch.equal(layer.keys[:, :own], prefix.keys)
            assert bool(layer.values[:, own:].any()) == (arm == "kv-random")


def test_noise_is_the_same_for_the_same_source(deliver: Callable[..., Delivery]) -> None:
    first, second = deliver("kv-random").past, deliver("kv-random").past
    assert first is not None
    assert second is not None
    assert torch.equal(first.layers[0].keys, second.layers[0].keys)


def test_shifted_columns_hold_the_right_values_at_keys_far_off(deliver: Callable[..., Delivery]) -> None:
    real, shifted = deliver("kv").past, deliver("kv-shifted").past
    assert real is not None
    assert shifted is not None
    assert torch.equal(real.layers[0].values, shifted.layers[0].values)
    assert (real.layers[0].keys - shifted.layers[0].keys).abs().max() > 0.5
    assert "control.displace" in [step.op for step in shifted.manifest.lineage]


def test_self_made_columns_are_the_receivers_reading_of_a_neutral_text(
    deliver: Callable[..., Delivery], fake: FakeEngine
) -> None:
    delivery = deliver("kv-self")
    assert delivery.past is not None
    text = fake.decode(delivery.past.span("content").manifest.token_ids or ())
    assert text == (NEUTRAL * 3)[: len(SOURCE)]
    assert (delivery.tokens_prefilled, delivery.tokens_skipped, delivery.message) == (len(SOURCE), 0, "")


def test_a_long_source_gets_the_neutral_text_repeated(fake: FakeEngine, receiver: Agent) -> None:
    reading: Reading = Agent("lyra", fake).read("x" * (2 * len(NEUTRAL) + 5))
    (delivery,) = build_arm("kv-self").deliver([Request((reading,), "?")], receiver, lambda each: each)
    assert delivery.past is not None
    assert fake.decode(delivery.past.span("content").manifest.token_ids or ()) == (NEUTRAL * 3)[: 2 * len(NEUTRAL) + 5]


@settings(max_examples=40)
@given(st.dictionaries(NAMES, st.integers(1, 500), min_size=2, max_size=40))
def test_no_source_keeps_its_own_columns_and_each_is_given_once(lengths: dict[str, int]) -> None:
    pairs = derangement(lengths)
    assert pairs.keys() == lengths.keys() == set(pairs.values())
    assert all(source != donor for source, donor in pairs.items())


@settings(max_examples=40)
@given(st.dictionaries(NAMES, st.integers(1, 500), min_size=2, max_size=40))
def test_donors_are_of_nearly_the_same_length(lengths: dict[str, int]) -> None:
    order = sorted(lengths.values())
    steps = sorted(lengths[donor] - lengths[source] for source, donor in derangement(lengths).items())
    # Every source but the longest takes the next longer one's; the longest has to take the shortest's.
    expected = [after - before for before, after in itertools.pairwise(order)]
    assert steps == sorted([*expected, order[0] - order[-1]])


def test_default_arms_are_all_there_and_include_every_control() -> None:
    built = {name: build_arm(name) for name in DEFAULT_ARMS}
    assert set(CONTROLS) <= set(built)
    assert {name.partition("@")[0] for name in built} <= {*CONTROLS, *CHANNELS}


def test_any_channel_is_an_arm(deliver: Callable[..., Delivery]) -> None:
    arm: Any = build_arm("text@8")
    assert isinstance(arm, ChannelArm)
    assert deliver("text@8").message == SOURCE[:8]
    with pytest.raises(UsageError, match="no channel named"):
        build_arm("telepathy")


def test_the_skyline_runs_first_and_longer_messages_before_shorter_ones() -> None:
    names = ("none", "text@16", "text-asked@32", "kv", "text", "full-text", "text@128", "text-asked")
    assert in_running_order({name: build_arm(name) for name in names}, "full-text") == (
        "full-text", "text", "text-asked", "text@128", "text-asked@32", "text@16", "none", "kv",
    )  # fmt: skip
