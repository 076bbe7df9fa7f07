"""Sending whole layers: the others hold nothing, no future leaks unless the published mask is asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unspoken.channels import layers
from unspoken.channels.protocol import Delivery
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.session import Agent

SOURCE = "The old mill is run by Anna. It was calm. The station gets its mail from Rome."
Deliver = Callable[..., Delivery]


@pytest.mark.parametrize(("part", "many"), [(1.0, 5), (0.7, 3), (0.6, 3), (0.4, 2), (0.2, 1)])
def test_so_many_layers_are_sent_and_the_first_is_among_them(
    deep: TransformersEngine, deliver: Deliver, part: float, many: int
) -> None:
    receiver = Agent("vera", deep)
    delivery = deliver(f"layers@{part}", receiver, (Agent("lyra", deep), SOURCE))
    whole = deliver("kv", receiver, (Agent("lyra", deep), SOURCE))
    assert delivery.past is not None
    assert whole.past is not None
    sent = [layer.index for layer in delivery.past.layers if layer.columns > receiver.prefix.columns]
    assert len(sent) == many
    assert sent[0] == 0
    for index, (mine, all_of_them) in enumerate(zip(delivery.past.layers, whole.past.layers, strict=True)):
        expected = all_of_them.keys if index in sent else receiver.prefix.layers[index].keys
        assert torch.equal(mine.keys, expected)
    assert delivery.bytes_moved == pytest.approx(whole.bytes_moved * many / 5, rel=0.03)
    # The question stands where it would with all layers.
    assert delivery.past.next_position == whole.past.next_position


def test_all_layers_are_the_plain_channel(deep: TransformersEngine, deliver: Deliver) -> None:
    receiver, read = Agent("vera", deep), (Agent("lyra", deep), SOURCE)
    made = [
        receiver.answer(["Who?"], [deliver(name, receiver, read)], Limits(3))[0].generation.first_logprobs
        for name in ("kv", "layers@1", "layers:published@1")
    ]
    for other in made[1:]:
        assert torch.allclose(made[0], other, atol=1e-5)


def leaked(engine: TransformersEngine, receiver: Agent, delivery: Delivery) -> float:
    """How much the last token of a question changes what is predicted at the tokens before it."""
    first, second = (receiver.asked(question) for question in ("Who runs it?", "Who runs it!"))
    lines: list[Tensor] = []
    for asked in (first, second):
        lines.append(engine.logits(asked, delivery.past, lookahead=delivery.onset.lookahead))
    same = next(at for at, (a, b) in enumerate(zip(first.token_ids, second.token_ids, strict=True)) if a != b)
    return float((lines[0][:same] - lines[1][:same]).abs().max())


def test_the_future_leaks_with_the_published_mask_and_not_with_ours(deep: TransformersEngine, deliver: Deliver) -> None:
    receiver, read = Agent("vera", deep), (Agent("lyra", deep), SOURCE)
    ours, published = (deliver(name, receiver, read) for name in ("layers@0.4", "layers:published@0.4"))
    assert leaked(deep, receiver, ours) < 1e-5
    assert leaked(deep, receiver, published) > 1e-3
    assert published.onset.lookahead == len(SOURCE)


def test_the_prior_is_highest_in_the_middle_and_decides_alone_without_the_measurement(
    deep: TransformersEngine,
) -> None:
    # Five layers: distances 2, 1, 0, 1, 2 from the middle, a width of 10: exp(-d^2 / 200).
    expected = torch.tensor([4.0, 1.0, 0.0, 1.0, 4.0]).div(-200).exp()
    assert torch.allclose(layers.prior(5), expected)
    assert layers.chosen_layers(Agent("vera", deep), 0.6, alpha=0.0)[:2] in ([0, 1], [0, 2])
    assert 2 in layers.chosen_layers(Agent("vera", deep), 0.4, alpha=0.0)


def test_the_measurement_counts_what_goes_to_content(deep: TransformersEngine) -> None:
    scores = layers.profile(Agent("vera", deep))
    assert scores.shape == (5,)
    assert bool((scores > 0).all())
    assert bool((scores < 1).all())
    measured = layers.chosen_layers(Agent("vera", deep), 0.6, alpha=1.0)
    best = sorted(range(1, 5), key=lambda index: -float(scores[index]))[:2]
    assert measured == sorted([0, *best])


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("layers@0", "'0' is no share"),
        ("layers@1.1", "'1.1' is no share"),
        ("layers:leaky@0.5", "no mask 'leaky'"),
        ("layers:alpha=2@0.5", "alpha is '2'"),
        ("layers:alpha=x@0.5", "alpha is 'x'"),
        ("layers@0.1", "A share of 0.1 of 5 layers is none"),
    ],
)
def test_what_cannot_be_selected_is_refused(
    deep: TransformersEngine, deliver: Deliver, channel: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        deliver(channel, Agent("vera", deep), (Agent("lyra", deep), SOURCE))


def test_an_engine_without_attention_weights_is_refused(fake: FakeEngine, deliver: Deliver) -> None:
    with pytest.raises(UsageError, match="'layers' needs attention weights, and the engine 'fake'"):
        deliver("layers@0.7", Agent("vera", fake), (Agent("lyra", fake), SOURCE))
