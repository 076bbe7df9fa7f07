"""Latent steps: each is one more column made from the state before it, at a position that is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unspoken.channels import latent
from unspoken.channels.protocol import Delivery
from unspoken.channels.text import content
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import ContextOverflow, UsageError
from unspoken.session import Agent

SOURCE = "The old mill is run by Anna."
Deliver = Callable[..., Delivery]


def test_without_steps_it_is_the_senders_own_reading(engine: TransformersEngine, deliver: Deliver) -> None:
    lyra, vera = Agent("lyra", engine), Agent("vera", engine)
    delivery = deliver("latent", vera, (lyra, SOURCE))
    asked = content(lyra, latent.THINK) + lyra.frame.after
    expected = engine.prefill(asked, lyra.read(SOURCE).cache)
    assert delivery.past is not None
    for mine, other in zip(delivery.past.layers, expected.layers, strict=True):
        assert torch.allclose(mine.keys, other.keys, atol=1e-5)
        assert torch.equal(mine.positions, other.positions)
    assert delivery.past.manifest.spans == expected.manifest.spans
    # The receiver goes on with a prompt of its own, without a second sink.
    assert [piece.kind for piece in delivery.prompt.pieces].count("sink") == 0
    assert vera.answer(["Who?"], [delivery], Limits(2))[0].generation.token_ids


@pytest.mark.parametrize("variant", [None, "realign"])
def test_each_step_reads_the_state_before_it(
    tiny_engine: Callable[..., TransformersEngine], variant: str | None
) -> None:
    # Untied embeddings, so that realigning is more than scaling.
    engine = tiny_engine("llama", tie_word_embeddings=False)
    lyra = Agent("lyra", engine)
    reading = lyra.read(SOURCE)
    plain = latent.thought(reading, 0, variant)
    ids = plain.manifest.token_ids
    assert ids is not None
    # The slow way: everything from the first token on, as embeddings, in one pass for each step.
    model = engine._model.model
    with torch.inference_mode():
        inputs = engine.embed(ids)[None]
        for _ in range(3):
            hidden = model(inputs_embeds=inputs).last_hidden_state[0, -1]
            if variant:
                hidden = hidden @ latent.realignment(engine)
            usual = engine.embeddings().norm(dim=1).mean()
            inputs = torch.cat((inputs, (hidden * usual / hidden.norm())[None, None]), dim=1)
        expected = model(inputs_embeds=inputs, use_cache=True).past_key_values
    made = latent.thought(reading, 3, variant)
    assert made.columns == plain.columns + 3
    assert made.positions.tolist() == list(range(made.columns))
    assert made.manifest.spans[-1].kind == "thought"
    assert (made.manifest.spans[-1].start, made.manifest.spans[-1].stop) == (plain.columns, made.columns)
    assert made.manifest.token_ids is None
    for mine, other in zip(made.layers, expected.layers, strict=True):
        assert torch.allclose(mine.keys, other.keys[0], atol=1e-4)
        assert torch.allclose(mine.values, other.values[0], atol=1e-4)


def test_realignment_maps_outputs_to_inputs_where_such_a_map_exists(
    tiny_engine: Callable[..., TransformersEngine],
) -> None:
    tied = latent.realignment(tiny_engine("llama", tie_word_embeddings=True))
    assert torch.allclose(tied, torch.eye(len(tied)), atol=1e-2)
    untied = tiny_engine("llama", tie_word_embeddings=False)
    matrix = latent.realignment(untied)
    leaving, entering = untied.unembeddings().detach(), untied.embeddings().detach()
    slow = torch.linalg.lstsq(leaving, entering).solution
    assert torch.allclose(matrix, slow, atol=1e-2)


def test_bytes_and_names(deep: TransformersEngine, deliver: Deliver) -> None:
    lyra, vera = Agent("lyra", deep), Agent("vera", deep)
    none, some = (deliver(name, vera, (lyra, SOURCE)) for name in ("latent", "latent@4"))
    per_column = deep.spec.layers * deep.spec.kv_heads * deep.spec.head_dim * 2 * 4 + 4
    assert some.bytes_moved - none.bytes_moved == 4 * per_column
    assert some.channel == "latent@4"
    assert deliver("latent:realign@2+int8", vera, (lyra, SOURCE)).channel == "latent:realign@2+int8"


@pytest.mark.parametrize(
    ("channel", "message"),
    [("latent@-1", "'-1' is no number"), ("latent@1.5", "'1.5' is no number"), ("latent:dream", "no variant 'dream'")],
)
def test_what_cannot_be_thought_is_refused(
    deep: TransformersEngine, deliver: Deliver, channel: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        deliver(channel, Agent("vera", deep), (Agent("lyra", deep), SOURCE))


def test_steps_past_the_models_context_are_refused_before_the_first(deep: TransformersEngine, deliver: Deliver) -> None:
    lyra, vera = Agent("lyra", deep), Agent("vera", deep)
    reading = lyra.read(SOURCE)
    room = deep.spec.context - latent.thought(reading, 0, None).next_position
    assert latent.thought(reading, room, None).next_position == deep.spec.context
    with pytest.raises(ContextOverflow, match=f"needs {deep.spec.context + 1} positions"):
        latent.thought(reading, room + 1, None)
    with pytest.raises(ContextOverflow, match="was made for 512"):
        deliver("latent@1000000000", vera, (lyra, SOURCE))


def test_several_senders_and_engines_without_layers_are_refused(
    deep: TransformersEngine, fake: FakeEngine, deliver: Deliver
) -> None:
    with pytest.raises(UsageError, match="takes what one sender has read, found 2"):
        deliver("latent", Agent("vera", deep), (Agent("lyra", deep), SOURCE), (Agent("cc", deep), SOURCE))
    with pytest.raises(UsageError, match="'latent' needs single layers, and the engine 'fake'"):
        deliver("latent", Agent("vera", fake), (Agent("lyra", fake), SOURCE))
