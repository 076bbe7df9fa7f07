"""One residual in place of another, in one layer of one token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from unspoken.channels import activation
from unspoken.channels.protocol import Delivery
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.session import Agent

SOURCE = "The old mill is run by Anna."
Deliver = Callable[..., Delivery]


def test_what_is_sent_is_the_last_tokens_residual(engine: TransformersEngine) -> None:
    lyra = Agent("lyra", engine)
    reading = lyra.read(SOURCE)
    ids = torch.tensor([[*(reading.cache.manifest.token_ids or ()), *lyra.frame.after.token_ids]])
    with torch.inference_mode():
        states = engine._model(ids, output_hidden_states=True).hidden_states
    assert torch.allclose(activation.entering(reading, 1), states[1][0, -1], atol=1e-4)


@pytest.mark.parametrize("how", ["replace", "sum", "mean"])
def test_it_meets_the_receivers_own_in_that_layer(
    deep: TransformersEngine, deliver: Deliver, how: Literal["replace", "sum", "mean"]
) -> None:
    lyra, vera = Agent("lyra", deep), Agent("vera", deep)
    name = "activation@3" if how == "replace" else f"activation:{how}@3"
    delivery = deliver(name, vera, (lyra, SOURCE))
    (reply,) = vera.answer(["Who?"], [delivery], Limits(2))
    # The slow way: layers before it as they are, the last residual changed, layers after it alone.
    ids = vera.asked("Who?").token_ids
    at = torch.arange(vera.prefix.columns, vera.prefix.columns + len(ids))
    residuals, _ = deep.through(deep.embed(ids), vera.prefix.layers[:3], at, at)
    sent = activation.entering(lyra.read(SOURCE), 3).to(torch.bfloat16).float()
    mine = residuals[-1]
    last = {"replace": sent, "sum": mine + sent, "mean": (mine + sent) / 2}[how]
    made, _ = deep.through(torch.cat((residuals[:-1], last[None])), vera.prefix.layers[3:], at, at)
    expected = (deep.finish(made[-1:]) @ deep.unembeddings().T.detach())[0].log_softmax(dim=-1)
    assert torch.allclose(reply.generation.first_logprobs, expected, atol=1e-4)
    assert delivery.channel == name
    assert delivery.bytes_moved == 2 * len(mine)
    assert delivery.past is vera.prefix


def test_by_default_it_meets_at_the_papers_depth(deep: TransformersEngine, deliver: Deliver) -> None:
    graft = deliver("activation", Agent("vera", deep), (Agent("lyra", deep), SOURCE)).onset.graft
    assert graft is not None
    assert graft.layer == 4  # 26/32 of five layers.


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("activation@0", "'0' is no number"),
        ("activation@5", "no layer 5 among 5"),
        ("activation:product@2", "cannot meet by 'product'"),
    ],
)
def test_impossible_places_are_refused(deep: TransformersEngine, deliver: Deliver, channel: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        deliver(channel, Agent("vera", deep), (Agent("lyra", deep), SOURCE))


def test_other_engines_and_models_are_refused(
    tiny_engine: Callable[..., TransformersEngine], fake: FakeEngine, deliver: Deliver
) -> None:
    with pytest.raises(UsageError, match="'activation' needs single layers, and the engine 'fake'"):
        deliver("activation", Agent("vera", fake), (Agent("lyra", fake), SOURCE))
    with pytest.raises(IncompatibleCache, match="weights"):
        deliver("activation", Agent("vera", tiny_engine("llama", 1)), (Agent("lyra", tiny_engine()), SOURCE))
